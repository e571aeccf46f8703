"""Datasets of the Hugging Face hub, as the library `datasets` reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pelacli.data.splits import choose_split
from pelacli.errors import RequestError


@contextmanager
def one_line_errors(spec: str, split: str) -> Iterator[None]:
    """Errors of the library that reads a dataset, made one line."""
    try:
        yield
    except RequestError:
        raise
    except ImportError as error:
        raise RequestError(f"{spec}: needs another package ({error})") from None
    except Exception as error:  # every library and every transport has its own
        line = " ".join(str(error).split()) or type(error).__name__
        raise RequestError(f"{spec}, split {split!r}: cannot be opened: {line[:300]}") from None


def hub_rows(spec: str, split: str) -> tuple[Any, str]:
    """A split of a dataset of the Hugging Face hub, as `datasets` has it, and the split's name.

    Args:
        spec: hfds/NAME, hfds/OWNER/NAME or hfds/OWNER/NAME/CONFIG; hfds/ and the path of a folder
            with data files does too.
    """
    import datasets

    name = spec.removeprefix("hfds/")
    owner, _, rest = name.partition("/")
    config = None
    if not Path(name).exists() and "/" in rest:
        rest, _, config = rest.partition("/")
        name = f"{owner}/{rest}"
    with one_line_errors(spec, split):
        found = split
        if "[" not in split:  # "train[:80%]" is theirs
            found = choose_split(split, datasets.get_dataset_split_names(name, config), spec)
        return datasets.load_dataset(name, config, split=found), found
