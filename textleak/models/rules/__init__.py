"""How layers that only language or vision models have make their parameters' gradients, for the engine."""
