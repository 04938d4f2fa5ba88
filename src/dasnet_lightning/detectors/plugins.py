"""Builders from other installed packages, found by entry point.

Entry points are loaded only if a name is not registered or if all names are listed. A package declares a detector in its
pyproject.toml; the name of the entry point is the detector's name, its object is the builder:

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
    """Loads builders from an entry point group into a registry; names that are registered already take precedence.

    A plug-in that cannot be loaded raises a ConfigError if its name was requested. If all names are listed, one warning
    names it and the other plug-ins are still loaded.
    """

    def __init__(self, group: str) -> None:
        self.group = group
        self._errors: dict[EntryPoint, str | None] = {}  # of each entry point that was loaded

    def __call__(self, registry: Registry[Builder], name: str | None) -> None:
        """Register the builder `name`; if it is None or not found, register all builders.

        Raises:
            ConfigError: the builder of that name cannot be loaded.
        """
        if name is not None:
            points = entry_points(group=self.group, name=name)
            errors = [error for error in (self._load(registry, point) for point in points) if error]
            is_registered = registry.has(name)
            if errors and not is_registered:
                raise ConfigError("; ".join(errors))
            for error in errors:  # another package has a builder of the same name
                warnings.warn(f"{error}; it is skipped", stacklevel=3)
            if is_registered:
                return
        for point in entry_points(group=self.group):
            if point not in self._errors and (message := self._load(registry, point)):
                warnings.warn(f"{message}; it is skipped", stacklevel=3)

    def _load(self, registry: Registry[Builder], point: EntryPoint) -> str | None:
        """Register the builder of an entry point, once, and return the error message if it failed."""
        if point not in self._errors:
            self._errors[point] = _register(registry, point)
        return self._errors[point]


def _register(registry: Registry[Builder], point: EntryPoint) -> str | None:
    package = f"the installed package '{point.dist.name}'" if point.dist else f"'{point.value}'"
    kind = registry.kind
    if registry.has(point.name):
        return f"{package} brings a {kind} '{point.name}', but that name is taken"
    try:
        builder = point.load()
    except Exception as error:  # importing a foreign module can raise anything
        reason = f"{type(error).__name__}: {error}"
    else:
        if callable(builder):
            if not registry.has(point.name):  # the import may have registered it
                registry.register(point.name)(builder)
            return None
        reason = f"{point.value} is not a builder but of type {type(builder).__name__}"
    return f"the {kind} '{point.name}' of {package} cannot be loaded ({reason}): fix, update or uninstall the package"
