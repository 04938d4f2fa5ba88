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


class PluginRegistry:
    """A registry that also knows the builders of an entry point group; what is registered here comes first.

    A plug-in that cannot be loaded is named in one warning where all names are asked, and in a ConfigError where it is
    the one that is asked for; the others are not touched by it.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._registry: Registry[Builder] = Registry(kind)
        self._tried: dict[EntryPoint, str | None] = {}  # what was wrong with each plug-in that was looked at

    @property
    def _entries(self) -> dict[str, Builder]:
        return self._registry._entries

    def register(self, name: str) -> Callable[[Builder], Builder]:
        """Decorator that files a builder under `name`. Raises ConfigError where the name is taken."""
        return self._registry.register(name)

    def get(self, name: str) -> Builder:
        """The builder of that name. Raises ConfigError for a broken plug-in, UnknownNameError for an unknown name."""
        if name not in self._registry:
            problems = [p for p in map(self._load, entry_points(group=self.group, name=name)) if p]
            if problems and name not in self._registry:
                raise ConfigError("; ".join(problems))
            for problem in problems:  # of a rival
                warnings.warn(f"{problem}; it is left out", stacklevel=2)
        if name not in self._registry:
            self._load_all()
        return self._registry.get(name)

    def names(self) -> tuple[str, ...]:
        """All names, sorted, those of working plug-ins among them."""
        self._load_all()
        return self._registry.names()

    def __contains__(self, name: object) -> bool:
        return name in self._registry or name in self.names()

    def _load_all(self) -> None:
        for point in entry_points(group=self.group):
            if point not in self._tried and (problem := self._load(point)):
                warnings.warn(f"{problem}; it is left out", stacklevel=3)

    def _load(self, point: EntryPoint) -> str | None:
        """Register the builder of an entry point, once; returns what is wrong with it."""
        if point not in self._tried:
            self._tried[point] = self._problem(point)
        return self._tried[point]

    def _problem(self, point: EntryPoint) -> str | None:
        package = f"the installed package '{point.dist.name}'" if point.dist else f"'{point.value}'"
        if point.name in self._registry:
            return f"{package} brings a {self.kind} '{point.name}', but that name is taken"
        try:
            builder = point.load()
        except Exception as error:  # what a foreign module does when it is imported is not ours to foresee
            reason = f"{type(error).__name__}: {error}"
        else:
            if callable(builder):
                if point.name not in self._registry:  # else its import has registered it
                    self._registry.register(point.name)(builder)
                return None
            reason = f"{point.value} is no builder but of type {type(builder).__name__}"
        return f"the {self.kind} '{point.name}' of {package} cannot be loaded ({reason}), mend, update or uninstall the package"
