"""A model's own configuration says which of its layers are low-rank, so that whatever saves the
model (``save_pretrained``, ``Trainer``, sentence-transformers) writes it into config.json."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from pelacli.lowrank import find
from pelacli.manifest import low_rank_config


def state(module: nn.Module) -> None:
    """Write the low-rank layers that a module has now into the configurations of the models of
    transformers in it, or take them out where it has none any more."""
    for model in _outermost(module):
        config: Any = model.config
        layers = find.low_rank_layers(model)
        stated = low_rank_config.with_layers(
            {},
            "transformers",
            {name: layer.rank for name, layer in layers.items()},
            {name: layer.form for name, layer in layers.items()},
        )
        for key in low_rank_config.KEYS:
            value = getattr(config, key, None)
            if key in stated:
                setattr(config, key, stated[key])
            elif low_rank_config.is_ours(value):
                delattr(config, key)


def _outermost(module: nn.Module) -> Iterator[nn.Module]:
    """The models of transformers in a module. Parts of one share its configuration.

    They are told by their class: what is built around one may answer with its attributes.
    """
    if any(cls.__name__ == "PreTrainedModel" for cls in type(module).__mro__):
        yield module
        return
    for child in module.children():
        yield from _outermost(child)
