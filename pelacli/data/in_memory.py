"""Calibration samples that a Python caller has in hand, as the model takes them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset

from pelacli.errors import PelaError, RequestError
from pelacli.factorize.batches import BATCH_SIZE, pieces
from pelacli.messages import one_line
from pelacli.models.prediction import predict
from pelacli.system import devices

_FORMS = "tensors [B, …], dicts of the model's arguments, (input, label) pairs or a DataLoader"
_OUT_OF_MEMORY = re.compile("allocate memory|out of memory", re.IGNORECASE)
_LONGEST = 120  # characters of a model's own error in our message


def unlabelled(batches: Any) -> list[Any]:
    """The samples as a list of batches on the CPU, without their labels.

    Args:
        batches: one batch or an iterable of batches, which is read once: also a DataLoader or a
            generator. A batch is a tensor [B, …], a dict of the model's arguments, or an
            (input, label) pair of either with labels, which are left out. NumPy arrays count as
            tensors. One batch alone is cut into batches of 32 samples.

    Returns:
        Tensors and dicts, as `pelacli.models.prediction.predict` takes them.

    Raises:
        RequestError: there is no batch, or one that is none of these.
    """
    if isinstance(batches, Tensor | np.ndarray | Mapping):
        return _cut(_inputs(batches, "batches"))
    if isinstance(batches, Dataset) and not isinstance(batches, IterableDataset):
        raise RequestError(
            "batches: is a Dataset of single samples; give DataLoader(dataset, batch_size=32)"
        )
    if isinstance(batches, tuple) and len(batches) == 2 and _is_label(batches[1]):
        raise RequestError(
            "batches: is one (input, label) pair, and would count as two; give a list of pairs"
        )
    if isinstance(batches, str | bytes) or not isinstance(batches, Iterable):
        raise RequestError(f"batches: is {_a(batches)}; give {_FORMS}")
    result = [_inputs(batch, f"batches: batch {n}") for n, batch in enumerate(batches)]
    if not result:
        raise RequestError(
            "batches: there is none in it (was a generator read before?); leave it out to plan "
            "from the weights alone"
        )
    return result


def predicting(
    ref: str, model: nn.Module, name: str = "batches"
) -> Callable[[nn.Module, Any], Tensor]:
    """`predict` with an error of the model's own as a message about the batch.

    Args:
        ref: what the message calls the model.
        model: its precision is a hint where the batch has another.
        name: what the message calls the samples.
    """
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return partial(_predict, ref, dtypes, name)


def _predict(
    ref: str, dtypes: set[torch.dtype], name: str, module: nn.Module, batch: Any
) -> Tensor:
    try:
        output = predict(module, batch)
    except (PelaError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a model raises whatever its code raises
        if _OUT_OF_MEMORY.search(str(error)):
            raise
        reason = one_line(error, _LONGEST)
        raise RequestError(
            f"{name}: {ref} fails on {_form(batch)}: {reason}{_remedy(batch, dtypes, error)}"
        ) from error
    if not output.ndim:
        raise RequestError(
            f"{name}: {ref} gives a single number for {_form(batch)}, a loss perhaps; what is "
            "wanted is its output for each sample"
        )
    return output


def _inputs(batch: Any, where: str) -> Any:
    """What of one batch goes into the model."""
    if isinstance(batch, tuple | list):
        batch = _without_label(batch, where)
    if isinstance(batch, Mapping):
        return _arguments(batch, where)
    tensor = _tensor(batch)
    if tensor is None:
        raise RequestError(f"{where} is {_a(batch)}; give {_FORMS}")
    if not tensor.ndim or (tensor.ndim == 1 and tensor.is_floating_point()):
        raise RequestError(
            f"{where} has shape {_shape(tensor)}, and batches are [B, …]; of one sample x give "
            "x[None]"
        )
    if not len(tensor):
        raise RequestError(f"{where} has shape {_shape(tensor)}: no samples; leave it out")
    return tensor


def _without_label(batch: tuple[Any, ...] | list[Any], where: str) -> Any:
    """The input of an (input, label) pair, or what stands alone."""
    if len(batch) == 2 and not isinstance(batch[0], Mapping) and _is_mask(*batch):
        raise RequestError(
            f"{where}: its second tensor looks like an attention mask and not like a label; give "
            "a dict of the model's arguments"
        )
    if len(batch) not in (1, 2):
        raise RequestError(
            f"{where} is a {type(batch).__name__} of {len(batch)}; give an (input, label) pair, or "
            "a dict of the model's arguments"
        )
    return batch[0]


def _is_label(value: Any) -> bool:
    """Whether this can be the labels of a batch, and no batch."""
    tensor = _tensor(value)
    return isinstance(value, int) or (tensor is not None and tensor.ndim < 2)


def _is_mask(ids: Any, other: Any) -> bool:
    """Whether two tensors look like token numbers and which of them are padding."""
    tensors = _tensor(ids), _tensor(other)
    if any(t is None or t.is_floating_point() or t.ndim != 2 for t in tensors):
        return False
    ids, other = tensors
    return bool(
        ids.shape == other.shape and other.numel() and other.max() <= 1 and other.min() >= 0
    )


def _arguments(batch: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """A dict of the model's arguments: tensors beside switches such as ``return_dict=True``."""
    arguments: dict[str, Any] = {}
    for name, value in batch.items():
        if not isinstance(name, str):
            raise RequestError(f"{where}: has the key {name!r}; keys are the model's arguments")
        tensor = _tensor(value)
        arguments[name] = devices.move_batch(value, "cpu") if tensor is None else tensor
    if not any(isinstance(v, Tensor) and v.ndim and len(v) for v in arguments.values()):
        raise RequestError(
            f"{where} is a dict without a tensor [B, …] of samples; a tokenizer gives tensors with "
            "return_tensors='pt'"
        )
    return arguments


def _tensor(value: Any) -> Tensor | None:
    """A tensor or array as a tensor on the CPU; None for anything else."""
    if isinstance(value, np.ndarray) and value.dtype != object:
        try:
            return torch.from_numpy(np.array(value))
        except TypeError:  # an array of texts
            return None
    if (
        not isinstance(value, Tensor)
        or value.is_meta
        or value.layout != torch.strided
        or value.is_quantized
    ):
        return None
    tensor: Tensor = value.detach().to("cpu")
    return tensor.clone() if tensor.is_inference() else tensor


def _cut(batch: Any) -> list[Any]:
    """One batch in pieces of 32 samples; whole where its tensors don't agree on their number."""
    values = [batch] if isinstance(batch, Tensor) else batch.values()
    lengths = {len(v) if isinstance(v, Tensor) and v.ndim else 0 for v in values}
    return [batch] if len(lengths) > 1 else pieces(batch, lengths.pop(), BATCH_SIZE)


def _remedy(batch: Any, dtypes: set[torch.dtype], error: Exception) -> str:
    tensors = batch.values() if isinstance(batch, Mapping) else [batch]
    others = {t.dtype for t in tensors if isinstance(t, Tensor)} - dtypes
    if len(dtypes) == 1 and others and re.search("dtype|type|floating", str(error)):
        dtype = str(next(iter(dtypes))).removeprefix("torch.")
        return f"; the model is {dtype}: give batches of {dtype} too"
    if isinstance(error, TypeError) and "unexpected keyword" in str(error):
        return "; leave it out of the dict"
    if isinstance(error, TypeError) and "required positional" in str(error):
        return "; give a dict of the model's arguments by name"
    return "; give samples that the model takes"


def _form(batch: Any) -> str:
    """Types and shapes of a batch: "float32 [32, 3, 224, 224]"."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {_shape(batch)}"
    parts = [
        f"{name} {_form(value) if isinstance(value, Tensor) else type(value).__name__}"
        for name, value in list(batch.items())[:4]
    ]
    return f"a dict of {', '.join(parts)}"


def _shape(tensor: Tensor) -> str:
    return str(list(tensor.shape))


def _a(value: Any) -> str:
    if isinstance(value, Tensor):
        return 'a tensor on "meta"' if value.is_meta else f"a tensor of layout {value.layout}"
    name = type(value).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"
