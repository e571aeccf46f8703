"""Datasets of the Hugging Face hub, as the library `datasets` reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pelacli.data.splits import choose_split
from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.system import extras

_PREFIX = "hfds/"
_CARD = "README.md"  # where a folder declares its configurations


def open_split(spec: str, split: str) -> tuple[Any, str]:
    """A split of a Hugging Face dataset.

    Args:
        spec: "hfds/NAME", "hfds/OWNER/NAME" or "hfds/OWNER/NAME/CONFIG" of the hub; or "hfds/PATH"
            of a folder with data files, and "hfds/PATH/CONFIG" where the folder's README.md
            declares configurations.
        split: by any of its usual names ("val" finds "validation"); or a slice, as `datasets`
            writes them ("train[:80%]").

    Returns:
        (the rows, a `datasets.Dataset`; the split's own name, or the slice).

    Raises:
        RequestError: one line that says why it can't be opened.
    """
    with one_line_errors(spec, split):
        datasets: Any = extras.require("datasets", spec)
        name, config = _name_and_config(spec)
        if "[" not in split:  # `datasets` itself reads slices
            names = datasets.get_dataset_split_names(name, config)
            split = choose_split(split, names, spec)
        return datasets.load_dataset(name, config, split=split), split


def check_split(spec: str, split: str) -> None:
    """Look whether a Hugging Face dataset has a split, without fetching its rows.

    Raises:
        RequestError: one line that says why it can't be opened.
    """
    with one_line_errors(spec, split):
        datasets: Any = extras.require("datasets", spec)
        name, config = _name_and_config(spec)
        choose_split(split.partition("[")[0], datasets.get_dataset_split_names(name, config), spec)


def row_name(spec: str, index: int) -> str:
    """What errors call a row of a dataset."""
    return f"{spec}, row {index}"


def image_of(row: Mapping[str, Any], column: str, where: str) -> Any:
    """What a row has in a column of images that `datasets` does not decode: bytes, or else a path.

    Args:
        where: names the row in errors.

    Raises:
        RequestError: it holds nothing.
    """
    cell = row[column]
    image = (cell["bytes"] or cell["path"]) if isinstance(cell, dict) else cell
    if image is None:
        raise RequestError(f"{where}: has no {column}; leave the row out")
    return image


@contextmanager
def one_line_errors(spec: str, split: str) -> Iterator[None]:
    """While active, an error of a library that opens a dataset becomes one line.

    Raises:
        RequestError: in the place of any error.
    """
    try:
        yield
    except RequestError:
        raise
    except ImportError as error:
        raise RequestError(f"{spec}: needs another package ({error})") from None
    except Exception as error:  # every library and every transport has its own
        reason = one_line(error)
        raise RequestError(f"{spec}, split {split!r}: cannot be opened: {reason}") from None


def _name_and_config(spec: str) -> tuple[str, str | None]:
    """(the hub's name or the path of a folder, the configuration or None)."""
    name = spec.removeprefix(_PREFIX).rstrip("/")
    path = Path(name).expanduser()
    if path.exists():
        return str(path), None
    is_path = name.startswith((".", "~")) or path.is_absolute()
    card = path.parent / _CARD
    # A relative path looks like OWNER/NAME: it is a folder's only if the folder knows the CONFIG.
    if card.is_file() and (is_path or path.name in _configs(card)):
        return str(path.parent), path.name
    if is_path:
        raise RequestError(
            f"{spec}: no such folder; a configuration is one that its folder's {_CARD} declares"
        )
    owner, _, rest = name.partition("/")
    if "/" not in rest:
        return name, None
    rest, _, config = rest.partition("/")
    return f"{owner}/{rest}", config


def _configs(card: Path) -> list[str]:
    """Names of the configurations that a dataset card declares."""
    from huggingface_hub import metadata_load

    entries = (metadata_load(card) or {}).get("configs") or []
    return [entry.get("config_name", "default") for entry in entries]
