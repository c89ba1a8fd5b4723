"""How the program and its commands are made, and what values they refuse before anything is made of them."""

from __future__ import annotations

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.models import CommandInfo

from textleak.cli import panels
from textleak.cli.common import print_error
from textleak.errors import InputError, shown


class Command(TyperCommand):
    """A command that is given no empty value and no text of no encoding: a shell's unset variable is no wish.

    Its options stand in the panels that `panels` has for them.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as typer's
        super().__init__(*args, **kwargs)
        options = [one for one in self.params if getattr(one, "rich_help_panel", None) is None]
        for option in options:
            if option.param_type_name == "option":
                option.rich_help_panel = panels.PANELS.get(str(option.name))  # type: ignore[attr-defined]
                if getattr(option, "is_flag", False):
                    option.metavar = ""  # it takes nothing
        # A page shows panels in the order of their first options.
        self.params.sort(key=lambda one: _place(getattr(one, "rich_help_panel", None)))

    def get_help_option(self, ctx: Any) -> Any:  # noqa: ANN401 - click's, wherever typer has it
        """The option --help, after all others of commands that have panels."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.metavar = ""
            if any(getattr(one, "rich_help_panel", None) for one in self.params):
                option.rich_help_panel = panels.SCRIPTS
        return option

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:  # noqa: ANN401 - click's, wherever typer has it
        """Refuse such values before anything is made of them.

        Raises:
            typer.Exit: there is one, and has been told.
        """
        problem = _unusable(args)
        if problem is not None:
            print_error(problem)
            raise typer.Exit(problem.exit_code)
        with _shown_shortly():
            return super().parse_args(ctx, args)


def _place(panel: str | None) -> int:
    return panels.ORDER.index(panel) + 1 if panel in panels.ORDER else 0


class Group(TyperGroup):
    """The program: which command it is. A command's options are made when it is used; the page that lists all
    commands needs none.
    """

    listed: ClassVar[dict[str, CommandInfo]] = {}

    def __init__(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401 - as typer's
        super().__init__(*args, **kwargs)
        self.commands = _Commands(self.listed, _made)  # type: ignore[assignment]  # click only reads it

    def format_help(self, ctx: Any, formatter: Any) -> None:  # noqa: ANN401 - click's, wherever typer has it
        """The page that lists all commands."""
        made, self.commands = self.commands, _Commands(self.listed, _entry)  # type: ignore[assignment]
        try:
            super().format_help(ctx, formatter)
        finally:
            self.commands = made

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 - likewise
        """The command that the arguments name."""
        with _shown_shortly():
            return super().resolve_command(ctx, args)


class _Commands(Mapping[str, TyperCommand]):
    """Commands by name, each made when it is asked for."""

    def __init__(self, infos: Mapping[str, CommandInfo], make: Callable[[CommandInfo], TyperCommand]) -> None:
        self._infos = infos
        self._make = functools.cache(make)

    def __getitem__(self, name: str) -> TyperCommand:
        return self._make(self._infos[name])

    def __iter__(self) -> Iterator[str]:
        return iter(self._infos)

    def __len__(self) -> int:
        return len(self._infos)


def _made(info: CommandInfo) -> TyperCommand:
    """A command with its options."""
    return typer.main.get_command_from_info(info, pretty_exceptions_short=True, rich_markup_mode="rich")  # type: ignore[return-value]


def _entry(info: CommandInfo) -> TyperCommand:
    """A command as the page that lists all has it: a name, a line of help, a panel."""
    return TyperCommand(info.name, help=inspect.getdoc(info.callback), rich_help_panel=info.rich_help_panel)


@contextlib.contextmanager
def _shown_shortly() -> Iterator[None]:
    """Let an error of usage quote a value as all errors do."""
    try:
        yield
    except Exception as error:
        if isinstance(getattr(error, "message", None), str):
            error.message = shown(error.message)  # type: ignore[attr-defined]
        raise


def _as_utf8(arg: str) -> str | None:
    """What a value's bytes are as UTF-8; None where they are none."""
    try:
        return arg.encode(errors="surrogateescape").decode()
    except UnicodeError:
        return None


def _unusable(args: Sequence[str]) -> InputError | None:
    """What is wrong with the first value that can't be meant; None where there is none."""
    before = ""
    for arg in args:
        empty = arg == "" or (arg.startswith("--") and arg.endswith("=") and arg.count("=") == 1)
        name = before if before.startswith("-") else "An argument"
        if empty:
            return InputError(
                f"{arg[:-1] or name} was given an empty value.",
                why="That is what a shell makes of a variable that isn't set.",
                fix="Leave it out, or give it a value.",
            )
        try:
            arg.encode()
        except UnicodeEncodeError:
            if (meant := _as_utf8(arg)) is not None:
                return InputError(
                    f"{name} was given {meant!r}, and Python reads {sys.getfilesystemencoding()} here.",
                    why="The locale says so, and that Python reads UTF-8 all the same is switched off.",
                    fix="Set PYTHONUTF8=1, or a locale of UTF-8 (LC_ALL=C.UTF-8).",
                )
            return InputError(
                f"{name} was given {arg!r}, which is not UTF-8.",
                why="It could be shown and recorded by no name that leads back to it.",
                fix="Write it in UTF-8; a file can be renamed.",
            )
        before = arg
    return None
