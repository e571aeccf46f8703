"""Another class of a transformers family around the layers that a model has."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from typing import Any

import transformers
from torch import nn
from transformers.models.auto import modeling_auto

from pelacli.errors import RequestError
from pelacli.lowrank.linear import LowRankLinear


def with_head(
    module: nn.Module, kind: str, classes: Sequence[str] = (), pad_token_id: int | None = None
) -> nn.Module:
    """See `pelacli.models.heads.with_head`."""
    config: Any = copy.deepcopy(module.config)
    auto = getattr(transformers, f"AutoModelFor{kind}" if kind else "AutoModel")
    if classes:
        config.num_labels = len(classes)
        config.id2label = dict(enumerate(classes))
        config.label2id = {name: number for number, name in enumerate(classes)}
    if getattr(config, "pad_token_id", None) is None and pad_token_id is not None:
        config.pad_token_id = pad_token_id
    config.architectures = None
    try:
        new: nn.Module = auto.from_config(config, trust_remote_code=False)
    except ValueError:  # with a long list of all the families that have one
        raise RequestError(
            f"{type(module).__name__}: transformers has no {auto.__name__} of this family"
        ) from None
    old_base, new_base = _base(module), _base(new)
    if old_base is not module and new_base is not new:
        adopt(new, module)
    adopt(new_base, old_base)
    _tie(new, module)
    if hasattr(module, "pela_pooling") and not kind:
        new.pela_pooling = module.pela_pooling
    return new


def adopt(new: nn.Module, old: nn.Module) -> None:
    """Put the innermost modules of ``old`` in the places of ``new``'s of the same name and shape,
    and its tables of parameters too."""
    new_modules = dict(new.named_modules(remove_duplicate=False))
    for name, child in old.named_modules(remove_duplicate=False):
        if name not in new_modules:
            continue
        innermost = isinstance(child, LowRankLinear) or not any(True for _ in child.children())
        if innermost and name and _shape(child) == _shape(new_modules[name]):
            parent, _, last = name.rpartition(".")
            setattr(new.get_submodule(parent), last, child)
        elif not innermost:
            for key, parameter in child._parameters.items():
                target = new_modules[name]._parameters.get(key)
                if parameter is not None and target is not None and target.shape == parameter.shape:
                    new_modules[name]._parameters[key] = parameter


def _tie(new: Any, old: nn.Module) -> None:
    """Tie what the configuration ties, but what both models have and the old one holds apart: its
    checkpoint had a head of its own, whatever its configuration says."""
    parameters = dict(old.named_parameters(remove_duplicate=False))
    for target, source in list(new.all_tied_weights_keys.items()):
        if parameters.get(target) is not parameters.get(source, parameters.get(target)):
            del new.all_tied_weights_keys[target]
    new.tie_weights(recompute_mapping=False)


def _base(module: nn.Module) -> nn.Module:
    base: nn.Module = getattr(module, "base_model", module)
    return base


def _shape(module: nn.Module) -> Any:
    """Class and shapes of a module; a linear map of any rank is (out, in)."""
    if isinstance(module, LowRankLinear):
        return module.out_features, module.in_features
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    if type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
        return module.nf, module.nx
    return type(module).__name__, {n: tuple(p.shape) for n, p in module.named_parameters()}


def causal(module: nn.Module) -> bool | None:
    """Whether a language model predicts the next token, or masked ones; None: neither."""
    name = type(module).__name__
    if name in _names(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES):
        return True
    masked = name in _names(modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES)
    return False if masked or name.endswith("ForPreTraining") else None


def _names(table: Any) -> set[str]:
    keys: set[str] = set()
    for value in table.values():
        keys |= {value} if isinstance(value, str) else set(value)
    return keys


def own_classes(module: nn.Module) -> tuple[str, ...] | None:
    """The model's names of its classes, where they are more than numbers."""
    if "Classification" not in type(module).__name__:
        return None
    table = getattr(module.config, "id2label", None) or {}
    names = [str(table[key]) for key in sorted(table)]
    if not names or all(re.fullmatch(r"(label_?)?\d+", name.casefold()) for name in names):
        return None
    return tuple(names)
