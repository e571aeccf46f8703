"""Whether a model is calibrated block by block, and where what it leaves lies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelacli import console
from pelacli.errors import GateError, RequestError
from pelacli.factorize.sections import Sections, sections
from pelacli.models import filling
from pelacli.models.blocks import blocks
from pelacli.steps.dense import DenseModel
from pelacli.system import leftovers
from pelacli.system.shelf import Shelf
from pelacli.version import __version__

_SHARE = 0.7  # of the free memory that calibration of the whole model may take
_REQUEST = "request.json"


@dataclass(frozen=True)
class Blockwise:
    """A model that is calibrated section by section.

    Attributes:
        shelf: of states, gradients, moments and factors.
    """

    sections: Sections
    shelf: Shelf


@dataclass(frozen=True)
class Choice:
    """What a user says of it.

    Attributes:
        wanted: None leaves it to the free memory.
        folder: where a killed run can be gone on with; None: nowhere.
        source: what identifies the model's weights.
        device: where each block computes, if that is not where the model is.
    """

    wanted: bool | None = None
    folder: Path | None = None
    source: str = ""
    device: torch.device | None = None


def blockwise(
    dense: DenseModel,
    batches: Sequence[Any],
    run: Callable[[nn.Module, Any], Tensor],
    seed: int,
    choice: Choice,
    *,
    correct: bool,
) -> Blockwise | None:
    """The model's sections, where it is to be calibrated so; else None.

    Args:
        batches: the very ones that moments are collected on.
        run: (the model, a batch) → its output, or a language model's hidden states.
        correct: whether layers are refitted.

    Raises:
        RequestError: it is wanted, and the model is no plain sequence of blocks.
    """
    lazy = dense.opened.weights
    short = choice.wanted is None and lazy is None and _short_of_memory(dense, batches, correct)
    if not (choice.wanted or short or choice.device or lazy):
        return None
    fill = None if lazy is None else partial(filling.block, dense.module, lazy)
    parts = sections(
        dense.module, blocks(dense.module), run, dense.free, batches[0], choice.device, fill
    )
    if parts is None:
        why = f"{dense.ref}: is no plain sequence of blocks"
        if lazy is not None:
            raise RequestError(
                f"{why}, so to calibrate it all of it has to be in memory, in float32, and so much "
                "is not free; leave the samples out (plain factorising reads layer by layer)"
            )
        if choice.wanted:
            run(dense.module, batches[0])  # samples that don't fit are another mistake
            raise RequestError(f"{why}, so it can't be calibrated block by block; leave that out")
        console.warn(
            f"{why}, so all of it is calibrated at once, and memory may not suffice; "
            "calibrate on fewer or smaller samples if so"
        )
        return None
    if short:
        console.warn("memory is short: calibrating block by block, with the states on disk")
    if choice.folder is None:
        return Blockwise(parts, Shelf())
    return Blockwise(parts, _resumable(choice.folder, _request(dense, batches, seed, choice)))


def _short_of_memory(dense: DenseModel, batches: Sequence[Any], correct: bool) -> bool:
    """Whether calibration of the whole model at once would take most of what is free."""
    whole = dense.calibration_needs(batches, correct=correct, language_model=True)
    free = dense.free_memory
    return whole is not None and free is not None and whole.peak > _SHARE * free


def _resumable(folder: Path, request: str) -> Shelf:
    """The shelf in this folder. What another request has left there is removed.

    Raises:
        RequestError: the folder holds something else.
    """
    note = folder / _REQUEST
    if folder.exists() and not note.is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise RequestError(f"{folder}: is in the way, and not pela's; move it")
    if note.is_file():
        if note.read_text(encoding="utf-8") == request:
            console.info(f"going on with what a run before has left in {folder}")
            return Shelf(folder)
        leftovers.discard(folder)
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(request, encoding="utf-8")
    return Shelf(folder)


@contextmanager
def kept_until_done(folder: Path) -> Iterator[None]:
    """What calibration has left in this folder goes when the block ends, and when a request turns
    out to be a mistake. It stays when the process is killed, or the disk is full, and so does what
    a run before has left when this one is refused: for want of free memory, for example."""
    was_there = (folder / _REQUEST).is_file()
    try:
        yield
    except (RequestError, GateError) as error:
        if isinstance(error, GateError) or not was_there:
            _remove(folder)
        raise
    _remove(folder)


def _remove(folder: Path) -> None:
    if (folder / _REQUEST).is_file():
        leftovers.discard(folder)


def _request(dense: DenseModel, batches: Sequence[Any], seed: int, choice: Choice) -> str:
    """What decides the moments."""
    samples = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()) if isinstance(batch, Mapping) else [("", batch)]:
            samples.update(
                f"{name} {getattr(value, 'dtype', value)} {getattr(value, 'shape', ())}".encode()
            )
            if isinstance(value, Tensor):
                samples.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().data)
    opened = dense.opened
    return json.dumps(
        {
            "version": __version__,
            "weights": choice.source,
            "config": opened.config,
            "layers": [layer.name for layer in dense.free],
            "seed": seed,
            "samples": samples.hexdigest(),
        },
        sort_keys=True,
        default=str,
    )
