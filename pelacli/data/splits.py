"""Names of splits: 'val' finds 'validation'."""

from __future__ import annotations

from collections.abc import Sequence

from pelacli.errors import RequestError

SPLITS: tuple[tuple[str, ...], ...] = (
    ("train", "training"),
    ("validation", "val", "valid", "eval"),
    ("test", "testing"),
)


def choose_split(split: str, names: Sequence[str], spec: str) -> str:
    """The name under which a dataset has the split: "val" finds "validation", and "Val".

    Args:
        names: of the dataset's splits.
        spec: the dataset, in errors.

    Raises:
        RequestError: it has no such split.
    """
    spelt = {name.casefold(): name for name in reversed(names)} | {name: name for name in names}
    for name in (split, *split_names(split)):
        if (own := spelt.get(name) or spelt.get(name.casefold())) is not None:
            return own
    raise RequestError(f"{spec}: no split {split!r}; it has {', '.join(names)}")


def split_names(split: str) -> tuple[str, ...]:
    """All names of the split that has this one; this one alone where it is of no usual split."""
    return next((names for names in SPLITS if split.casefold() in names), (split,))
