"""Labels that may be missing: healing and comparing go on without them."""

from __future__ import annotations

from collections.abc import Callable

from pelacli.console import warn_once
from pelacli.data.dataset import Dataset
from pelacli.errors import PackageError, RequestError


def open_with_or_without(open_split: Callable[[bool], Dataset]) -> Dataset:
    """A split with its labels, or without where they can't be read, which is said.

    Args:
        open_split: whether to leave labels out → the split.

    Raises:
        RequestError: it can't be opened without labels either.
        PackageError: what reads or judges labels is not installed.
    """
    try:
        return open_split(False)
    except PackageError:
        raise
    except RequestError as error:
        refusal = error
    try:
        dataset = open_split(True)
    except RequestError:
        raise refusal from None
    warn_once(f"no labels: {refusal}", f"no labels are used, as they can't be read: {refusal}")
    return dataset
