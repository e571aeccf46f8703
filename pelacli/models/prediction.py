"""The main output of a model for a batch."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from pelacli.models.outputs import main_output
from pelacli.models.pairs.families import find_view


def predict(module: nn.Module, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
    """The model's main output for a batch.

    Logits where the model has a head (a detector's with the boxes beside them); else its embedding
    of the sample: pooled features, or of a text the last hidden states pooled as
    sentence-transformers' files beside the model say, else their mean over the tokens that are no
    padding. What that is for pairs of images and texts its family says (`pairs.PairModel.output`).

    Args:
        inputs: images [B, C, H, W], or the model's keyword arguments as tensors [B, ...].

    Returns:
        [B, ..., D], floating point.
    """
    if isinstance(inputs, Mapping) and "pixel_values" in inputs and "input_ids" in inputs:
        view = find_view(module)
        if view is not None:
            return view.output(inputs)
    if isinstance(inputs, Mapping):
        inputs = without_cache(module, _with_decoder_inputs(module, inputs))
    result = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return main_output(result, mask, getattr(module, "pela_pooling", None))


def without_cache(module: nn.Module, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """The inputs of a pass after which nothing is generated: a model that can keep the keys and
    values of all its layers for the next token need not. Over the layers they are the most that a
    pass without gradients holds."""
    if "use_cache" in inputs or "use_cache" not in inspect.signature(module.forward).parameters:
        return inputs
    return {**inputs, "use_cache": False}


def _with_decoder_inputs(module: nn.Module, inputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The inputs of an encoder-decoder with what its decoder reads: the same text, shifted by one.

    BART and its kin do so themselves, and this is what they do; T5 and its kin refuse.
    """
    if "input_ids" not in inputs or "decoder_input_ids" in inputs:
        return inputs
    if "decoder_input_ids" not in inspect.signature(module.forward).parameters:
        return inputs
    # The first is of models with an output for tokens, the second of T5's without one.
    for name in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
        shift = getattr(module, name, None)
        if shift is not None:
            return {**inputs, "decoder_input_ids": shift(inputs["input_ids"])}
    return inputs
