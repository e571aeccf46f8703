"""Detectors built around a backbone that is there already, its low-rank layers moved as they are.

YOLOS is a ViT with detection tokens (Fang et al., 2021), so a ViT's or DeiT's layers are its own.
DETR (Carion et al., 2020) reads the last feature map of any of transformers' backbones (Swin,
Swin-V2, ConvNeXt, DINOv2, …) or of a timm model with an encoder and decoder, which are fresh.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
import transformers
from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank.find import low_rank_layers
from pelacli.messages import one_line
from pelacli.models.around import timm_backbone
from pelacli.models.hf import adapter, detectors
from pelacli.models.inputs import ImageInput
from pelacli.models.opened import OpenModel

_VITS = ("vit", "deit")
_DETR: dict[str, Any] = {"auxiliary_loss": True}  # of all decoder layers: it learns little without
# A ViT layer's module → the same one's name in a YOLOS layer.
_YOLOS_LAYER = {
    "attention.q_proj": "attention.attention.query",
    "attention.k_proj": "attention.attention.key",
    "attention.v_proj": "attention.attention.value",
    "attention.o_proj": "attention.output.dense",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
    "layernorm_before": "layernorm_before",
    "layernorm_after": "layernorm_after",
}


def detector(
    opened: OpenModel,
    kind: str | None,
    classes: int,
    queries: int,
    args: Mapping[str, Any],
    seed: int,
    size: Mapping[str, int] | None = None,
) -> OpenModel:
    """A detector around the backbone of a model.

    Args:
        kind: "yolos" or "detr"; None: "yolos" for transformers' ViT or DeiT, else "detr".
        queries: objects that it can find in an image.
        args: further settings of transformers' configuration of that family.
        seed: of the fresh weights.
        size: of its images, as its processor names it; if unset the family's usual one, around a
            timm model that model's own. Around that it is the same square for all images.

    Returns:
        A model of transformers. The layers of the backbone are the very modules.

    Raises:
        RequestError: the model has no backbone that fits.
    """
    if opened.library not in ("timm", "transformers"):
        raise RequestError(
            f"{opened.ref}: pela's {opened.library}; detectors are built around models of timm and "
            "transformers"
        )
    torch.manual_seed(seed)
    if opened.library == "timm":
        side = _side(opened, size)
        module = _around_timm(opened, kind, side, classes, queries, args)
        size = {"height": side, "width": side}
    else:
        module = _around(opened, kind, classes, queries, args)
    module.train(opened.module.training)
    images = cast(ImageInput, getattr(opened.inputs, "image", opened.inputs))
    settings: dict[str, Any] = {"image_mean": list(images.mean), "image_std": list(images.std)}
    if size is not None:
        settings["size"] = dict(size)
    made = detectors.image_processor(detectors.describe(module, settings))
    processor = made.to_json_string()
    return OpenModel(
        module,
        opened.ref,
        "transformers",
        adapter.config(module),
        opened.carried | {"preprocessor_config.json": processor.encode()},
        opened.source,
        detectors.describe(module, json.loads(processor)),
        adapter.head(module),
    )


def _around(
    opened: OpenModel, kind: str | None, classes: int, queries: int, args: Mapping[str, Any]
) -> nn.Module:
    base: nn.Module = getattr(opened.module, "base_model", opened.module)
    family = base.config.model_type  # type: ignore[union-attr]
    if (kind or ("yolos" if family in _VITS else "detr")) == "detr":
        return _detr(opened.ref, base, classes, queries, args)
    if family not in _VITS:
        raise RequestError(f"{opened.ref}: YOLOS is a ViT or DeiT, and this is {family}")
    return _yolos(base, classes, queries, args)


def _around_timm(
    opened: OpenModel,
    kind: str | None,
    side: int,
    classes: int,
    queries: int,
    args: Mapping[str, Any],
) -> nn.Module:
    if kind == "yolos":
        raise RequestError(
            f"{opened.ref}: a timm model, whose q, k and v are one layer; YOLOS has three: set "
            "task_args.detector = 'detr', or start from a ViT of transformers"
        )
    channels = cast(ImageInput, opened.inputs).size[0]
    timm_backbone.register()
    backbone = timm_backbone.describe(opened.module, opened.config, channels, side)
    settings = _DETR | {"backbone_config": backbone, "num_channels": channels}
    settings |= {"num_queries": queries, "num_labels": classes, **args}
    module: nn.Module = _built("detr", settings)
    timm_backbone.adopt(module.model.backbone.model, opened.module)  # type: ignore[union-attr,arg-type]
    return module


def _side(opened: OpenModel, size: Mapping[str, int] | None) -> int:
    """Pixels a side of the images of a detector around a timm model."""
    _, height, width = cast(ImageInput, opened.inputs).size
    if size is not None:
        height, width = size["height"], size["width"]
    if height != width:
        raise RequestError(f"{opened.ref}: takes no square images; set data.image_size")
    return height


def _yolos(base: nn.Module, classes: int, queries: int, args: Mapping[str, Any]) -> nn.Module:
    vit: Any = base
    config = vit.config
    size = _edges(config.image_size)
    same = [
        *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size"),
        *("hidden_act", "layer_norm_eps", "patch_size", "num_channels", "qkv_bias"),
    ]
    settings = {name: getattr(config, name) for name in same}
    settings |= {"image_size": size, "num_detection_tokens": queries}
    settings |= {"use_mid_position_embeddings": False, "num_labels": classes, **args}
    module: nn.Module = _built("yolos", settings)
    target: Any = module.vit
    for old, new in zip(vit.layers, target.encoder.layer, strict=True):
        for source, name in _YOLOS_LAYER.items():
            _put(new, name, old.get_submodule(source))
    target.layernorm = vit.layernorm
    target.embeddings.patch_embeddings.projection = vit.embeddings.patch_embeddings.projection
    target.embeddings.cls_token = vit.embeddings.cls_token
    with torch.no_grad():
        positions = vit.embeddings.position_embeddings
        grid = [edge // config.patch_size for edge in size]
        patches = positions[:, -grid[0] * grid[1] :]
        target_grid = [edge // config.patch_size for edge in _edges(target.config.image_size)]
        table = target.embeddings.position_embeddings
        table[:, 0] = positions[:, 0]
        table[:, 1 : -target.config.num_detection_tokens] = _resized(patches, grid, target_grid)
        nn.init.trunc_normal_(table[:, -target.config.num_detection_tokens :], std=0.02)
        nn.init.trunc_normal_(target.embeddings.detection_tokens, std=0.02)
    return module


def _detr(
    ref: str, base: nn.Module, classes: int, queries: int, args: Mapping[str, Any]
) -> nn.Module:
    from transformers.models.auto.modeling_auto import MODEL_FOR_BACKBONE_MAPPING_NAMES

    config: Any = copy.deepcopy(base.config)
    if config.model_type not in MODEL_FOR_BACKBONE_MAPPING_NAMES:
        raise RequestError(
            f"{ref}: transformers has no backbone of {config.model_type}, which DETR would read"
        )
    stages = getattr(config, "stage_names", None)
    if stages:
        config.out_features = [stages[-1]]
    settings = _DETR | {"backbone_config": config, "num_queries": queries, "num_labels": classes}
    module: nn.Module = _built("detr", settings | dict(args))
    backbone: Any = module.model.backbone.model  # type: ignore[union-attr]
    # Some backbones hold the whole model (Swin), others its parts under the same names (ConvNeXt).
    target = next((m for m in backbone.modules() if type(m) is type(base)), backbone)
    for name, child in list(target.named_children()):
        own_module = getattr(base, name, None)
        if type(own_module) is type(child):
            setattr(target, name, own_module)
    inside = {id(child) for child in module.modules()}
    low = low_rank_layers(base)
    lost = [n for n, m in low.items() if id(m) not in inside and not n.startswith("pooler.")]
    if lost:
        raise RequestError(f"{ref}: its layer {lost[0]} has no place in transformers' backbone")
    return module


def _built(family: str, settings: Mapping[str, Any]) -> Any:
    try:
        config = transformers.AutoConfig.for_model(family, **settings)
        auto = transformers.AutoModelForObjectDetection
        return auto.from_config(config, trust_remote_code=False)
    except Exception as error:  # each architecture checks in its own way
        reason = one_line(error)
        raise RequestError(f"task_args.detector_args: {family} refuses them: {reason}") from None


def _edges(size: Any) -> list[int]:
    return [size, size] if isinstance(size, int) else list(size)


def _put(module: nn.Module, name: str, child: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(module.get_submodule(parent), last, child)


def _resized(patches: torch.Tensor, grid: list[int], target_grid: list[int]) -> torch.Tensor:
    """Position embeddings [1, h·w, D] at another grid."""
    if grid == target_grid:
        return patches
    table = patches.transpose(1, 2).reshape(1, -1, *grid)
    table = F.interpolate(table, size=target_grid, mode="bicubic", align_corners=False)
    return table.flatten(2).transpose(1, 2)
