"""Command-line options that are derived from dataclasses, and NAME=VALUE options."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from dasnet_lightning.errors import ConfigError


def add_feature_cache_arguments(parser: argparse.ArgumentParser, use: str) -> None:
    """Add --feature-cache and --feature-cache-gb; `use` completes "keep the frozen detector's features ..."."""
    parser.add_argument("--feature-cache", metavar="DIR", help=f"keep the frozen detector's features {use} there")
    parser.add_argument(
        "--feature-cache-gb", type=float, default=10.0, metavar="N", help="size limit (default: %(default)s)"
    )


def add_field_arguments(parser: argparse.ArgumentParser, options: type, names: Iterable[str] | None = None) -> None:
    """Add an argument for each documented field of a dataclass.

    Args:
        parser: gets the arguments.
        options: a dataclass whose fields have "help", "flag" and "metavar" in their metadata.
        names: the fields to add; None for all.
    """
    types = get_type_hints(options)
    for item in fields(options):
        if "help" in item.metadata and (names is None or item.name in names):
            flag = item.metadata["flag"] or item.name.replace("_", "-")
            parser.add_argument(f"--{flag}", dest=item.name, **_argument(item, types[item.name]))


def _argument(item: "Field[Any]", annotation: Any) -> dict[str, Any]:
    """Return what argparse needs to know of a field."""
    text, metavar = item.metadata["help"], item.metadata["metavar"]
    if annotation is bool:
        return {"action": "store_true", "help": text}
    if get_origin(annotation) is Literal:
        return {"choices": get_args(annotation), "default": item.default, "help": f"{text} (default: %(default)s)"}
    if item.default is MISSING:  # a mapping
        return {"action": "append", "default": [], "metavar": "NAME=VALUE", "help": text}
    if get_origin(annotation) is tuple:
        return {"nargs": "+", "default": list(item.default), "metavar": metavar, "help": text}
    if get_origin(annotation) in (Union, UnionType):
        annotation = get_args(annotation)[0]
    metavar = metavar or {int: "N", float: "X", str: "NAME"}[annotation]
    shown = "" if "(default" in text or not item.default else " (default: %(default)s)"
    return {"type": annotation, "default": item.default, "metavar": metavar, "help": text + shown}


def field_values(args: argparse.Namespace, options: type, names: Iterable[str] | None = None) -> dict[str, Any]:
    """Return the values of the arguments that `add_field_arguments` added, by field name."""
    values = {}
    for item in fields(options):
        if "help" in item.metadata and (names is None or item.name in names):
            value = getattr(args, item.name)
            if item.default is MISSING:
                flag = item.metadata["flag"] or item.name.replace("_", "-")
                value = parse_options(value, f"--{flag}")
            values[item.name] = tuple(value) if isinstance(value, list) else value
    return values


def parse_options(pairs: Sequence[str], option: str) -> Mapping[str, Any]:
    """Parse NAME=VALUE pairs with YAML's values.

    Args:
        pairs: the pairs.
        option: the option that they were given to, named in error messages.

    Raises:
        ConfigError: a pair is not NAME=VALUE, or its value is not YAML.
    """
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
