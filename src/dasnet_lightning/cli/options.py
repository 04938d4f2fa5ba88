"""Options that commands share, and NAME=VALUE options: values as YAML reads them, checked where a record holds them."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dasnet_lightning.errors import ConfigError

Options = TypeVar("Options")


def add_feature_cache_arguments(parser: argparse.ArgumentParser, use: str) -> None:
    """Where a frozen detector's features are kept; `use` says what for."""
    parser.add_argument("--feature-cache", metavar="FOLDER", help=f"keep the frozen detector's features {use} there")
    parser.add_argument(
        "--feature-cache-gb",
        type=float,
        default=10.0,
        metavar="N",
        help="keep at most N GB of them (default: %(default)s)",
    )


def parse_options(pairs: Sequence[str], option: str) -> dict[str, Any]:
    """NAME=VALUE pairs that were given to `option` (its name, for messages). Raises ConfigError for anything else."""
    import yaml

    options = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not name or not equals:
            raise ConfigError(f"{option} '{pair}' cannot be read, expected NAME=VALUE")
        try:
            options[name] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ConfigError(f"{option} '{pair}': the value cannot be read, expected YAML") from error
    return options


def replace_options(record: Options, changes: Mapping[str, Any], option: str) -> Options:
    """The dataclass `record` with other values in some fields. Raises ConfigError for a name or a value that does not fit."""
    kinds = get_type_hints(type(record))
    return replace(record, **{name: _checked(name, value, kinds, option) for name, value in changes.items()})  # type: ignore[type-var]


def _checked(name: str, value: Any, kinds: Mapping[str, Any], option: str) -> Any:
    if name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        hint = f", did you mean '{near[0]}'?" if near else ""
        raise ConfigError(f"{option}: nothing is called '{name}'{hint} Known: {', '.join(sorted(kinds))}")
    value = _as_number(value) if float in (kinds[name], *get_args(kinds[name])) else value
    if not _fits(value, kinds[name]):
        raise ConfigError(f"{option} {name}={value!r}: expected {_describe(kinds[name])}")
    return value


def _as_number(value: Any) -> Any:
    """YAML reads 4 as a whole number, and 1e-3, which has no point, as text."""
    try:
        return float(value) if isinstance(value, str | int) and not isinstance(value, bool) else value
    except ValueError:
        return value


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, one) for one in get_args(kind))
    if get_origin(kind) is Literal:
        return any(value == choice and type(value) is type(choice) for choice in get_args(kind))
    if isinstance(value, bool):  # a bool is an int to Python
        return kind is bool
    return isinstance(value, kind)


def _describe(kind: Any) -> str:
    words = {float: "a number", int: "a whole number", bool: "true or false", str: "text", type(None): "null"}
    if get_origin(kind) is Literal:
        return " or ".join(repr(choice) for choice in get_args(kind))
    return " or ".join(words.get(one, str(one)) for one in get_args(kind) or (kind,))
