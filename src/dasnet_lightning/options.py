"""Checked replacement of fields in option dataclasses: values from a command line, a YAML file or keyword arguments."""

from collections.abc import Mapping
from dataclasses import replace
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dasnet_lightning.errors import ConfigError

Options = TypeVar("Options")

_WORDS = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}


def replace_options(options: Options, changes: Mapping[str, Any], source: str) -> Options:
    """Return a copy of a dataclass with some fields replaced.

    Args:
        options: the dataclass.
        changes: new values by field name.
        source: what the user wrote the values for, named in error messages.

    Raises:
        ConfigError: a name is unknown, or a value has another type than the field.
    """
    types = get_type_hints(type(options))
    checked = {name: _check(name, value, types, source) for name, value in changes.items()}
    return replace(options, **checked)  # type: ignore[type-var]


def _check(name: str, value: Any, types: Mapping[str, Any], source: str) -> Any:
    if name not in types:
        near = get_close_matches(name, types, n=1)
        hint = f", did you mean '{near[0]}'?" if near else "."
        raise ConfigError(f"{source}: '{name}' is unknown{hint} Known: {', '.join(sorted(types))}")
    expected = types[name]
    if float in (expected, *get_args(expected)):
        value = _as_number(value)
    if get_origin(expected) is tuple and isinstance(value, list):
        value = tuple(value)
    if not _fits(value, expected):
        raise ConfigError(f"{source} {name}={value!r}: expected {_describe(expected)}")
    return value


def _as_number(value: Any) -> Any:
    """YAML reads 4 as an integer, and 1e-3, which has no point, as text."""
    try:
        return float(value) if isinstance(value, str | int) and not isinstance(value, bool) else value
    except ValueError:
        return value


def _fits(value: Any, expected: Any) -> bool:
    origin = get_origin(expected)
    if origin in (Union, UnionType):
        return any(_fits(value, member) for member in get_args(expected))
    if origin is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(expected))
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, get_args(expected)[0]) for item in value)
    if isinstance(value, bool):  # a bool is an int to Python
        return expected is bool
    return isinstance(value, origin or expected)


def _describe(expected: Any) -> str:
    origin, members = get_origin(expected), get_args(expected)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in members)
    if origin in (Union, UnionType):
        return " or ".join(_describe(member) for member in members)
    if origin is tuple:
        return f"a list, each item {_describe(members[0])}"
    return "a mapping" if origin is not None else _WORDS.get(expected, str(expected))
