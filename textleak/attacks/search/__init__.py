"""Discrete search over tokens: the problem, proposals, labels, shapes of a batch, and the judge of a guess."""
