"""What the settings of a run name, built and checked: attack, defenses, client, threads."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textleak.errors import InputError
from textleak.runs import cores
from textleak.settings import (
    DEFAULT_ATTACK,
    MOST_THREADS,
    Choice,
    ClientConfig,
    ImageConfig,
    PictureConfig,
    RunConfig,
)

if TYPE_CHECKING:
    from textleak.attacks import Attack
    from textleak.clients import Client
    from textleak.defenses import Defense


def build_attack(config: RunConfig | ImageConfig) -> Attack:
    """The attack that the settings name, its options checked."""
    from textleak.attacks import ATTACKS

    name = config.attack.name
    if isinstance(config, RunConfig) and config.prior is not None:
        options = {option.name for option in dataclasses.fields(ATTACKS[name])}  # type: ignore[arg-type]
        if "prior" not in options:
            raise InputError(
                f"--prior {config.prior} was given, but the attack {name} has no language-model prior.",
                fix="Leave --prior out, or use --attack lamp.",
            )
    given = config.attack_options()
    if name == DEFAULT_ATTACK:
        own = {option.name for option in dataclasses.fields(ATTACKS[name])}  # type: ignore[arg-type]
        for option in given:
            if option not in own:
                raise InputError(
                    f"The attack {name} has no option {option}.",
                    why="It tries every channel that was shared, each as it comes.",
                    fix="Name the attack that the option is for, for example --attack match.",
                )
    return ATTACKS.build(name, given)


def build_defenses(config: ClientConfig | PictureConfig) -> tuple[Defense, ...]:
    """The defenses that the settings name, their options checked, in order."""
    from textleak.defenses import DEFENSES

    return tuple(DEFENSES.build(choice.name, choice.options) for choice in config.defenses)


def build_client(config: ClientConfig | PictureConfig) -> Client:
    """How the settings say that the client trains, its options checked."""
    return chosen_client(config.client)


def chosen_client(choices: Iterable[Choice]) -> Client:
    """The client that kinds name, composed in order, their options checked."""
    from textleak.clients import CLIENTS, composed

    return composed([CLIENTS.build(choice.name, choice.options) for choice in choices])


def asked_for(config: ClientConfig | PictureConfig) -> dict[str, Any]:
    """What any model is asked for with; weights that are drawn come from the seed's own stream."""
    from textleak import seeds

    return {
        "name": config.model,
        "weights": config.weights,
        "device": config.device,
        "dtype": config.dtype,
        "weights_seed": seeds.derive(config.seed, "weights"),
    }


def seed_of_draws(config: ClientConfig | PictureConfig) -> int:
    """The seed of what client, defense and attack draw: the run's, or that of an evaluation's batch."""
    if isinstance(config, PictureConfig) or config.of_batch is None:
        return config.seed
    from textleak import seeds

    return seeds.of_batch(config.seed, config.of_batch)


def set_threads(threads: int | None) -> int:
    """Set the CPU threads of this process; by default no more than the cores it may really use.

    More threads than free cores cost a factor of 10 on these small matrices.
    """
    import torch

    if threads is not None and not 1 <= threads <= MOST_THREADS:
        raise InputError(
            f"--threads can't be {threads}.",
            why=f"torch takes 1 to {MOST_THREADS:,}.",
            fix="Leave it out for the cores at hand.",
        )
    if threads is None:
        threads = min(torch.get_num_threads(), cores())
    torch.set_num_threads(threads)
    return threads
