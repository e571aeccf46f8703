"""The classes of transformers: the one that a configuration names, its family, its encoder."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from transformers.models.auto import modeling_auto

from pelacli.models.without_values import on_meta


def class_of(config: Any) -> Any:
    """The class a config names; AutoModel where it names none that exists here."""
    return named(config) or transformers.AutoModel


def named(config: Any) -> Any:
    """The first class of those a config names that exists here; None where there is none."""
    classes = [getattr(transformers, name, None) for name in config.architectures or []]
    return next((cls for cls in classes if _is_model(cls)), None)


def _is_model(cls: Any) -> bool:
    is_auto = getattr(cls, "__name__", "").startswith("AutoModel")
    return isinstance(cls, type) and (is_auto or issubclass(cls, transformers.PreTrainedModel))


def encoder(config: Any) -> Any:
    """The family's class without a head; None where it has none."""
    return transformers.AutoModel._model_mapping.get(type(config), None)


def family(config: Any) -> Iterator[Any]:
    """All classes that transformers' own tables list for this type of model."""
    seen: set[str] = set()
    for table, classes in vars(modeling_auto).items():
        if not re.fullmatch(r"MODEL_(\w+_)?MAPPING_NAMES", table):
            continue
        entry = classes.get(config.model_type, ())
        for name in (entry,) if isinstance(entry, str) else entry:
            cls = getattr(transformers, name, None)
            if cls is not None and name not in seen:
                seen.add(name)
                yield cls


def shapes_of(cls: Any, config: Any, **changes: Any) -> dict[str, torch.Size]:
    """The tensors that a class has by a configuration, built without memory.

    Args:
        changes: to the configuration.
    """
    config = copy.deepcopy(config)
    for name, value in changes.items():
        setattr(config, name, value)
    with torch.random.fork_rng(devices=[]), on_meta():
        module = built(cls, config)
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def built(cls: Any, config: Any) -> Any:
    """A model of a class, or of an Auto class, with fresh weights."""
    if hasattr(cls, "_from_config"):
        return cls._from_config(config)
    return cls.from_config(config, trust_remote_code=False)
