"""What people have of a training: state dicts, checkpoints, adapters; read without running anything of theirs.

`read_state` reads a file or a folder, `Names` fits what was read to a model's parameters.
"""

from textleak.shared.formats.adapters import Adapter
from textleak.shared.formats.names import Fitted, Names, inner_name, plain_name
from textleak.shared.formats.reading import State, not_finite, read_state

__all__ = ["Adapter", "Fitted", "Names", "State", "inner_name", "not_finite", "plain_name", "read_state"]
