"""Builders that other installed packages bring, by entry point: looked for only where a name is not known or all are asked.

A package announces a detector in its pyproject.toml: the entry point's name is the detector's, its object the builder.

    [project.entry-points."dasnet_lightning.detectors"]
    my_detector = "my_package.detectors:build_my_detector"
"""

import warnings
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dasnet_lightning.errors import ConfigError
from dasnet_lightning.registry import Registry

Builder = Callable[..., Any]


class Plugins:
    """Looks for builders in an entry point group; what a registry has already comes first.

    A plug-in that cannot be loaded is named in one warning where all names are asked, and in a ConfigError where it is
    the one that is asked for; the others are not touched by it.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._tried: dict[EntryPoint, str | None] = {}  # what was wrong with each plug-in that was looked at

    def __call__(self, registry: Registry[Builder], name: str | None) -> None:
        """Register the builder of that name, else all that there are. Raises ConfigError where it is broken."""
        if name is not None:
            problems = [p for p in (self._load(registry, x) for x in entry_points(group=self.group, name=name)) if p]
            found = registry.has(name)
            if problems and not found:
                raise ConfigError("; ".join(problems))
            for problem in problems:  # of a rival
                warnings.warn(f"{problem}; it is left out", stacklevel=3)
            if found:
                return
        for point in entry_points(group=self.group):
            if point not in self._tried and (fault := self._load(registry, point)):
                warnings.warn(f"{fault}; it is left out", stacklevel=3)

    def _load(self, registry: Registry[Builder], point: EntryPoint) -> str | None:
        """Register the builder of an entry point, once; returns what is wrong with it."""
        if point not in self._tried:
            self._tried[point] = _problem(registry, point)
        return self._tried[point]


def _problem(registry: Registry[Builder], point: EntryPoint) -> str | None:
    package = f"the installed package '{point.dist.name}'" if point.dist else f"'{point.value}'"
    kind = registry.kind
    if registry.has(point.name):
        return f"{package} brings a {kind} '{point.name}', but that name is taken"
    try:
        builder = point.load()
    except Exception as error:  # what a foreign module does when it is imported is not ours to foresee
        reason = f"{type(error).__name__}: {error}"
    else:
        if callable(builder):
            if not registry.has(point.name):  # else its import has registered it
                registry.register(point.name)(builder)
            return None
        reason = f"{point.value} is no builder but of type {type(builder).__name__}"
    return f"the {kind} '{point.name}' of {package} cannot be loaded ({reason}), mend, update or uninstall the package"
