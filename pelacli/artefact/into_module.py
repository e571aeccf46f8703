"""Read an artefact of a user's own class: the plan is applied to a dense module of that class,
which is then filled strictly."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from pelacli.artefact.loading import Artefact
from pelacli.artefact.rebuilding import forms_of, ranks_of, read_config
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.lowrank.replace import replace_empty
from pelacli.manifest import digests, document, integrity
from pelacli.models import carried, torch_module, wrapping
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import load_strictly, stored_tensors


def load_into(module: nn.Module, path: Path) -> Artefact:
    """Make a dense module what an artefact holds, in place.

    It gets the artefact's weights, in their precision, and eval mode. What the artefact does not
    hold (buffers that are not persistent, what is frozen) stays as it is.

    Args:
        module: a fresh one, built as the one that was saved. Its weights may be on "meta".

    Raises:
        RequestError: the artefact is of a library that builds its models itself, the module is of
            another class, low-rank already or has other layers, or a file is damaged. The module is
            as it was then.
    """
    manifest = document.read(path)
    if manifest.library != torch_module.NAME:
        raise RequestError(
            f"{path}: is a model of {manifest.library}, built from its config.json; leave model out"
        )
    carried.check_read_files(path)
    _check_class(module, read_config(path), path)
    integrity.check(path, manifest)
    files = digests.weight_files(path)
    frozen = {name for name, p in module.named_parameters() if not p.requires_grad}
    with _as_before_on_error(module):
        try:
            replace_empty(module, ranks_of(manifest), forms_of(manifest))
        except RequestError as error:
            raise RequestError(f"{path}: {error}; {_REMEDY}") from None
        load_strictly(module, stored_tensors(files), path, hint=f"; {_REMEDY}", tied=manifest.tied)
        for name, buffer in module.named_buffers():
            if buffer.is_meta:
                raise RequestError(
                    f'{path}: does not hold {name}, which has no values on "meta"; build the model '
                    "on the CPU"
                )
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(parameter.requires_grad and name not in frozen)
        module.eval()
    opened = replace(wrapping.wrap(module), ref=str(path), source=manifest.source)
    return Artefact(opened, manifest)


_REMEDY = "build the model with the arguments of the one that was saved"


def check_writable(opened: OpenModel) -> None:
    """Refuse a module whose state is more than the tensors of its parts: `load_into` could not give
    it back.

    Raises:
        RequestError: naming the entry of the state.
    """
    module = opened.module
    slots = {
        f"{prefix}.{name}" if prefix else name
        for prefix, part in module.named_modules(remove_duplicate=False)
        for name in [*part._parameters, *part._buffers]
    }
    for name, value in module.state_dict().items():
        if not isinstance(value, Tensor) or name not in slots:
            raise RequestError(
                f"{opened.ref}: {name} in its state is no parameter or buffer and would not come "
                "back; keep it in a buffer"
            )
        if value.layout != torch.strided or value.is_quantized or value.is_meta:
            raise RequestError(f"{opened.ref}: {name} is no dense tensor; a file can't hold it")
        try:
            safetensors.torch.save({name: value.new_empty(0)})
        except (KeyError, ValueError, SafetensorError):
            raise RequestError(
                f"{opened.ref}: {name} is {value.dtype}, for which safetensors has no form"
            ) from None


def _check_class(module: nn.Module, config: dict[str, object], path: Path) -> None:
    saved, given = str(config.get("class", "")).rpartition(".")[2], type(module).__name__
    if saved != given:
        raise RequestError(f"{path}: is a model of {saved}, not of {given}; give model={saved}(…)")
    if find.low_rank_layers(module):
        raise RequestError(f"model: {given} is low-rank already; give a dense one, freshly built")


@contextmanager
def _as_before_on_error(module: nn.Module) -> Iterator[None]:
    """An error, or Ctrl-C, leaves every part of the module as it was."""
    parts = list(module.modules())
    held = [
        (part, part.training, {**part._modules}, {**part._parameters}, {**part._buffers})
        for part in parts
    ]
    lists = [
        (items, items[:]) for part in parts for items in vars(part).values() if type(items) is list
    ]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        yield
    except BaseException:
        for part, training, modules, parameters, buffers in held:
            part._modules, part._parameters, part._buffers = modules, parameters, buffers
            part.training = training
        for items, before in lists:
            items[:] = before
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        raise
