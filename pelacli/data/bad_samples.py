"""Samples that can't be read among those that training and calibration take.

One of them stops the step, with the line that names it. Where the recipe says
``data.on_bad_sample = "skip"``, the next sample that can be read takes its place, so that batches
stay as large as they were, whatever the number of workers. Many in a row stop the step all the
same: then it is the disk or the data set that is broken, and not a sample.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

from pelacli.console import info, warn
from pelacli.errors import PackageError, RequestError

_MOST_IN_A_ROW = 32
_MOST_NAMED = 20  # each in a line of its own, without --verbose


class Indexed(Protocol):
    """Samples by index."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Any: ...


def read_from(
    dataset: Indexed, index: int, bad: Row, read: Callable[[int], Any] | None = None
) -> Any:
    """The sample of an index, or the next one that can be read.

    Args:
        bad: gets what is passed over.
        read: gives the sample of an index, in place of the dataset itself.

    Raises:
        RequestError: too many in a row can't be read, or all.
    """
    for following in range(len(dataset)):
        try:
            sample = (read or dataset.__getitem__)((index + following) % len(dataset))
        except RequestError as error:
            bad.add(error)
        else:
            bad.end()
            return sample
    raise bad.refusal()


def first(dataset: Indexed, *, skips: bool) -> Any:
    """The first sample; with ``skips`` the first that can be read."""
    return read_from(dataset, 0, Row()) if skips else dataset[0]


class Row:
    """Bad samples that were met one after the other, and all that were met.

    Attributes:
        messages: what is wrong with each.
        length: how many came since the last one that could be read.
    """

    def __init__(self) -> None:
        self.messages: list[str] = []
        self.length = 0

    def add(self, error: RequestError) -> None:
        """Take note of a sample.

        Raises:
            RequestError: there were too many in a row, or what is wrong is not the sample.
        """
        if isinstance(error, PackageError):
            raise error
        self.messages.append(str(error))
        self.length += 1
        if self.length >= _MOST_IN_A_ROW:
            raise self.refusal()

    def end(self) -> None:
        """Take note that a sample could be read."""
        self.length = 0

    def refusal(self) -> RequestError:
        """The error for so many that none of them is passed over."""
        return RequestError(
            f"{self.messages[-1]}; {self.length} samples in a row can't be read, too many to pass "
            "over: is the data still there?"
        )


class PassedOver:
    """Says which samples of a dataset were passed over, each once, and at the end how many.

    A process of a distributed run speaks for itself, as no other one has met its samples.

    Args:
        spec: what the user called the dataset.
    """

    def __init__(self, spec: str) -> None:
        self.spec = spec
        self.messages: set[str] = set()
        self._counted = 0

    def note(self, messages: Iterable[str]) -> None:
        """Name those that have not been named."""
        for message in messages:
            if message in self.messages:
                continue
            self.messages.add(message)
            line = f"{message} (passed over, as data.on_bad_sample = 'skip')"
            if len(self.messages) <= _MOST_NAMED:
                warn(line, of_this_process=True)
            else:
                info(line)

    def count(self, samples: int) -> None:
        """Say how many of the samples there were so far, if that is more than was said last."""
        if len(self.messages) == self._counted:
            return
        self._counted = len(self.messages)
        more = "" if self._counted <= _MOST_NAMED else "; --verbose names them all"
        warn(
            f"{self.spec}: passed over because they can't be read: {self._counted} of {samples} "
            f"samples{more}",
            of_this_process=True,
        )
