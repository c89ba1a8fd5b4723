"""Dummy inputs and how they are driven: embeddings, pixels, soft labels, starts and moves."""
