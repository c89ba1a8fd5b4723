"""What leaves a client and what a server may know with it: named gradients, side information, effects, the file format.

This room knows tensors and names. It knows no model, no text and no attack.
"""
