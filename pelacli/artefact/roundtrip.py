"""Whether a model would come back from what an artefact holds of it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn

from pelacli.artefact.rebuilding import rebuild
from pelacli.errors import RequestError
from pelacli.manifest.document import Manifest
from pelacli.models import heads
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import ties


def check_readable(opened: OpenModel, manifest: Manifest) -> None:
    """Refuse a module that `load` could not read back from what `save` would write: where somebody
    has exchanged a layer, config.json may build another one in its place.

    The network is built once more from its description, without the weights' values.

    Raises:
        RequestError: naming the first layer that would not come back.
    """
    check_finite(opened)
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        opened.describe(Path(folder))
        try:
            rebuilt = rebuild(Path(folder), manifest)
        except RequestError as error:
            reason = str(error).replace(f"{folder}/", "").replace(folder, opened.ref)
            raise RequestError(f"{opened.ref}: could not be read back: {reason}") from None
    difference = _other_tensors(opened.module, rebuilt) or _other_class(opened.module, rebuilt)
    if difference is not None:
        raise RequestError(
            f"{opened.ref}: could not be read back: {difference}; change the configuration with "
            "the layer (model.config of transformers, reset_classifier of timm)"
        )


def check_finite(opened: OpenModel) -> None:
    """Refuse a module that training has ruined: `load` would refuse its file.

    Raises:
        RequestError: naming the first parameter that is not finite.
    """
    for name, parameter in opened.module.named_parameters():
        if not parameter.isfinite().all():
            raise RequestError(f"{opened.ref}: {name} holds values that are not finite")


def check_merged(opened: OpenModel) -> None:
    """Refuse a module with adapters of peft, or with weights that torchao has
    quantised, which an artefact has no form for.

    Raises:
        RequestError: naming the first of them.
    """
    for name, parameter in opened.module.named_parameters():
        kind = type(parameter.data)
        if kind.__module__.startswith("torchao."):
            raise RequestError(
                f"{opened.ref}: {name} is quantised ({kind.__name__}), which an artefact can't "
                "hold; save the model before that, and its quantised state by torch.save"
            )
    for name, part in opened.module.named_modules():
        if any(cls.__name__ == "BaseTunerLayer" for cls in type(part).__mro__):
            raise RequestError(
                f"{opened.ref}: {name} has an adapter of peft, which an artefact can't hold; save "
                "the adapter by its own save_pretrained, or what merge_and_unload() gives"
            )


def _other_tensors(module: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first tensor that the module and the one rebuilt from its description do not share."""
    ours, theirs = (m.state_dict(keep_vars=True) for m in (module, rebuilt))
    for name, tensor in ours.items():
        if name not in theirs:
            return f"config.json builds no {name}"
        shape, built = tuple(tensor.shape), tuple(theirs[name].shape)
        if shape != built:
            return f"{name} has shape {shape}, and config.json builds {built}"
    for name in theirs:
        if name not in ours:
            return f"config.json builds {name}, and the model has no such tensor"
    # What config.json ties and here differs is stored twice, and comes back as it is.
    for name, first in ties(module).items():
        if theirs[name] is not theirs[first]:
            return f"{name} is tied to {first}, and config.json does not tie them"
    return None


def _other_class(module: nn.Module, rebuilt: nn.Module) -> str | None:
    """The first innermost part whose class is another one in the rebuilt module: activations have
    no tensors to tell them apart. Parts that hold others are passed over, since some models
    exchange them while they run (BigBird its attention, for short texts)."""
    built = dict(rebuilt.named_modules())
    for name, part in module.named_modules():
        other = built.get(name, part)
        if any(True for m in (part, other) for _ in m.children()):
            continue
        if type(part) is not type(other) and not _equal_in_eval_mode(part, other):
            kinds = type(part).__name__, type(other).__name__
            return f"{name} is {kinds[0]}, and config.json builds {kinds[1]}"
    return None


def _equal_in_eval_mode(part: nn.Module, other: nn.Module) -> bool:
    """Whether two parts of different classes differ in training alone: dropout and its absence, or
    two kinds of batch norm (synchronised, frozen)."""
    normed = all("running_mean" in m._buffers for m in (part, other))
    return normed or all(heads.is_idle(m) for m in (part, other))
