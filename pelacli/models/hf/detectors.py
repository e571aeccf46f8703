"""Object detectors of transformers: their processors, heads and classes, and new ones around a
backbone that is there already, low-rank or not.

YOLOS, DETR and its kin (Conditional, Deformable and DAB-DETR, RT-DETR, D-FINE, LW-DETR) all give
``logits`` [B, queries, classes (+ 1)] and ``pred_boxes`` [B, queries, 4].
"""

from __future__ import annotations

import inspect
import json
import re
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import transformers
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.lowrank.linear import LowRankLinear
from pelacli.messages import naming, one_line
from pelacli.models.hf import processors
from pelacli.models.hf.labels import read as read_labels
from pelacli.models.inputs import ImageInput
from pelacli.system import processes

# Of families that transformers' own table has no processor for: what their checkpoints come with.
_PROCESSORS = {
    "d_fine": "RTDetrImageProcessor",
    "rt_detr_v2": "RTDetrImageProcessor",
    "dab-detr": "ConditionalDetrImageProcessor",
}
# What classifies, places or proposes boxes, wherever a family keeps it.
_HEAD = re.compile(
    r"(class_embed|bbox_embed|class_labels_classifier|bbox_predictor|score_head|bbox_head"
    r"|ref_point_head|ref_anchor_head|reference_points)$"
)


def is_detector(module: nn.Module) -> bool:
    """Whether the module finds objects of its own classes, and not what a text names (OWL-ViT)."""
    named = "input_ids" in inspect.signature(module.forward).parameters
    return "ObjectDetection" in type(module).__name__ and not named


# Inputs ------------------------------------------------------------------------------------------


def inputs(module: nn.Module, directory: Path | None) -> ImageInput:
    """What a detector's sample looks like, by its own processor or its family's default one."""
    settings = processors.read(directory)
    with naming(f"{directory}: preprocessor_config.json", processors.RESTORE):
        return describe(module, settings)


def describe(module: nn.Module, processor: Mapping[str, Any]) -> ImageInput:
    """`inputs` with a processor of these settings."""
    config: Any = module.config
    settings = dict(processor)
    if "image_processor_type" not in settings and "feature_extractor_type" not in settings:
        settings["image_processor_type"] = _default_processor(config.model_type)
    image_size = getattr(config, "image_size", None)
    if image_size is not None and "size" not in settings:
        edges = [image_size] * 2 if isinstance(image_size, int) else image_size
        settings["size"] = {"shortest_edge": min(edges), "longest_edge": max(edges)}
    transform = _processor(json.dumps(settings))
    size = image_size or getattr(config, "anchor_image_size", None)
    if size is None:  # it takes any; most of COCO's images are 4:3
        short = transform.size.get("shortest_edge")
        size = (
            (short, short * 4 // 3)
            if short
            else (transform.size["height"], transform.size["width"])
        )
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(config, "num_channels", 3)
    return ImageInput(
        (channels, height, width),
        tuple(transform.image_mean),
        tuple(transform.image_std),
        "bilinear",
        1.0,
        settings,
        mask="pixel_mask" in inspect.signature(module.forward).parameters,
        labels=read_labels(config),
    )


def image_processor(inputs: ImageInput) -> Any:
    """The image processor of transformers that a detector's own settings describe; for a model that
    is none yet, DETR's with the model's mean and deviation, and its size where that is fixed.

    Raises:
        RequestError: transformers cannot build it.
    """
    if inputs.processor is not None:
        described = _processor(json.dumps(dict(inputs.processor)))
        if hasattr(described, "post_process_object_detection"):
            return described
    settings: dict[str, Any] = {"image_processor_type": "DetrImageProcessor"}
    settings |= {"image_mean": list(inputs.mean), "image_std": list(inputs.std)}
    if inputs.fixed:
        settings["size"] = {"height": inputs.size[1], "width": inputs.size[2]}
    return _processor(json.dumps(settings))


def sized(processor: Any, side: int | None) -> dict[str, int]:
    """The processor's size with another side: of the square, or of the shorter edge, where the
    longest edge there may be grows or shrinks with it."""
    size = {key: value for key, value in dict(processor.size).items() if value}
    if side is None:
        return size
    if "shortest_edge" in size:
        longest = size.get("longest_edge", 2 * size["shortest_edge"])
        return {
            "shortest_edge": side,
            "longest_edge": round(longest * side / size["shortest_edge"]),
        }
    return {"height": side, "width": side}


def detections(module: nn.Module, output: Any, sizes: Tensor) -> list[dict[str, Tensor]]:
    """The boxes that a detector found, by its family's own post-processing.

    Args:
        output: of the module's forward.
        sizes: [B, 2] height and width of each image.

    Returns:
        For each image ``boxes`` [n, 4] (left, top, right, bottom in pixels), ``scores`` [n],
        ``labels`` [n].
    """
    config: Any = module.config
    settings = json.dumps({"image_processor_type": _default_processor(config.model_type)})
    detections: list[dict[str, Tensor]] = _processor(settings).post_process_object_detection(
        output, threshold=0.0, target_sizes=sizes
    )
    return detections


def _default_processor(model_type: str) -> str:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING_NAMES

    names = IMAGE_PROCESSOR_MAPPING_NAMES.get(model_type) or {}
    name = names.get("torchvision") or _PROCESSORS.get(model_type)
    if name is None:
        raise RequestError(f"{model_type}: transformers has no image processor for this family")
    return str(name)


@cache
def _processor(settings: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "preprocessor_config.json").write_text(settings, encoding="utf-8")
        try:
            return transformers.AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)
        except Exception as error:  # each processor checks in its own way
            raise RequestError(f"preprocessor_config.json: {one_line(error, 200)}") from None


def run(module: nn.Module, batch: Mapping[str, Tensor], **more: Any) -> Any:
    """The module's output on a batch.

    Raises:
        RequestError: it is no detector, or the images' sides do not fit its strides.
    """
    if not is_detector(module):
        raise RequestError(
            f"{type(module).__name__}: no detector; `pela finetune` with task 'detection' builds "
            "one around it"
        )
    strides = getattr(module.config, "feat_strides", None)
    if strides and any(side % max(strides) for side in batch["pixel_values"].shape[-2:]):
        height, width = batch["pixel_values"].shape[-2:]
        raise RequestError(
            f"images of {height}x{width}: {type(module).__name__} wants sides that are multiples "
            f"of {max(strides)}; set data.image_size (or task_args.sizes) so"
        )
    return module(**batch, **more)


# Losses ------------------------------------------------------------------------------------------


def with_loss(
    module: nn.Module, batch: Mapping[str, Tensor], labels: list[dict[str, Tensor]]
) -> Any:
    """The module's output on a batch with ``loss_dict``, the weighted parts of its own loss, which
    sum up to it: "class", "box" (L1) and "giou", each over all layers that are supervised.

    Queries that a model in training adds for denoising are in the loss alone: the output has the
    shape that it has in evaluation.

    Args:
        labels: for each image ``class_labels`` [n] and ``boxes`` [n, 4], as the model takes them.
    """
    output = run(module, batch, labels=labels)
    output["loss_dict"] = _parts(module.config, output)
    for part in _parts_per_box(module) & output["loss_dict"].keys():
        output["loss_dict"][part] = output["loss_dict"][part] * _box_correction(labels)
    queries = getattr(module.config, "num_queries", None)
    if queries is not None and output.get("denoising_meta_values") is not None:
        output["logits"] = output.logits[:, -queries:]
        output["pred_boxes"] = output.pred_boxes[:, -queries:]
    return output


def _parts_per_box(module: nn.Module) -> set[str]:
    """The parts of the loss that are divided by DETR's number of boxes, where there are several
    processes. Families with code of their own (RT-DETR and its kin) count them right."""
    if processes.rank_and_size()[1] == 1:
        return set()
    kind = str(getattr(getattr(module, "loss_function", None), "__module__", "")).rpartition(".")[2]
    return {
        "loss_for_object_detection": {"box", "giou"},
        "loss_deformable_detr": {"class", "box", "giou"},  # focal loss
    }.get(kind, set())


def _box_correction(labels: list[dict[str, Tensor]]) -> float:
    """What makes DETR's losses means over the boxes of all processes, as in its own code.

    transformers takes accelerate's mean over the processes and divides it by their number once
    more, which makes these losses, and not the classes', larger by as much.
    """
    size = processes.rank_and_size()[1]
    mean = processes.total(sum(len(label["class_labels"]) for label in labels)) / size
    return max(mean / size, 1.0) / max(mean, 1.0)


def _parts(config: Any, output: Any) -> dict[str, Tensor]:
    if hasattr(config, "weight_loss_bbox"):  # RT-DETR and its kin list them with their weights
        weights: dict[str, float] = {}
    elif hasattr(config, "bbox_loss_coefficient"):
        weights = {
            "ce": getattr(config, "class_loss_coefficient", 1.0),
            "bbox": config.bbox_loss_coefficient,
            "giou": config.giou_loss_coefficient,
        }
    else:
        return {"task": output.loss}
    names = {"ce": "class", "vfl": "class", "mal": "class", "focal": "class", "bbox": "box"}
    parts: dict[str, Tensor] = {}
    for key, value in output.loss_dict.items():
        match = re.match(r"loss_([a-z]+)", key)
        if match is None:  # figures for logging alone
            continue
        part = names.get(match[1], match[1])
        parts[part] = parts.get(part, 0.0) + weights.get(match[1], 1.0) * value
    return parts


def selects_queries(module: nn.Module) -> bool:
    """Whether its decoder works on the best places of each image (RT-DETR): then the same query of
    two models need not be about the same place, and a decoder's features cannot be compared."""
    return any(
        name.endswith(("enc_score_head", "enc_output", "enc_out_class_embed"))
        for name, _ in module.named_modules()
    )


# Heads -------------------------------------------------------------------------------------------


def head(module: nn.Module) -> frozenset[str]:
    """Names of the modules that classify and place boxes."""
    return frozenset(
        name for name, _ in module.named_modules(remove_duplicate=False) if _HEAD.search(name)
    )


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give a detector fresh parameters where their shape depends on the number of classes, as
    transformers does when it opens a checkpoint with another number; all others stay."""
    config: Any = module.config
    reference = module
    if config.num_labels == num_classes:  # compare with a model of another number
        config.num_labels = num_classes + 1
        reference = type(module)(config)
    config.num_labels = num_classes
    fresh = type(module)(config)  # its own initialisation, with the prior of rare objects
    for name, new in list(fresh.named_modules(remove_duplicate=False)):
        try:
            old = reference.get_submodule(name)
        except AttributeError:  # the reference has no module of this name
            continue
        if _shapes(old) != _shapes(new):
            parent, _, child = name.rpartition(".")
            setattr(module.get_submodule(parent), child, new.train(old.training))
    module.num_labels = num_classes  # type: ignore[assignment]


def _shapes(module: nn.Module) -> list[tuple[int, ...]]:
    """Shapes of a module's own parameters; a low-rank layer counts as the map it stands for."""
    if isinstance(module, LowRankLinear):
        bias = [] if module.bias is None else [(module.out_features,)]
        return [(module.out_features, module.in_features), *bias]
    return [tuple(p.shape) for p in module._parameters.values() if p is not None]
