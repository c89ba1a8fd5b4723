"""How an attack or a defense is written, `name[:key=value,...]`, and read again; values are YAML."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import yaml

from textleak.errors import InputError

# Our choice: no setting has lists in lists in lists.
MOST_DEPTH = 32


class _Loader(yaml.SafeLoader):
    """YAML 1.1, but for 1e-3, which it takes for a text as it has no dot; shallow, without references, each key once.

    A few lines of references to references stand for more than any memory holds.
    """

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:  # noqa: ANN401 - PyYAML's own
        """A node of the document."""
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (*name) aren't read")
        if self.depth >= MOST_DEPTH:
            raise yaml.YAMLError(f"it is nested deeper than {MOST_DEPTH} levels")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def compose_mapping_node(self, anchor: Any) -> Any:  # noqa: ANN401 - PyYAML's own
        """Settings by name, each there once."""
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.YAMLError(
                    f"{key.value} is there twice, once more in line {key.start_mark.line + 1}"
                )
            seen.add(key.value)
        return node


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_yaml(text: str) -> Any:  # noqa: ANN401 - whatever is in it
    """What is in a YAML document.

    Raises:
        ValueError: it can't be read; its text says why.
    """
    try:
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        # What PyYAML makes of `!!int ""`, of a date in month 13, of a number with 5,000 digits.
        raise ValueError(f"{type(error).__name__}: {error}") from None


def split_composition(text: str, kind: str) -> tuple[str, ...]:
    """The parts of several choices in order, `a:x=1+b`; `kind` is "client" or "defense"."""
    return tuple(part.strip() for part in _split(text, _PLUS, functools.partial(_begins_choice, kind=kind)))


def _begins_choice(before: str, after: str, *, kind: str) -> bool:
    """Whether a plus between two texts separates choices: it may also belong to an expression or to 1e+3."""
    if ":" not in before:
        return True  # no name has a plus in it
    name = re.match(r"\s*([\w.-]+)\s*(?=(:\s*\w+\s*=)|[:+]|$)", after)
    return name is not None and (name[2] is not None or name[1] in _registered(kind))


def _registered(kind: str) -> list[str]:
    """Names of the clients or defenses there are."""
    if kind == "client":
        from textleak.clients import CLIENTS

        return list(CLIENTS)
    from textleak.defenses import DEFENSES

    return list(DEFENSES)


def read(value: Any) -> Any:  # noqa: ANN401 - whatever YAML or a flag held
    """A choice as `{"name": ..., "options": {...}}`, from a text or from options beside the name."""
    if isinstance(value, str):
        name, _, rest = value.partition(":")
        pairs = [part for part in _split(rest, _BETWEEN_OPTIONS) if part.strip()]
        return {"name": name.strip(), "options": dict(key_and_value(part) for part in pairs)}
    if isinstance(value, Mapping):
        fields = {key: item for key, item in value.items() if key in ("name", "options")}
        options = {key: item for key, item in value.items() if key not in fields}
        given = fields.get("options") or {}
        if not isinstance(given, Mapping):
            raise InputError(
                f"The options {given!r} can't be used.",
                why="Each option has a name.",
                fix="Write KEY=VALUE, for example attack.steps=10.",
            )
        return {**fields, "options": {**given, **options}}
    return value


# A quoted value as YAML writes it, passed over in the search for what separates options.
_QUOTED = r"""(?<=[=\s\[{,:])(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")"""
# A comma before another option or the end; any other belongs to a value, as in an expression's {0,1}.
_BETWEEN_OPTIONS = re.compile(rf"{_QUOTED}|(,)(?=\s*(?:[\w.-]+\s*=|,|$))")
_PLUS = re.compile(rf"{_QUOTED}|(\+)")


def _split(
    text: str, separator: re.Pattern[str], separates: Callable[[str, str], bool] = lambda _, __: True
) -> list[str]:
    """The parts between the matches of a pattern's first group, where these do separate what is before and after."""
    parts, begin = [], 0
    for match in separator.finditer(text):
        if match[1] and separates(text[begin : match.start()], text[match.end() :]):
            parts.append(text[begin : match.start()])
            begin = match.end()
    return [*parts, text[begin:]]


def written(name: str, options: Mapping[str, Any]) -> str:
    """A choice as a text that is read as the same choice again."""
    listed = ",".join(f"{key}={_written(value)}" for key, value in options.items())
    return f"{name}:{listed}" if listed else name


def _written(value: object) -> str:
    """An option's value as it is read back: plain where that does, else quoted."""
    plain = str(value)
    if _reads_as(plain, value):
        return plain
    styles = ("'", '"') if isinstance(value, str) and value.isprintable() else ('"',)
    try:
        ways = [yaml.safe_dump(value, default_flow_style=True, width=math.inf).partition("\n")[0]]
        ways += [yaml.safe_dump(value, default_style=style, width=math.inf).strip() for style in styles]
    except yaml.YAMLError:  # nothing that a file could hold
        return plain
    return next((way for way in ways if _reads_as(way, value)), ways[-1])


def _reads_as(text: str, value: object) -> bool:
    """Whether a written value is read back, with another option behind it and in a row of defenses."""
    if text == value and re.search(r"""\+\s*[^\W\d]|(?:^|[=\s\[{,:])['"]""", text):
        return False  # a plus may begin another defense, a quotation mark would go on into the next option
    try:
        options = read(f"x:a={text},b=0")["options"]
    except InputError:
        return False
    plain = list(value) if isinstance(value, tuple) else value
    found = options.get("a")
    return (
        options.keys() == {"a", "b"} and found == plain and isinstance(found, bool) == isinstance(plain, bool)
    )


def key_and_value(text: str) -> tuple[str, Any]:
    """`key=value`, the value as YAML reads it.

    Raises:
        InputError: no equals sign, no key, or a value that isn't YAML.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise InputError(f"{text!r} is not KEY=VALUE.", fix="Write for example attack.span_proposals=false.")
    try:
        parsed = load_yaml(value)
    except ValueError as error:
        raise InputError(f"The value of {text!r} can't be read.", why=f"{error}.") from None
    return key.strip(), parsed


def written_of(kind: type[Any], name: str, options: Mapping[str, Any]) -> str:
    """The same of a kind's dataclass, what it does anyway left out."""
    usual = {field.name: field.default for field in dataclasses.fields(kind)}
    own = {key: value for key, value in options.items() if key not in usual or value != usual[key]}
    return written(name, own)
