"""The cross-attention of ALBEF's text layers, as grounding reads it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from pelacli.errors import RequestError
from pelacli.models.albef.network import Albef


@contextmanager
def attention_maps(network: Albef, layer: int) -> Iterator[list[Tensor]]:
    """While active, collects the cross-attention of a text layer, one tensor per call of it.

    Each is [B, heads, T, P] and part of the graph.

    Raises:
        RequestError: the layer has no cross-attention.
    """
    layers = network.text_encoder.bert.layers
    if not 0 <= layer < len(layers) or not hasattr(layers[layer], "crossattention"):
        first = network.config.fusion_layer
        raise RequestError(
            f"layer {layer}: has no cross-attention; choose one of {first} to {len(layers) - 1}"
        )
    fusion_layer: Any = layers[layer]
    module = fusion_layer.crossattention.self
    maps: list[Tensor] = []
    hook = module.register_forward_hook(lambda _module, _args, output: maps.append(output[1]))
    # The fused kernels return no attention. All layers share the configuration, so this one gets a
    # copy that asks for the plain kernel.
    shared = module.config
    module.config = copy.deepcopy(shared)
    module.config._attn_implementation = "eager"
    try:
        yield maps
    finally:
        module.config = shared
        hook.remove()
