"""The home of the Textual app: it reads the events of run folders (`textleak.runs`), and nothing else."""
