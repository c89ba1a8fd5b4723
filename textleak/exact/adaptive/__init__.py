"""Updates that are no gradient any more: their spans, and what stands in them.

Where an optimizer's step, or a short type, left each entry between bounds, `bounded` fits the matrix of low rank that
lies there, and `spans` makes spans of it; `rounded` makes those of several steps. `rows` finds an encoder's sentences
in either. It must not know which optimizer or type it was: a client says between what each entry lay (`Client.bounds`).
"""
