"""Everything pela knows about timm: build, weights, config, inputs, head."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import timm.data.model_config
import timm.models._hub
import torch
from torch import nn

from pelacli.errors import RequestError
from pelacli.manifest import low_rank_config
from pelacli.messages import one_line
from pelacli.models.inputs import ImageInput, Inputs
from pelacli.models.timm.loading import build as build
from pelacli.models.timm.loading import quiet
from pelacli.models.without_values import on_meta

_CLASS_NAMES = ("label_names", "label_descriptions")  # in timm's pretrained_cfg


def is_model(name: str) -> bool:
    """Whether timm knows the architecture (with or without a pretrained tag)."""
    return bool(timm.is_model(name.split(".")[0]))


def names() -> list[str]:
    """All architectures of timm."""
    return list(timm.list_models())


def on_the_hub(name: str) -> tuple[str, str | None] | None:
    """(repository, weights file) of an architecture's checkpoint; None where there is none.

    Raises:
        RequestError: unknown tag.
    """
    try:
        cfg = timm.get_pretrained_cfg(name, allow_unregistered=False)
    except RuntimeError:
        tags = ", ".join(timm.list_pretrained(name.split(".")[0] + ".*")[:6]) or "none"
        raise RequestError(f"{name}: unknown pretrained tag; known: {tags}") from None
    return (cfg.hf_hub_id, cfg.hf_hub_filename) if cfg is not None and cfg.hf_hub_id else None


def rebuild(directory: Path) -> nn.Module:
    """The dense architecture that config.json describes, its weights without values or memory.

    Buffers that no checkpoint holds (position tables, attention masks) have their values.
    """
    module = _built(f"local-dir:{directory}")
    stated = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    whole = low_rank_config.with_classifier(stated).get("pretrained_cfg") or {}
    if "classifier" in whole:
        network: Any = module
        network.pretrained_cfg = {**network.pretrained_cfg, "classifier": whole["classifier"]}
    return module


def _built(name: str) -> nn.Module:
    with quiet():
        with on_meta():
            module: nn.Module = timm.create_model(name, pretrained=False)
        missing = [
            m
            for m in module.modules()
            if m._non_persistent_buffers_set and not hasattr(m, "init_non_persistent_buffers")
        ]
        if missing:  # only the long way computes them
            module = timm.create_model(name, pretrained=False)
    if missing:
        return module
    module.to_empty(device="cpu")  # untouched pages cost nothing
    for m in module.modules():
        fill: Any = getattr(m, "init_non_persistent_buffers", None)
        if fill is not None:
            fill()
    return module


def from_config(config: dict[str, Any]) -> nn.Module:
    """The dense architecture that a config.json describes, with fresh weights."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with quiet():
            module: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=False)
    return module


def config(module: nn.Module) -> dict[str, Any]:
    """config.json in timm's hub layout.

    Raises:
        RequestError: the model was built with an argument that JSON has no form for.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        # At the top of the file, where timm and the hub look for them first.
        about = dict(getattr(module, "pretrained_cfg", {}))
        named = (
            {key: about[key] for key in _CLASS_NAMES if about.get(key)} if _labels(module) else {}
        )
        try:
            timm.models._hub.save_config_for_hf(module, str(path), model_config=named)
        except ValueError as error:
            raise RequestError(
                f"{type(module).__name__}: timm can't describe it: {one_line(error)}"
            ) from None
        result: dict[str, Any] = json.loads(path.read_text())
    return result


def inputs(module: nn.Module, directory: Path | None = None) -> ImageInput:
    """Size and preprocessing of the model's images; the module itself knows them."""
    data = timm.data.model_config.resolve_input_data_config(module)
    return ImageInput(
        tuple(data["input_size"]),
        tuple(data["mean"]),
        tuple(data["std"]),
        data["interpolation"],
        float(data["crop_pct"]),
        labels=_labels(module),
        fixed=True,
    )


def _labels(module: nn.Module) -> tuple[str, ...]:
    """The names of the model's classes by number; none where they are not known for each."""
    named: Any = getattr(module, "pretrained_cfg", {}).get("label_names") or ()
    if isinstance(named, dict):  # number → name, the numbers perhaps as strings
        by_number = {str(number): name for number, name in named.items()}
        named = [by_number.get(str(number)) for number in range(len(by_number))]
    names = [name for name in named if isinstance(name, str)]
    return tuple(names) if len(names) == len(named) == num_classes(module) else ()


def head(module: nn.Module) -> frozenset[str]:
    """Names of the classifier's modules; none for a model without classes."""
    get: Any = getattr(module, "get_classifier", lambda: None)
    classifier = get()
    parts = classifier if isinstance(classifier, tuple | list) else [classifier]
    return frozenset(
        name
        for name, child in module.named_modules()
        if any(child is part for part in parts) and not isinstance(child, nn.Identity)
    )


def example(module: nn.Module, inputs: Inputs) -> torch.Tensor:
    """One image, to count FLOPs at."""
    assert isinstance(inputs, ImageInput)  # timm has no other kind
    return torch.zeros(1, *inputs.size, device=next(module.parameters()).device)


def num_classes(module: nn.Module) -> int | None:
    """Outputs of the classifier; None for a model without one."""
    return int(getattr(module, "num_classes", 0) or 0) or None


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give the model a fresh classifier."""
    network: Any = module
    network.reset_classifier(num_classes)
    about = network.pretrained_cfg  # its names of classes were the old head's
    network.pretrained_cfg = {k: v for k, v in about.items() if k not in _CLASS_NAMES}


def name_classes(module: nn.Module, names: Sequence[str]) -> None:
    """Keep the names of the model's classes where timm does."""
    network: Any = module
    about = {k: v for k, v in network.pretrained_cfg.items() if k not in _CLASS_NAMES}
    network.pretrained_cfg = about | {"label_names": list(names)}


def pairs(module: nn.Module) -> None:
    """None: timm's models read no texts."""
