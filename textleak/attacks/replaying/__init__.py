"""What `replay` is made of: lists of tokens, whole sentences, and how far a guess's own update is from the one seen."""

TOGETHER, MOVED_ROWS, ALONG = "inputs together", "moved rows", "adapters' directions"
"""What gave a token away that isn't proved: its sentence's inputs, rows of the word embedding, or adapters."""

LIKELY = frozenset({TOGETHER, MOVED_ROWS})
"""Those by which a token is likely; by adapters it is a guess."""

SURE = 0.8
"""The confidence from which a likely token is called sure: every other one that was tried fits far worse in its place.

Our choice; how many of these were right on minilm is in `tests/figures/README.md`, under Clients.
"""
