"""``--set KEY=VALUE``: applied to a recipe's document, and found again for error messages."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelacli.errors import RequestError
from pelacli.recipe.keys import Key, dotted, parse_key, parse_value

# KEY=VALUE, where quoted parts of the key may hold anything.
_OVERRIDE = re.compile(r"""((?:"(?:\\.|[^"\\])*"|'[^']*'|[^="'])+)=(.*)""", re.DOTALL)


@dataclass(frozen=True)
class Overrides:
    """Which override set which key.

    Attributes:
        by_key: key → the override as it was given, "--set KEY=VALUE"; the last one given stands
            last.
    """

    by_key: Mapping[Key, str]

    def locate(self, part: Key, key: Key) -> str | None:
        """The override that set ``part``, or a section that holds it; None if no override did.

        Returns:
            the override, followed by the name of ``key`` where the override names another.
        """
        return self._shown(key, (k for k in self._latest_first() if part[: len(k)] == k))

    def locate_within(self, part: Key, key: Key) -> str | None:
        """The override that set something inside ``part``, as `locate` gives it."""
        return self._shown(key, (k for k in self._latest_first() if k[: len(part)] == part))

    def sets(self, key: Key) -> bool:
        """Whether an override set this key, or a section that holds it."""
        return self.locate(key, key) is not None

    def _latest_first(self) -> Iterator[Key]:
        return reversed(list(self.by_key))

    def _shown(self, key: Key, setters: Iterator[Key]) -> str | None:
        setter = next(setters, None)
        if setter is None:
            return None
        return self.by_key[setter] + ("" if setter == key else f": {dotted(key)}")


def apply(document: dict[str, Any], overrides: Sequence[str]) -> Overrides:
    """Set the keys of a document in place.

    Args:
        overrides: "a.b=value" each; values as in TOML, anything else is text. Of two for one key
            the last counts.

    Raises:
        RequestError: an override is not KEY=VALUE, or its key lies below a value.
    """
    by_key: dict[Key, str] = {}
    for override in overrides:
        key, value = _parse(override)
        section: Any = document
        for part in key[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise RequestError(f"--set {override}: {part} is no section")
        section[key[-1]] = value
        by_key.pop(key, None)  # so that it comes last
        by_key[key] = f"--set {override}"
    return Overrides(by_key)


def section_with(
    section: str, values: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """The keys of a section with their values, after the overrides; not yet validated.

    Args:
        values: before them.
    """
    document: dict[str, Any] = {section: dict(values)}
    apply(document, overrides)
    after = document[section]
    return after if isinstance(after, dict) else {}


def _parse(override: str) -> tuple[tuple[str, ...], Any]:
    parts = _OVERRIDE.fullmatch(override)
    if parts is None or not parts[1].strip():
        raise RequestError(f"--set {override}: give KEY=VALUE, as pretrain.epochs=5")
    key = parse_key(parts[1].strip())
    if key is None:
        raise RequestError(
            f"--set {override}: {parts[1].strip()!r} is no key; quote parts that hold "
            'more than letters, digits, _ and -: decompose.pin."blocks[.]0"=8'
        )
    return key, parse_value(parts[2].strip())
