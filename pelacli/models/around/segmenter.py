"""UperNet around any backbone: semantic segmentation for models that classify.

The backbone keeps its modules, so that what is low-rank stays low-rank. Its maps at four depths go
through a norm each and, in a plain ViT, through a pyramid that scales them to strides 4, 8, 16 and
32 (as BEiT and ViTDet do); the heads are transformers' UperNet and FCN heads (Xiao et al., "Unified
Perceptual Parsing", ECCV 2018; settings as in mmsegmentation).
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import log2
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import UperNetConfig
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead

from pelacli.errors import RequestError
from pelacli.models import config_file
from pelacli.models.around import features
from pelacli.models.hf import segmenters
from pelacli.models.inputs import ImageInput, Inputs
from pelacli.models.opened import OpenModel
from pelacli.models.upstream import upstream

NAME = "segmenter"
_FINEST = 4  # stride of the first level


class Segmenter(nn.Module):
    """Images [B, C, S, S] → logits [B, classes, S/4, S/4], as fine as the first level is.

    In training, with an auxiliary head, a dict of ``logits`` and ``auxiliary`` logits.

    Args:
        backbone: the model of the library, dense or low-rank; it is changed in place.
        config: see `around`; "maps" may be missing, and is then found by running the backbone.
    """

    pela_model = NAME

    def __init__(self, backbone: nn.Module, config: Mapping[str, Any]) -> None:
        super().__init__()
        self.config = copy.deepcopy(dict(config))
        backbone_config, size = self.config["backbone"], self.config["image_size"]
        self.library: str = backbone_config["library"]
        self.backbone = features.bare(self.library, backbone)
        features.resize(self.library, self.backbone, size)
        if "maps" not in backbone_config:
            channels = self.config["input"]["channels"]
            shapes = features.shapes(self.library, self.backbone, channels, size)
            at = features.depths(shapes)
            backbone_config["depths"] = at
            backbone_config["maps"] = [list(shapes[depth]) for depth in at]
        widths = [width for width, _ in backbone_config["maps"]]
        self.neck = nn.ModuleList(
            Level(width, _doublings(size / side, level))
            for level, (width, side) in enumerate(backbone_config["maps"])
        )
        heads = UperNetConfig(
            hidden_size=self.config["channels"],
            pool_scales=list(self.config["pool_scales"]),
            auxiliary_channels=self.config["auxiliary_channels"] or 1,
            num_labels=self.config["num_classes"],
        )
        self.decode_head = UperNetHead(heads, widths)
        self.auxiliary_head = (
            UperNetFCNHead(heads, widths, in_index=min(2, len(widths) - 1))
            if self.config["auxiliary_channels"]
            else None
        )
        prune: Any = getattr(self.backbone, "prune_intermediate_layers", None)
        if prune is not None:  # a last norm that no map goes through
            prune(backbone_config["depths"], prune_norm=True, prune_head=False)

    def forward(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        size = self.config["image_size"]
        if tuple(images.shape[-2:]) != (size, size):
            height, width = images.shape[-2:]
            raise RequestError(
                f"images of {height}×{width} px, and the segmenter was built for {size}×{size}: "
                f"set data.image_size = {size}"
            )
        if self.training and len(images) < 2:
            raise RequestError("UperNet's batch norms need two images or more: raise batch_size")
        at = self.config["backbone"]["depths"]
        feature_maps = features.maps(self.library)(self.backbone, images, at)
        levels = [
            level(feature_map) for level, feature_map in zip(self.neck, feature_maps, strict=True)
        ]
        logits: Tensor = self.decode_head(levels)
        if self.training and self.auxiliary_head is not None:
            return {"logits": logits, "auxiliary": self.auxiliary_head(levels)}
        return logits

    # What timm's models offer to a training loop --------------------------------------------------

    def no_weight_decay(self) -> set[str]:
        listed: Any = getattr(self.backbone, "no_weight_decay", set)
        return {f"backbone.{name}" for name in listed()}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the backbone's activations in the backward pass."""
        network: Any = self.backbone
        if hasattr(network, "set_grad_checkpointing"):
            network.set_grad_checkpointing(enable)
        elif enable:
            network.gradient_checkpointing_enable()
        else:
            network.gradient_checkpointing_disable()


class Level(nn.Module):
    """A norm of a map's channels, and so many doublings of its size; halvings where negative."""

    def __init__(self, width: int, doublings: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        steps: list[nn.Module] = []
        for step in range(doublings):
            if step:
                steps += [nn.BatchNorm2d(width), nn.GELU()]
            steps.append(nn.ConvTranspose2d(width, width, 2, 2))
        if doublings < 0:
            steps.append(nn.MaxPool2d(2**-doublings))
        self.scale = nn.Sequential(*steps)

    def forward(self, feature_map: Tensor) -> Tensor:
        """[B, width, h, w] → [B, width, h·2^doublings, w·2^doublings]."""
        normed = self.norm(feature_map.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.scale(normed.contiguous())  # type: ignore[no-any-return]


def _doublings(stride: float, level: int) -> int:
    """From a map of this stride to the level's: 4, 8, 16, 32."""
    return round(log2(stride / (_FINEST * 2**level)))


def around(
    opened: OpenModel,
    *,
    classes: int,
    image_size: int | None,
    channels: int,
    pool_scales: Sequence[int],
    auxiliary_channels: int,
    seed: int,
) -> OpenModel:
    """A segmenter with fresh heads around a model, whose modules it takes over.

    Args:
        image_size: pixels a side; None: the model's own.
        channels: width of the head's maps.
        pool_scales: sides of the grids that the last map is pooled to.
        auxiliary_channels: width of the FCN head on the third map; 0: without it.
        seed: of the heads.

    Raises:
        RequestError: the model sees no images, gives no maps, or not of images of this size.
    """
    sees = opened.inputs
    if not isinstance(sees, ImageInput):
        raise RequestError(f"{opened.ref}: sees no images alone, so it can't be segmented with")
    if image_size is None and sees.size[1] != sees.size[2]:
        raise RequestError(f"{opened.ref}: takes no square images; set data.image_size")
    size = image_size or sees.size[1]
    config = {
        "pela_model": NAME,
        "architecture": f"UperNet({opened.source.architecture})",
        "num_classes": classes,
        "image_size": size,
        "channels": channels,
        "pool_scales": list(pool_scales),
        "auxiliary_channels": auxiliary_channels,
        "input": {
            "channels": sees.size[0],
            "mean": list(sees.mean),
            "std": list(sees.std),
            "interpolation": sees.interpolation,
        },
        "backbone": {"library": opened.library, "config": opened.config},
    }
    torch.manual_seed(seed)
    training = opened.module.training
    module = Segmenter(opened.module, config).train(training)
    return replace(
        opened,
        module=module,
        library=NAME,
        config=module.config,
        inputs=inputs(module, None),
        head=head(module),
    )


def segments(opened: OpenModel) -> bool:
    """Whether the model's outputs are a map of classes already."""
    return opened.library == NAME or segmenters.segments(opened.module)


# The adapter (see `models.adapters.OwnAdapter`) --------------------------------------------------


def build(
    name: str, *, model_args: dict[str, Any], num_classes: int | None, weights: Path | None
) -> nn.Module:
    raise RequestError(
        f"{name}: is built around a backbone; name that as the model, with task = 'segmentation'"
    )


def open_directory(directory: Path, *, random: bool, num_classes: int | None) -> nn.Module:
    raise RequestError(f"{directory}: is a segmenter without pela.json, which says how to read it")


def rebuild(directory: Path) -> nn.Module:
    """From config.json: the backbone by its own library, and the heads around it."""
    config = config_file.read(directory, "make the artefact anew")
    backbone_config = config["backbone"]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(
            json.dumps(backbone_config["config"]), encoding="utf-8"
        )
        backbone = upstream(backbone_config["library"]).rebuild(Path(folder))
    return Segmenter(backbone, config)


def config(module: nn.Module) -> dict[str, Any]:
    return copy.deepcopy(_own(module).config)


def inputs(module: nn.Module, directory: Path | None) -> Inputs:
    config = _own(module).config
    size, image = config["image_size"], config["input"]
    return ImageInput(
        (image["channels"], size, size),
        tuple(image["mean"]),
        tuple(image["std"]),
        image["interpolation"],
    )


def example(module: nn.Module, inputs: Any) -> Tensor:
    return torch.zeros(1, *inputs.size, device=next(module.parameters()).device)


def head(module: nn.Module) -> frozenset[str]:
    heads = [name for name, _ in module.named_children() if name != "backbone"]
    return frozenset(heads)


def num_classes(module: nn.Module) -> int | None:
    return int(_own(module).config["num_classes"])


def set_classes(module: nn.Module, num_classes: int) -> None:
    segmenter = _own(module)
    for part in (segmenter.decode_head, segmenter.auxiliary_head):
        if part is not None:
            old = part.classifier
            part.classifier = nn.Conv2d(old.in_channels, num_classes, 1).to(old.weight.device)
    segmenter.config["num_classes"] = num_classes


def pairs(module: nn.Module) -> None:
    """None: it reads no texts."""


def _own(module: nn.Module) -> Segmenter:
    assert isinstance(module, Segmenter)
    return module
