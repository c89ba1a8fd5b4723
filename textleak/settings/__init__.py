"""What a run is asked to do: checked settings, YAML presets, and how they are laid over each other.

Defaults, then a preset (`-c NAME|PATH`), then flags, then `--set key=value`: the later wins. A key that
doesn't exist is an error with the nearest names. This room knows nothing of models, tensors or attacks: an attack's
or defense's own options are checked where it is built.

`run` and `evaluation` hold the settings of each command, `choices` a named attack or defense, `specs` how one is
written, `presets` the layers.
"""

from textleak.settings.base import MOST_THREADS
from textleak.settings.choices import AttackChoice, Choice
from textleak.settings.evaluation import (
    EvaluationConfig,
    load_evaluation_config,
    parse_attack,
    parse_client,
    parse_defense,
)
from textleak.settings.presets import EVALUATIONS, parse_assignment, preset_names, read_preset
from textleak.settings.run import (
    DEFAULT_ATTACK,
    ClientConfig,
    ImageConfig,
    PictureConfig,
    RunConfig,
    load_client_config,
    load_image_config,
    load_picture_config,
    load_run_config,
)

__all__ = [
    "DEFAULT_ATTACK",
    "EVALUATIONS",
    "MOST_THREADS",
    "AttackChoice",
    "Choice",
    "ClientConfig",
    "EvaluationConfig",
    "ImageConfig",
    "PictureConfig",
    "RunConfig",
    "load_client_config",
    "load_evaluation_config",
    "load_image_config",
    "load_picture_config",
    "load_run_config",
    "parse_assignment",
    "parse_attack",
    "parse_client",
    "parse_defense",
    "preset_names",
    "read_preset",
]
