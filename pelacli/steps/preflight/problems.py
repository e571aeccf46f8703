"""What is wrong with a recipe, each with its place, said together at the end; and what pela chooses
itself where the recipe leaves it open."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from pelacli.errors import CollectedError, RequestError
from pelacli.recipe.keys import Key

PlaceOf = Callable[[Key], str]


class Problems:
    """Collects refusals.

    Args:
        place_of: key → its place and name, which begin a message: "r.toml:3: data.dataset".

    Attributes:
        chosen: lines about what the recipe leaves open: "device: cpu".
    """

    def __init__(self, place_of: PlaceOf) -> None:
        self.place_of = place_of
        self.chosen: list[str] = []
        self._by_key: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def add(self, key: Key, message: str) -> None:
        """Note a problem of a key. Of what several steps stumble over, each in its own words, the
        first counts."""
        prefix = self.place_of(key)
        self._by_key.setdefault(prefix, f"{prefix}: {message}")

    @contextmanager
    def at(self, key: Key, key_of: Callable[[str], Key | None] | None = None) -> Iterator[None]:
        """While active, a refusal is noted, and the rest of the block is left out.

        Args:
            key: what the block looks at.
            key_of: message → a key that it is about, where that can be told.
        """
        try:
            yield
        except CollectedError as errors:
            for message in errors.messages:
                self.add(key, message)
        except RequestError as error:
            better = key_of(str(error)) if key_of is not None else None
            self.add(better or key, str(error))

    def refuse(self) -> None:
        """Raise what was noted.

        Raises:
            RequestError: one line for each problem.
        """
        messages = list(self._by_key.values())
        if len(messages) == 1:
            raise RequestError(messages[0])
        if messages:
            raise CollectedError(messages)
