"""One run from its settings to its result: load, share or read a gradient, attack, score, certify.

A file a kind of data; who shows or records what happens is the caller's affair.
"""
