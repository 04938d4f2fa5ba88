"""A dict with manners: explicit names, duplicates refused, an unknown name answers with the list and the nearest."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar

from dasnet_lightning.errors import ConfigError, UnknownNameError

Entry = TypeVar("Entry", bound=Callable)


class Registry(Generic[Entry]):
    """Maps names to builders of one kind of part.

    find_more: called with the registry and a name that it does not know, or with None where all names are asked; it
    registers what it finds elsewhere.

    >>> THINGS = Registry("thing")
    >>> @THINGS.register("small")
    ... def build_small(): ...
    """

    def __init__(self, kind: str, find_more: "Callable[[Registry[Entry], str | None], None] | None" = None) -> None:
        self.kind = kind
        self._find_more = find_more
        self._entries: dict[str, Entry] = {}

    def register(self, name: str) -> Callable[[Entry], Entry]:
        """Decorator that files a builder under `name`. Raises ConfigError where the name is taken."""
        if name in self._entries:
            raise ConfigError(f"{self.kind} '{name}' is registered already, choose another name")

        def add(entry: Entry) -> Entry:
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> Entry:
        """The builder of that name. Raises UnknownNameError with the names that exist."""
        if name not in self._entries and self._find_more is not None:
            self._find_more(self, name)
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise UnknownNameError(f"no {self.kind} is called '{name}'{hint} Known: {', '.join(self.names())}")
        return self._entries[name]

    def has(self, name: object) -> bool:
        """Whether that name is registered already, without looking for more."""
        return name in self._entries

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        if self._find_more is not None:
            self._find_more(self, None)
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return self.has(name) or name in self.names()
