"""Gradients that an optimizer's step, or a short type, left between bounds: their spans, and what stands in them.

`bounded` fits the matrix of low rank that lies between bounds; `spans` makes spans of the first layers' gradients so.
It must not know which optimizer or type it was: a client says between what each entry lay (`Client.bounds`).
"""
