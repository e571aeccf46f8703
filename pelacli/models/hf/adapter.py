"""Everything pela knows about transformers: build, weights, config, inputs, head."""

from __future__ import annotations

import contextlib
import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import transformers
from torch import nn

from pelacli.errors import RequestError
from pelacli.messages import did_you_mean, naming, one_line
from pelacli.models import config_file, extent, pooling
from pelacli.models.around import timm_backbone
from pelacli.models.hf import (
    classes,
    detectors,
    foreign_code,
    labels,
    lazily,
    loading,
    processors,
    segmenters,
)
from pelacli.models.hf.examples import arguments, sees
from pelacli.models.hf.examples import example as example
from pelacli.models.hf.heads import with_head as with_head
from pelacli.models.hf.texts import text_input
from pelacli.models.inputs import ImageInput, Inputs, PairInput
from pelacli.models.on_disk import WeightsOnDisk
from pelacli.models.pairs import hf as pair_views
from pelacli.models.pairs.repairs import repair
from pelacli.models.pairs.view import PairModel
from pelacli.models.without_values import parameters_without_values

_ANY_SIZE = 224  # pixels a side of an image, where neither model nor processor says


def is_type(name: str) -> bool:
    """Whether transformers knows ``name`` as a model type ("bert", "gpt2", …)."""
    return name in transformers.CONFIG_MAPPING


def types() -> list[str]:
    """All model types of transformers."""
    return list(transformers.CONFIG_MAPPING)


def build_random(model_type: str, model_args: dict[str, Any], num_classes: int | None) -> nn.Module:
    """A model of this type with its default configuration, randomly initialised.

    Raises:
        RequestError: model_args that the type doesn't have, or that don't fit.
    """
    _refuse_unknown(transformers.AutoConfig.for_model(model_type), model_args, model_type)
    foreign_code.refuse(model_args, f"{model_type}: model_args")
    try:
        config = transformers.AutoConfig.for_model(model_type, **model_args)
        config = _with_classes(config, num_classes)
        remedy = "change model_args"
        extent.check(lambda: from_config(copy.deepcopy(config)), None, model_type, remedy)
        return from_config(config)
    except RequestError:
        raise
    except Exception as error:  # each architecture checks in its own way
        raise RequestError(f"{model_type}: model_args don't fit: {one_line(error)}") from None


def open_directory(
    directory: Path, *, random: bool, model_args: dict[str, Any], num_classes: int | None
) -> nn.Module:
    """Open a model directory.

    Raises:
        RequestError: config or weights can't be used, or don't fit each other.
    """
    loading.refuse_quantised(directory)
    config = _with_classes(read_config(directory, model_args), num_classes)
    if random:
        remedy = "change model_args" if model_args else "restore the file"
        where = f"{directory}/config.json"
        extent.check(lambda: from_config(copy.deepcopy(config)), None, where, remedy)
        with naming(f"{where}: can't be built from it", remedy):
            module = from_config(config)
        pooling.hold(module, directory)
        return module
    if not any(directory.glob("*.safetensors")):
        raise RequestError(
            f"{directory}: has no safetensors weights, and pela never unpickles; convert them, "
            "or use --weights random"
        )
    module = loading.load(directory, config, num_classes)
    repair(module)
    pooling.hold(module, directory)
    return module


def open_lazily(
    directory: Path, model_args: dict[str, Any]
) -> tuple[nn.Module, WeightsOnDisk] | None:
    """Open a model directory and leave the weights in their files; None where that can't be done.

    Raises:
        RequestError: the config can't be used.
    """
    loading.refuse_quantised(directory)
    lazy = lazily.load(directory, read_config(directory, model_args))
    if lazy is not None:
        repair(lazy[0])
        pooling.hold(lazy[0], directory)
    return lazy


def read_config(directory: Path, model_args: dict[str, Any]) -> Any:
    """config.json as transformers reads it."""
    timm_backbone.register()  # detectors around a timm model name it
    restore = "restore the file"
    foreign_code.refuse(config_file.read(directory, restore), f"{directory}/{config_file.FILE}")
    foreign_code.refuse(model_args, f"{directory}: model_args")
    with naming(f"{directory}/{config_file.FILE}", restore):
        plain = transformers.AutoConfig.from_pretrained(directory, trust_remote_code=False)
        named = plain.architectures or []
        if not isinstance(named, list) or not all(isinstance(name, str) for name in named):
            raise ValueError("architectures is no list of names")
        _refuse_unknown(plain, model_args, str(directory))
        if not model_args:
            return plain
        return transformers.AutoConfig.from_pretrained(
            directory, trust_remote_code=False, **model_args
        )


def from_config(config: Any) -> nn.Module:
    """The class that the config names, built from it, with fresh weights."""
    cls = classes.class_of(config)
    config.architectures = config.architectures or []  # Funnel's two are looked for in it
    module: nn.Module = classes.built(cls, config)
    repair(module)
    return module


def rebuild(directory: Path) -> nn.Module:
    """The dense architecture that config.json describes, its weights on "meta".

    Buffers that no checkpoint holds (positions, rotary frequencies) have their values.
    """
    module: nn.Module | None = None
    with contextlib.suppress(RuntimeError), parameters_without_values():
        module = from_config(read_config(directory, {}))
    if module is not None:  # built without memory, shared weights come apart
        module.tie_weights()  # type: ignore[operator]
    # What is computed from a weight there is only the long way.
    if module is None or any(b.is_meta for b in module.buffers()):
        module = from_config(read_config(directory, {}))
    pooling.hold(module, directory)
    return module


def config(module: nn.Module) -> dict[str, Any]:
    """config.json as transformers writes it, with the class to load it by."""
    module.config.architectures = [type(module).__name__]  # type: ignore[union-attr]
    text: str = module.config.to_json_string()  # type: ignore[union-attr,operator]
    result: dict[str, Any] = json.loads(text)
    return result


def inputs(module: nn.Module, directory: Path | None) -> Inputs:
    """What a sample of this model looks like, from its own files where there are any."""
    if detectors.is_detector(module):
        return detectors.inputs(module, directory)
    config: Any = module.config
    takes = arguments(module)
    takes_images = "pixel_values" in takes and ("input_ids" not in takes or sees(module))
    vision = getattr(config, "vision_config", getattr(config, "backbone_config", None) or config)
    if takes_images and "input_ids" not in takes:
        images = _image_input(vision, directory)
        if type(module).__name__.endswith("ForImageClassification"):
            images = replace(images, labels=labels.read(config))
        return images
    with loading.quiet():
        text = text_input(module, getattr(config, "text_config", None) or config, directory)
    return PairInput(_image_input(vision, directory), text) if takes_images else text


def head(module: nn.Module) -> frozenset[str]:
    """Names of the modules that make the output: the output embeddings, and what is no backbone."""
    names: set[str] = set()
    get: Any = getattr(module, "get_output_embeddings", lambda: None)
    output = get()
    names |= pair_views.head(module)
    base = getattr(module, "base_model", module)
    for name, child in module.named_modules():
        if output is not None and child is output:
            names.add(name)
    if base is not module:
        names |= {name for name, child in module.named_children() if child is not base}
    if detectors.is_detector(module):
        names |= detectors.head(module)
    return frozenset(names)


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give the model a fresh classifier in the place of the one it has."""
    if detectors.is_detector(module):
        detectors.set_classes(module, num_classes)
    elif segmenters.segments(module):
        segmenters.set_classes(module, num_classes)
    else:
        _set_classifier(module, num_classes)
    labels.forget(module.config)


def _set_classifier(module: nn.Module, num_classes: int) -> None:
    old = getattr(module, "classifier", None)
    if not isinstance(old, nn.Linear):
        raise RequestError(
            f"{type(module).__name__}: has no classifier to exchange; start from a checkpoint with "
            "a classification head"
        )
    module.classifier = nn.Linear(old.in_features, num_classes, old.bias is not None)
    module.num_labels = module.config.num_labels = num_classes  # type: ignore[union-attr,assignment]


def name_classes(module: nn.Module, names: Sequence[str]) -> None:
    """Keep the names of the model's classes in its configuration."""
    labels.write(module.config, names)


def num_classes(module: nn.Module) -> int | None:
    """Outputs of the classifier; None for a model without one."""
    # Every configuration has num_labels, whether the model has a classifier or not.
    kinds = ("Classification", "Segmentation", "ObjectDetection")
    classifies = any(kind in type(module).__name__ for kind in kinds)
    labels: Any = getattr(module.config, "num_labels", None)
    return int(labels) if labels and (classifies or hasattr(module, "classifier")) else None


def pairs(module: nn.Module) -> PairModel | None:
    """What the tasks on images with texts ask of the model; None where it isn't made for these."""
    return pair_views.view(module)


def _image_input(vision: Any, directory: Path | None) -> ImageInput:
    processor = processors.read(directory)
    where = "config.json" if directory is None else f"{directory}: preprocessor_config.json"
    with naming(where, processors.RESTORE):
        return _described(vision, processor)


def _described(vision: Any, processor: dict[str, Any]) -> ImageInput:
    size = getattr(vision, "image_size", None)
    size = size or getattr(getattr(vision, "backbone_config", None), "image_size", None)
    size = size or _size_of(processor)
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    crop = processor.get("crop_size") or {}
    resize = (processor.get("size") or {}).get("shortest_edge", height)
    resample = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    return ImageInput(
        (channels, height, width),
        tuple(processor.get("image_mean", [0.5] * channels)),
        tuple(processor.get("image_std", [0.5] * channels)),
        resample.get(processor.get("resample", 2), "bilinear"),
        float(crop.get("height", height)) / resize if crop else 1.0,
        processor or None,
    )


def _size_of(processor: dict[str, Any]) -> int | tuple[int, int]:
    """Of a model that takes images of any size (SegFormer): its processor's, or else ImageNet's."""
    size = processor.get("size") or _ANY_SIZE
    if isinstance(size, dict):
        short = size.get("shortest_edge")
        return short or (size["height"], size["width"])
    return int(size)


def _refuse_unknown(config: Any, model_args: dict[str, Any], where: str) -> None:
    """transformers would keep a misspelt setting and do nothing with it."""
    for name in model_args:
        if not hasattr(config, name) and not hasattr(config, f"_{name}"):
            hint = did_you_mean(name, config.to_dict(), before="; ")
            raise RequestError(f"{where}: model_args: its configuration has no {name!r}{hint}")


def _with_classes(config: Any, num_classes: int | None) -> Any:
    if num_classes is not None:
        config.num_labels = num_classes
    return config
