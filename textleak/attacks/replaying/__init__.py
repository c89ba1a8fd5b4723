"""What `replay` is made of: lists of tokens, whole sentences, and how far a guess's own update is from the one seen."""

TOGETHER, MOVED_ROWS = "inputs together", "moved rows"
"""What gave a token away that is likely, not proved: its sentence's inputs, or rows of the word embedding."""

LIKELY = frozenset({TOGETHER, MOVED_ROWS})
"""Both."""
