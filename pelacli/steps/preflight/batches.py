"""Whether a model takes the samples of its data, and whether a batch of them has room: a pass over
one sample without values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from pelacli import console
from pelacli.data.loader import Loader
from pelacli.errors import PelaError, RequestError
from pelacli.messages import one_line
from pelacli.models import examples
from pelacli.models.blocks import blocks
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.recipe.training import Train
from pelacli.system import devices, memory, processes

_FLOAT = 4  # bytes
_STATES = 4  # copies of the student's weights: themselves, gradients, two averages of Adam
# The share of what a pass without values keeps that one with values surely keeps: fused attention
# spares its weights, which makes .84 of it in a ViT-S of 197 tokens and .70 in a Llama of 512.
_SURE = 0.6
_HALF = 0.6  # of the activations in mixed precision: norms and sums stay float32

# What torch and the libraries raise where a shape does not fit, or where values are needed.
_REFUSALS = (AssertionError, RuntimeError, ValueError, TypeError, IndexError, PelaError)


def sample_of(loader: Loader) -> Any | None:
    """The inputs of the first sample, twice in a batch, as batch norms need two; None for a stream,
    which is not begun."""
    dataset: Any = loader.dataset
    if isinstance(dataset.source, IterableDataset):
        return None
    first = loader.first_sample()
    return dataset.collate([first, first])["inputs"]


def kept_by_a_pass(opened: OpenModel, sample: Any) -> int | None:
    """Bytes that a pass keeps for the gradients of a sample; None where it needs values.

    Args:
        sample: a batch of two, as `sample_of` gives it.

    Raises:
        RequestError: the model does not take a sample of this shape.
    """
    inputs = _without_values(sample)
    try:
        return _kept(opened.module, inputs) // 2
    except _REFUSALS as error:
        refusal = error
    try:
        plain = examples.example(opened)
        if plain is None:
            return None
        _kept(opened.module, _without_values(plain))
    except _REFUSALS:
        return None  # nor does it run on its own kind of samples: it needs values
    raise RequestError(f"{opened.ref}: does not take samples of this kind: {one_line(refusal)}")


def check_memory(
    name: str,
    settings: Train,
    opened: OpenModel,
    per_sample: int,
    batch: int,
    device: str,
    teacher: OpenModel | None = None,
) -> None:
    """Refuse batches that have no room. Of a large model, say what training it takes.

    Args:
        name: of the step.
        per_sample: what `kept_by_a_pass` gives.
        batch: samples of one pass over all processes.
        device: as in a recipe.

    Raises:
        RequestError: with the number of samples that fit.
    """
    free = devices.memory_left(devices.select(device))
    if free is None:
        return
    weights = _STATES * _FLOAT * opened.params + (0 if teacher is None else _FLOAT * teacher.params)
    sure = per_sample * _SURE * (1.0 if settings.precision == "fp32" else _HALF)
    if settings.checkpointing:
        sure *= min(1.0, 2 / max(1, len(blocks(opened.module))))
    share = -(-batch // processes.launched())
    needed = weights + share * sure
    if needed <= free:
        if needed >= memory.LARGE:
            console.say_once(
                f"memory of {name}",
                f"{name}: needs at least {memory.text(needed)} of memory ({memory.text(weights)} "
                f"for weights and optimizer); {memory.text(free)} are free",
            )
        return
    fit = max(0, int((free - weights) / sure)) if sure else 0
    remedy = (
        f"set batch_size to at most {fit * processes.launched()}, with accumulate for more"
        if fit
        else "take a smaller model, or a device with more"
    )
    also = "" if settings.checkpointing else ", or checkpointing = true"
    raise RequestError(
        f"batches of {batch} need at least {memory.text(needed)} of memory "
        f"({memory.text(weights)} for weights and optimizer), and {memory.text(free)} are free; "
        f"{remedy}{also}"
    )


def _without_values(sample: Any) -> Any:
    if isinstance(sample, Tensor):
        return sample.to("meta")
    if isinstance(sample, Mapping):
        # A mask is looked into, which needs values; the texts are not the shorter without.
        return {k: _without_values(v) for k, v in sample.items() if k != "attention_mask"}
    return sample


def _kept(module: nn.Module, inputs: Any) -> int:
    """Bytes of the tensors that a pass keeps, its weights aside."""
    own = {t.untyped_storage()._cdata for t in [*module.parameters(), *module.buffers()]}
    sizes: dict[int, int] = {}
    held = []  # or a storage's number would be given to another

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held.append(tensor)
        if storage._cdata not in own:
            sizes[storage._cdata] = storage.nbytes()
        return tensor.detach()  # see `pelacli.train.recompute`

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept):
        predict(module, inputs)
    return sum(sizes.values())
