"""The parts of `match`: proposals, discrete search, places opened again, and what tells and tests the answer."""
