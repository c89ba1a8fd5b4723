"""The terminal app: set up a run and watch the text come back, open old runs, compare, try defenses.

It reads the events of run folders (`textleak.runs`), and nothing else; attacks run in child processes.
`app` builds it, `screens/` has a file a screen, `widgets/` draws a `textleak.view.ViewState`, `child` owns the
attack's process, `recording` reads run folders, `export` writes what is on the screen.
"""
