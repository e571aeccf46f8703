"""The main output of a model for a batch."""

from __future__ import annotations

from collections.abc import Mapping

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
    result = module(**inputs) if isinstance(inputs, Mapping) else module(inputs)
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    return main_output(result, mask, getattr(module, "pela_pooling", None))
