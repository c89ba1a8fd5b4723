"""What `replay` is made of: lists of tokens, whole sentences, and how far a guess's own update is from the one seen."""
