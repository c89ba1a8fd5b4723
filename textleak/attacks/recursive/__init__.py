"""A picture read back through a ReLU network, layer by layer, and rebuilt from what the layers gave."""
