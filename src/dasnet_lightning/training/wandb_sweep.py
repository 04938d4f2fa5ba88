"""Reads W&B's sweep files without W&B: the points of a grid or of a random search, and the command of each point.

The format is that of `wandb sweep FILE.yaml`: https://docs.wandb.ai/models/sweeps/define-sweep-configuration. A search that
learns from the results (`method: bayes`) and early stopping need W&B's server.
"""

import itertools
import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from dasnet_lightning.errors import ConfigError

Point = dict[str, Any]  # values by the name of the parameter

DEFAULT_COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")


def read_sweep(path: str | Path, seed: int = 0) -> list[Point]:
    """Return the points of a sweep file, in the order in which they are run.

    Args:
        path: a YAML file with `method` grid or random, and `parameters`.
        seed: of a random search, which has `run_cap` points.

    Raises:
        ConfigError: the file cannot be read, or only W&B's server could choose its points.
    """
    path = Path(path)
    sweep = _read_yaml(path)
    parameters = _parameters(path, sweep)
    method, cap = sweep.get("method"), sweep.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or cap < 1):
        raise ConfigError(f"{path}: run_cap is {cap!r}, expected a whole number above 0")
    if method == "grid":
        choices = [_grid_values(path, name, options) for name, options in parameters.items()]
        points = itertools.product(*choices)
        return [dict(zip(parameters, point, strict=True)) for point in itertools.islice(points, cap)]
    if method == "random":
        if cap is None:
            raise ConfigError(f"{path}: method random has no end here, expected run_cap; set run_cap: N")
        generator = random.Random(seed)
        return [
            {name: _draw(path, name, options, generator) for name, options in parameters.items()} for _ in range(cap)
        ]
    raise ConfigError(
        f"{path}: method is {method!r}, expected grid or random; others need `wandb sweep` and its server"
    )


def read_command(path: str | Path, point: Mapping[str, Any]) -> list[str]:
    """Return the command line of one point of a sweep file, as `wandb agent` makes it.

    Args:
        path: the file.
        point: values of the parameters, from `read_sweep`.

    Raises:
        ConfigError: the command has a macro that stands for more than arguments, or inside an item of the list.
    """
    path = Path(path)
    sweep = _read_yaml(path)
    macros = _macros(str(sweep.get("program", "")), point)
    words: list[str] = []
    for item in sweep.get("command", DEFAULT_COMMAND):
        text = str(item)
        if text in macros:
            words += macros[text]
        elif "${" in text:
            raise ConfigError(f"{path}: command item '{text}', expected one of {', '.join(macros)} as a whole item")
        else:
            words.append(text)
    return words


def _macros(program: str, point: Mapping[str, Any]) -> dict[str, Sequence[str]]:
    plain = [f"{name}={value}" for name, value in point.items()]
    flags = [
        f"--{name}" if value is True else f"--{name}={value}" for name, value in point.items() if value is not False
    ]
    return {
        "${env}": ["/usr/bin/env"],
        "${interpreter}": ["python"],
        "${program}": [program],
        "${args}": [f"--{text}" for text in plain],
        "${args_no_boolean_flags}": flags,
        "${args_no_hyphens}": plain,
        "${args_no_equals}": [word for name, value in point.items() for word in (f"--{name}", str(value))],
        "${args_json}": [json.dumps(dict(point))],
    }


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        sweep = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read as a sweep file, expected YAML: {error}") from error
    if not isinstance(sweep, dict):
        raise ConfigError(f"{path}: expected a mapping with method and parameters, as in `wandb sweep`")
    return sweep


def _parameters(path: Path, sweep: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the options of each parameter by its name."""
    parameters = sweep.get("parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise ConfigError(f"{path}: parameters is {parameters!r}, expected a mapping by name")
    for name, options in parameters.items():
        if not isinstance(options, dict):
            raise ConfigError(f"{path}: parameter '{name}' is {options!r}, expected value, values or a distribution")
        if "parameters" in options:
            inner = next(iter(options["parameters"]), "...")
            raise ConfigError(
                f"{path}: parameter '{name}' is nested, and an agent would pass it as Python text; write '{name}.{inner}'"
            )
    return parameters


def _grid_values(path: Path, name: str, options: Mapping[str, Any]) -> list[Any]:
    if "value" in options:
        return [options["value"]]
    if isinstance(options.get("values"), list) and options["values"]:
        return list(options["values"])
    if options.get("distribution") == "q_uniform" or "q" in options:
        low, high, q = (_number(path, name, options, key) for key in ("min", "max", "q"))
        return [low + q * index for index in range(1 + math.floor((high - low) / q + 1e-9))]
    if isinstance(options.get("min"), int) and isinstance(options.get("max"), int):
        return list(range(options["min"], options["max"] + 1))
    raise ConfigError(f"{path}: parameter '{name}' has {dict(options)}, expected value or values for a grid")


def _draw(path: Path, name: str, options: Mapping[str, Any], generator: random.Random) -> Any:
    if "value" in options:
        return options["value"]
    if isinstance(options.get("values"), list) and options["values"]:
        return generator.choices(options["values"], options.get("probabilities"))[0]

    def number(key: str) -> Any:
        return _number(path, name, options, key)

    integers = all(isinstance(options.get(key), int) for key in ("min", "max"))
    distribution = options.get("distribution", "int_uniform" if integers else "uniform")
    quantized = distribution.startswith("q_")
    kind = distribution.removeprefix("q_")
    if kind == "int_uniform":
        return generator.randint(number("min"), number("max"))
    if kind == "uniform":
        value = generator.uniform(number("min"), number("max"))
    elif kind == "log_uniform_values":
        value = math.exp(generator.uniform(math.log(number("min")), math.log(number("max"))))
    elif kind == "log_uniform":
        value = math.exp(generator.uniform(number("min"), number("max")))
    elif kind == "normal":
        value = generator.gauss(options.get("mu", 0.0), options.get("sigma", 1.0))
    elif kind == "log_normal":
        value = math.exp(generator.gauss(options.get("mu", 0.0), options.get("sigma", 1.0)))
    else:
        raise ConfigError(
            f"{path}: parameter '{name}' has distribution '{distribution}', expected uniform, int_uniform, "
            "log_uniform_values, log_uniform, normal, log_normal, or one of them with q_"
        )
    q = options.get("q", 1.0)
    return round(value / q) * q if quantized else value


def _number(path: Path, name: str, options: Mapping[str, Any], key: str) -> Any:
    value = options.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ConfigError(f"{path}: parameter '{name}' has {key} {value!r}, expected a number")
    return value
