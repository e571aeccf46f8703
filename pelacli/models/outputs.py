"""The main tensor of what a model, or a module inside of it, returned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.models.pooling import Pooling


def main_output(result: Any, mask: Tensor | None = None, pooling: Pooling | None = None) -> Tensor:
    """The main tensor of what a model returned; see `predict`."""
    if isinstance(result, Tensor):
        return result
    if isinstance(result, Mapping):  # transformers' ModelOutput is one
        for key in ("logits", "logits_per_image", "pooler_output", "image_embeds"):
            # A text encoder's pooler is trained for next-sentence prediction, not for meaning.
            output = result.get(key)
            if isinstance(output, tuple | list) and output:  # one for each of several outputs
                output = output[0]
            if isinstance(output, Tensor) and not (key == "pooler_output" and mask is not None):
                boxes = result.get("pred_boxes") if key == "logits" else None
                return output if boxes is None else torch.cat([output, boxes.to(output.dtype)], -1)
        hidden = result.get("last_hidden_state")
        if isinstance(hidden, Tensor):
            if mask is None or mask.shape != hidden.shape[:2]:
                return hidden.flatten(1, -2).mean(1) if hidden.ndim == 3 else hidden
            return (pooling or Pooling())(hidden, mask)
    tensor = next(_tensors(result), None)
    if tensor is None:
        what = type(result).__name__
        raise TypeError(f"the model returned {what}, in which there is no tensor")
    return tensor


@contextmanager
def caught(module: nn.Module, names: Sequence[str]) -> Iterator[Mapping[str, list[Tensor]]]:
    """While active, name → outputs of the named module, one per call (ALBERT's only layer is called
    once for each depth)."""
    outputs: dict[str, list[Tensor]] = {name: [] for name in names}

    def catch(name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            outputs[name].append(main_output(output))

        return hook

    handles = [module.get_submodule(name).register_forward_hook(catch(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _tensors(value: Any) -> Iterator[Tensor]:
    """The floating-point tensors in nested tuples, lists and mappings, in their order."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, Mapping | tuple | list):
        for item in value.values() if isinstance(value, Mapping) else value:
            yield from _tensors(item)
