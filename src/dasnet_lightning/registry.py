"""Registry of builders by explicit name; it refuses duplicates and suggests the closest name for an unknown one."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar

from dasnet_lightning.errors import ConfigError, UnknownNameError

Entry = TypeVar("Entry", bound=Callable)


class Registry(Generic[Entry]):
    """Mapping from names to the builders of one kind of component.

    Args:
        kind: the word for an entry in error messages, such as "detector".
        find_more: called to register entries from elsewhere (plugins), with the registry and an unknown name, or with
            None before all names are listed.

    >>> THINGS = Registry("thing")
    >>> @THINGS.register("small")
    ... def build_small(): ...
    """

    def __init__(self, kind: str, find_more: "Callable[[Registry[Entry], str | None], None] | None" = None) -> None:
        self.kind = kind
        self._find_more = find_more
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Return a decorator that registers a builder under `name`; raise ConfigError if the name is taken."""
        if name in self._entries:
            raise ConfigError(f"{self.kind} '{name}' is already registered, choose another name")

        def add(entry: Entry) -> Entry:
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> Entry:
        """Return the builder of that name; raise UnknownNameError with the known names if there is none."""
        if name not in self._entries and self._find_more is not None:
            self._find_more(self, name)
        if name not in self._entries:
            closest = get_close_matches(name, self._entries, n=1)
            hint = f", did you mean '{closest[0]}'? Known" if closest else ", known"
            raise UnknownNameError(f"no {self.kind} is called '{name}'{hint}: {', '.join(self.names())}")
        return self._entries[name]

    def has(self, name: object) -> bool:
        """Return whether the name is registered, without calling `find_more`."""
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """Return all names, sorted."""
        if self._find_more is not None:
            self._find_more(self, None)
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return self.has(name) or name in self.names()
