"""The victim: a private batch in, a `SharedGradient` and a `Secret` out.

The truth lives here and nowhere else: attacks, `exact`, `proof` and `matching` never import this room.
"""
