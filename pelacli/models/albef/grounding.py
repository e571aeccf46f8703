"""Where in the image a text is: Grad-CAM on the cross-attention of the matching score."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from pelacli.errors import RequestError
from pelacli.models.albef.network import Albef


@contextmanager
def attention_maps(network: Albef, layer: int = 8) -> Iterator[list[Tensor]]:
    """While active, the cross-attention of a text layer, one tensor for each of its calls.

    Each is [B, heads, T, P] and part of the graph: after a backward pass it has ``grad``.

    Raises:
        RequestError: the layer has no cross-attention.
    """
    layers = network.text_encoder.bert.layers
    if not 0 <= layer < len(layers) or not hasattr(layers[layer], "crossattention"):
        first = network.config.fusion_layer
        raise RequestError(
            f"layer {layer}: has no cross-attention; choose one of {first} to {len(layers) - 1}"
        )
    crossing: Any = layers[layer]
    module = crossing.crossattention.self
    maps: list[Tensor] = []

    def keep(_module: Any, _args: Any, output: tuple[Tensor, Tensor]) -> None:
        if output[1].requires_grad:
            output[1].retain_grad()
        maps.append(output[1])

    handle = module.register_forward_hook(keep)
    # The fused kernels do not tell their attention. The configuration is shared by all layers.
    config, module.config = module.config, _eager(module.config)
    try:
        yield maps
    finally:
        module.config = config
        handle.remove()


def heatmaps(
    network: Albef, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor, layer: int = 8
) -> Tensor:
    """How much each patch speaks for the match of text and image.

    Attention times its positive gradient of the match logit, over the words that are no padding,
    averaged over heads and words, as ALBEF does for RefCOCO+.

    Returns:
        [B, patches, patches], detached. Parameters' gradients are left as they were.
    """
    side = network.config.patches
    with torch.enable_grad(), attention_maps(network, layer) as maps:
        image = network.embed_images(pixel_values)
        text = network.embed_texts(input_ids, attention_mask)
        score = network.match(text, attention_mask, image)[:, 1].sum()
        (attention,) = maps
        (gradient,) = torch.autograd.grad(score, attention)
    felt = attention.detach() * gradient.clamp_min(0) * attention_mask[:, None, :, None]
    return felt[..., 1:].mean((1, 2)).reshape(-1, side, side)


def _eager(config: Any) -> Any:
    result = copy.deepcopy(config)
    result._attn_implementation = "eager"
    return result
