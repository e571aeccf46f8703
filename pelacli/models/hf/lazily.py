"""A transformers model with its weights left in their files.

What transformers renames while it loads, which types it wants and what it ties is asked of the
library: it loads stand-ins of the tensors that take no memory, and where each of them has gone is
seen afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from pelacli.models.hf import classes
from pelacli.models.hf.loading import quiet
from pelacli.models.hf.weight_choice import files_of
from pelacli.models.on_disk import WeightsOnDisk, constant
from pelacli.models.plain_reading import Stored, stored
from pelacli.models.without_values import on_meta

_MOST_ALIKE = 8  # tensors of one shape that are compared with each other


def load(directory: Path, config: Any) -> tuple[nn.Module, WeightsOnDisk] | None:
    """The class that the config names, its parameters on "meta", and where its weights lie.

    None where anything is out of the ordinary: weights that don't fit, or that transformers
    computes from others (a mixture's experts). `loading.load` knows what to do or to say.
    """
    cls = classes.named(config)
    tensors = _stored(files_of(directory, config))
    if tensors is None or not isinstance(cls, type):
        return None
    if not issubclass(cls, transformers.PreTrainedModel) or _has_other_files(config):
        return None
    with quiet():
        try:
            return _load(cls, config, tensors)
        except Exception:  # transformers raises whatever it likes; the ordinary way names it
            return None


def _has_other_files(config: Any) -> bool:
    """Whether transformers would read other files than those that are commonly there."""
    return bool(getattr(type(config), "extra_files", None))


def _stored(files: Iterable[Path]) -> dict[str, Stored] | None:
    tensors: dict[str, Stored] = {}
    for file in files:
        more = stored(file)
        if more is None or more.keys() & tensors.keys():
            return None
        tensors |= more
    return tensors


def _load(
    cls: Any, config: Any, tensors: Mapping[str, Stored]
) -> tuple[nn.Module, WeightsOnDisk] | None:
    if _converts(cls, config, tensors):
        return None
    stand_ins = {name: _StandIn(tensor) for name, tensor in tensors.items()}
    module = _filled(cls, config, stand_ins)
    if module is None:
        return None
    # A tensor that was taken and has gone is tied to another: stand-ins are all alike.
    taken = {name for name, stand_in in stand_ins.items() if stand_in.made is not None}
    if gone := taken - set(_sources(module, stand_ins).values()):
        values = _values_by_content([tensors[name] for name in taken], gone)
        if values is None:
            return None
        stand_ins = {name: _StandIn(t, values.get(name, 0)) for name, t in tensors.items()}
        module = _filled(cls, config, stand_ins)
    if module is None or not _is_as_stored(module, stand_ins):
        return None
    return _emptied(module, stand_ins)


def _converts(cls: Any, config: Any, names: Iterable[str]) -> bool:
    """Whether transformers does more with a tensor than give it another name."""
    with torch.random.fork_rng(devices=[]), on_meta():
        module = cls._from_config(config)
    transforms = get_model_conversion_mapping(module) or []
    renamings = [t for t in transforms if isinstance(t, WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, WeightConverter)]
    if not converters:
        return False
    return any(rename_source_key(name, renamings, converters)[1] is not None for name in names)


class _StandIn:
    """What transformers is given as a tensor that it reads, as a slice of safetensors is.

    Attributes:
        made: what it has got: of the right shape and type, all of one number. None as long as it
            has not asked.
    """

    def __init__(self, tensor: Stored, value: int = 0) -> None:
        self.stored, self.value, self.dtype = tensor, value, tensor.dtype
        self.made: Tensor | None = None

    def is_floating_point(self) -> bool:
        return self.dtype.is_floating_point

    def __getitem__(self, _: Any) -> _StandIn:
        return self

    def to(self, *, device: Any = None, dtype: torch.dtype | None = None) -> Tensor:
        self.made = constant(self.stored.shape, dtype or self.dtype, self.value)
        return self.made


def _filled(cls: Any, config: Any, stand_ins: Mapping[str, _StandIn]) -> nn.Module | None:
    """The class, filled with stand-ins; None where they don't all fit as they are."""
    module: nn.Module
    module, info = cls.from_pretrained(
        None,
        config=config,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        state_dict=stand_ins,
        trust_remote_code=False,
    )
    fits = not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return module if fits else None


def _sources(module: nn.Module, stand_ins: Mapping[str, _StandIn]) -> dict[str, str]:
    """Name in the module's state → the file's name of what has been put there."""
    at = {s.made.data_ptr(): name for name, s in stand_ins.items() if s.made is not None}
    state = module.state_dict(keep_vars=True).items()
    return {name: at[t.data_ptr()] for name, t in state if t.data_ptr() in at}


def _is_as_stored(module: nn.Module, stand_ins: Mapping[str, _StandIn]) -> bool:
    """Whether each tensor of the module is one of the files', and no copy that something was done
    to (BERT's bias is padded by nothing), and no parameter is stored as integers."""
    sources = _sources(module, stand_ins)
    return all(
        name in sources
        and (
            stand_ins[sources[name]].dtype.is_floating_point or not isinstance(tensor, nn.Parameter)
        )
        for name, tensor in module.state_dict(keep_vars=True).items()
    )


def _values_by_content(tensors: Iterable[Stored], gone: set[str]) -> dict[str, int] | None:
    """A number for each tensor that is like a tied one in shape: the same for equal tensors alone.
    None where there are too many to be compared."""
    tensors = list(tensors)
    kinds = {(t.shape, t.dtype) for t in tensors if t.name in gone}
    values: dict[str, int] = {}
    for kind in kinds:
        alike = sorted((t for t in tensors if (t.shape, t.dtype) == kind), key=lambda t: t.name)
        if len(alike) > _MOST_ALIKE:
            return None
        firsts: list[Stored] = []
        for tensor in alike:
            read = tensor.read()
            equal = (i for i, first in enumerate(firsts) if torch.equal(first.read(), read))
            values[tensor.name] = next(equal, len(firsts))
            if values[tensor.name] == len(firsts):
                firsts.append(tensor)
    return values


def _emptied(
    module: nn.Module, stand_ins: Mapping[str, _StandIn]
) -> tuple[nn.Module, WeightsOnDisk]:
    """The module with its parameters on "meta" and its buffers read, and where its weights lie."""
    sources = _sources(module, stand_ins)
    state = module.state_dict(keep_vars=True)
    empty: dict[int, nn.Parameter] = {}
    for name in sources:
        parent, _, key = name.rpartition(".")
        part, old = module.get_submodule(parent), state[name]
        if isinstance(old, nn.Parameter):
            new = nn.Parameter(old.detach().to("meta"), old.requires_grad)
            part._parameters[key] = empty.setdefault(id(old), new)
        else:
            part._buffers[key] = stand_ins[sources[name]].stored.read().to(old.dtype)
    stored = {name: stand_ins[source].stored for name, source in sources.items()}
    return module, WeightsOnDisk(stored, {name: state[name].dtype for name in sources})
