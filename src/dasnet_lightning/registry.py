"""A dict with manners: explicit names, duplicates refused, an unknown name answers with the list and the nearest."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Generic, TypeVar

from dasnet_lightning.errors import ConfigError, UnknownNameError

Entry = TypeVar("Entry", bound=Callable)


class Registry(Generic[Entry]):
    """Maps names to builders of one kind of part.

    >>> THINGS = Registry("thing")
    >>> @THINGS.register("small")
    ... def build_small(): ...
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
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
        if name not in self._entries:
            near = get_close_matches(name, self._entries, n=1)
            hint = f", did you mean '{near[0]}'?" if near else ""
            raise UnknownNameError(f"no {self.kind} is called '{name}'{hint} Known: {', '.join(self.names())}")
        return self._entries[name]

    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._entries))

    def __contains__(self, name: object) -> bool:
        return name in self._entries
