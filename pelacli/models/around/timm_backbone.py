"""A timm model as a backbone that transformers builds its detectors around.

transformers' detectors take their backbone from a table, by the model_type that their configuration
names. With pela's entry in it (see `register`), a DETR around a timm model is one of transformers'
models: built, saved, read, decomposed and healed in the same ways. transformers has a
``timm_backbone`` too, which knows architectures by their name alone; this one has timm's
config.json, arguments included.
"""

from __future__ import annotations

from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import AutoBackbone, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BackboneOutput

from pelacli.errors import RequestError
from pelacli.models.around import features

_LAST = (-1,)  # the map that DETR reads


@strict
class TimmMapConfig(PreTrainedConfig):  # type: ignore[misc]
    """What rebuilds the backbone.

    Attributes:
        timm: config.json of the model in timm's layout.
        image_size: pixels a side of its images.
        width: channels of its last map.
        eps: of the norm of these.
    """

    model_type = "pela_timm"

    timm: dict[str, Any] | None = None
    image_size: int = 224
    width: int = 1
    eps: float = 1e-6


class TimmMap(PreTrainedModel):  # type: ignore[misc]
    """Images [B, C, S, S] → the network's last map [B, width, h, w], its channels normalised.

    The network is timm's without its classifier, its positions interpolated to images of S pixels.
    Batch norms are frozen, as in all of DETR's backbones: its batches are too small for them.
    """

    config_class = TimmMapConfig
    main_input_name = "pixel_values"
    supports_gradient_checkpointing = True
    _supports_sdpa = True  # timm's attention sees to it itself
    config: TimmMapConfig

    def __init__(self, config: TimmMapConfig) -> None:
        super().__init__(config)
        # Here, as models without timm's parts should not wait for timm to be imported.
        from pelacli.models.timm import adapter

        self.network = adapter.from_config(config.timm or {})
        _sized(self.network, config.image_size)
        _trimmed(self.network)
        self.norm = nn.LayerNorm(config.width, eps=config.eps)
        self._recomputes = False
        self.post_init()

    @property
    def channels(self) -> list[int]:
        """Of the maps: what transformers asks of a backbone."""
        return [self.config.width]

    def forward(self, pixel_values: Tensor, **_: Any) -> BackboneOutput:
        height, width = pixel_values.shape[-2:]
        size = self.config.image_size
        if (height, width) != (size, size):
            raise RequestError(
                f"images of {height}×{width} px, and the detector was built for {size}×{size}: "
                f"set data.image_size = {size}, and no task_args.sizes"
            )
        [feature_map] = features.maps("timm")(self.network, pixel_values, _LAST)
        normed = self.norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return BackboneOutput(feature_maps=(normed.contiguous(),))

    @property
    def gradient_checkpointing(self) -> bool:
        """transformers sets it where it is there; timm has a switch of its own."""
        return self._recomputes

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enable: bool) -> None:
        switch: Any = self.network.set_grad_checkpointing
        switch(enable)
        self._recomputes = enable

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """timm has initialised it; what no checkpoint holds must be there after reading one."""
        fill: Any = getattr(module, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()


def register() -> None:
    """Enter the backbone into transformers' tables, from which it is built and read. Calling this
    again changes nothing."""
    AutoConfig.register(TimmMapConfig.model_type, TimmMapConfig, exist_ok=True)
    AutoBackbone.register(TimmMapConfig, TimmMap, exist_ok=True)


def describe(network: nn.Module, config: dict[str, Any], channels: int, size: int) -> TimmMapConfig:
    """Make a timm model ready for images of this size, in place; what it is as a backbone.

    Args:
        config: its config.json.
        channels: of its images.
        size: pixels a side.

    Raises:
        RequestError: it gives no maps, or none of such images.
    """
    _sized(network, size)
    [(width, _)] = features.shapes("timm", network, channels, size, _LAST)
    eps = getattr(getattr(network, "norm", None), "eps", TimmMapConfig.eps)
    return TimmMapConfig(timm=config, image_size=size, width=width, eps=eps)


def adopt(backbone: TimmMap, network: nn.Module) -> None:
    """Put a network that is described, with its weights and low-rank layers, in the place of a
    fresh one.

    The weights of its own last norm go on in the backbone's, so that the map is what its classifier
    was used to; where there is none of that width the norm stays fresh.
    """
    norm = getattr(network, "norm", None)
    if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == backbone.norm.normalized_shape:
        backbone.norm.load_state_dict(norm.state_dict(), strict=False)
    _trimmed(network)
    backbone.network = network


def _sized(network: nn.Module, size: int) -> None:
    features.bare("timm", network)
    features.resize("timm", network, size)


def _trimmed(network: nn.Module) -> None:
    """Without what no map goes through: the last norm, and what is left of the classifier."""
    from timm.layers import freeze_batch_norm_2d

    freeze_batch_norm_2d(network)
    prune: Any = getattr(network, "prune_intermediate_layers", None)
    if prune is not None:
        prune(list(_LAST), prune_norm=True, prune_head=False)
    for name in ("fc_norm", "head"):
        if isinstance(getattr(network, name, None), nn.Module):
            setattr(network, name, nn.Identity())
