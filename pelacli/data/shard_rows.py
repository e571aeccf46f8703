"""Which samples of which shards a reader takes in training.

Shards are dealt out whole where each reader's hold enough. Where some reader's would hold too few,
as their lengths are too unlike, all readers take samples in a row: of the shards one after the
other the first takes so many, the second the next, and so on. Then two readers may read one shard,
and each decodes what is its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any


def lengths_of(paths: Sequence[str], lengths: Sequence[Any], samples: int) -> dict[str, int]:
    """Shard → how many samples it is said to hold; empty where that does not go together."""
    numbers = [length for length in lengths if type(length) is int and length >= 0]
    if not len(set(paths)) == len(paths) == len(lengths) == len(numbers):
        return {}
    return dict(zip(paths, numbers, strict=True)) if sum(numbers) == samples else {}


def dealt(paths: Sequence[str], number: int, readers: int) -> list[str]:
    """The shards of a reader, where they are dealt out whole."""
    return list(paths[number::readers])


class Row:
    """The samples that a reader takes, a stage of webdataset's.

    Attributes:
        parts: shard → which of its samples.
    """

    def __init__(self, parts: Mapping[str, range]) -> None:
        self.parts = parts
        self._seen: Counter[str] = Counter()

    def __call__(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The reader's own of the samples of its shards. The last shard is not read to its end."""
        last = list(self.parts)[-1]
        for sample in samples:
            shard = sample["__url__"]
            at = self._seen[shard]
            self._seen[shard] += 1
            if at in self.parts[shard]:
                yield sample
            if shard == last and at + 1 == self.parts[shard].stop:
                return

    def has_begun(self, shard: str | None) -> bool:
        """Whether the reader has come to its own part of a shard. What is before is another's."""
        return shard is None or self._seen[shard] >= self.parts[shard].start


def row(
    paths: Sequence[str], lengths: Mapping[str, int], takes: Sequence[int], number: int
) -> Row | None:
    """The samples of a reader, where shards that are dealt out whole would not do.

    Args:
        paths: all shards, in the order of all readers.
        lengths: how many samples each holds.
        takes: how many samples each reader takes.
        number: of the reader.
    """
    readers = range(len(takes))
    held = [sum(lengths[path] for path in dealt(paths, n, len(takes))) for n in readers]
    if all(held[n] >= takes[n] for n in readers):
        return None
    first = sum(takes[:number])
    last = first + takes[number]
    starts = accumulate((lengths[path] for path in paths), initial=0)
    return Row(
        {
            path: range(max(first - start, 0), min(last - start, lengths[path]))
            for path, start in zip(paths, starts, strict=False)
            if start < last and start + lengths[path] > first
        }
    )
