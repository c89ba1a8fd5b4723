"""`python -m textleak.cli`."""

from textleak.cli import main

main()
