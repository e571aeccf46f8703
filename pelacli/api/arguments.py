"""The arguments of the Python interface: held to the recipe's rules before any work is done."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from pelacli.data import in_memory
from pelacli.errors import RequestError
from pelacli.lowrank.layer import describe
from pelacli.messages import did_you_mean, shown
from pelacli.ranks.budgets import registry as budgets
from pelacli.recipe import validation
from pelacli.recipe.decompose import Decompose

# Class of torch that runs another module → where that module is. Names would get a prefix.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}

P = ParamSpec("P")
T = TypeVar("T")


def suggesting(function: Callable[P, T]) -> Callable[P, T]:
    """The function, with the nearest known name in the TypeError for an unknown keyword."""
    parameters = inspect.signature(function).parameters.values()
    known = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    if len(known) < len(parameters):  # all that these functions take by other names are budgets
        known += [name for name in budgets.asked_of_policies() if name not in known]

    @functools.wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> T:
        for name in keywords:
            if name not in known:
                hint = did_you_mean(name, known, before="; ", otherwise=f"; known: {[*known]}")
                raise TypeError(f"{function.__name__}() has no argument {name!r}{hint}")
        return function(*args, **keywords)

    return call


def module(model: Any) -> nn.Module:
    """The model, where it is one that can be worked on.

    Raises:
        RequestError: it is no module, a wrapper of one, or has no weights of its own yet.
    """
    if not isinstance(model, nn.Module):
        what = "the class itself" if isinstance(model, type) else f"a {type(model).__name__}"
        raise RequestError(
            f"model: is {what}, not an nn.Module; pelacli.load(PATH) gives one, and so does "
            "timm.create_model(NAME)"
        )
    name = type(model).__name__
    if name in _WRAPPERS:
        inner = _WRAPPERS[name]
        raise RequestError(f"model: {name} is a wrapper; give what it wraps, model.{inner}")
    if isinstance(model, torch.jit.ScriptModule):
        raise RequestError(
            f"model: {name} is compiled by TorchScript; give the module that it was made from"
        )
    for parameter_name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise RequestError(
                f"model: {name}: {parameter_name} has no shape yet; run the model once"
            )
        if parameter.is_inference():
            raise RequestError(
                f"model: {name}: {parameter_name} was made under torch.inference_mode; build the "
                "model outside of it"
            )
    return model


def dense_module(model: Any) -> nn.Module:
    """The model, where it is one whose layers can be exchanged.

    Raises:
        RequestError: as `module`, or it is itself the layer to exchange.
    """
    if isinstance(model, nn.Module) and describe(model) is not None:
        raise RequestError(
            f"model: is itself a layer, {type(model).__name__}, which can't be exchanged in place; "
            "put it in nn.Sequential"
        )
    return module(model)


def path(value: Any) -> Path:
    """A path.

    Raises:
        RequestError: it is none.
    """
    if not isinstance(value, str | Path):
        raise RequestError(f"path: expected text or a Path, not a {type(value).__name__}")
    if not str(value):
        raise RequestError("path: is empty; name a directory")
    try:
        Path(value).exists()
        refusal = "holds a NUL character" if "\0" in str(value) else None
    except OSError as error:
        refusal = error.strerror
    if refusal:
        raise RequestError(f"path: {shown(str(value))}: {refusal}; choose another")
    return Path(value).expanduser()


def samples(batches: Any) -> list[Any]:
    """The calibration samples on the CPU; none where there are no batches.

    Raises:
        RequestError: they are nothing that a model takes.
    """
    return [] if batches is None else in_memory.unlabelled(batches)


def settings(
    *, ratio: float | str | Fraction | None, pins: Mapping[str, Any] | None, **values: Any
) -> Decompose:
    """The arguments as the settings of [decompose], held to the same rules.

    Raises:
        RequestError: one of them is no good, or none says how small.
    """
    values["ratio"] = ratio if ratio is None or isinstance(ratio, bool) else str(ratio)
    values["pin"] = dict(pins) if isinstance(pins, Mapping) else pins
    for name in ("include", "exclude"):
        values[name] = texts(name, values[name])
    result = validation.section(Decompose, values, names={"pin": "pins"})
    if all(values.get(name) is None for name in budgets.asked_of_policies()):
        raise RequestError(f"ratio: policy {result.policy} needs one, as ratio=0.5, or energy=0.95")
    if result.counted[0] == "latency":
        raise RequestError(
            'unit: "latency" is timed by the command line alone, pela decompose --unit latency; '
            'from Python count "params" or "flops"'
        )
    return result


def texts(name: str, value: Any) -> list[Any]:
    """An argument that is a list of texts; one text alone would be read letter by letter.

    Raises:
        RequestError: it is no list.
    """
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        raise RequestError(f"{name}: expected a list of texts, not {shown(value)}; put it in […]")
    return list(value)


def modules_of(model: nn.Module, name: str, value: Any) -> list[str]:
    """An argument that is a list of names of the model's modules.

    Raises:
        RequestError: the model has no module of that name.
    """
    known = [module_name for module_name, _ in model.named_modules() if module_name]
    names = texts(name, value)
    for module_name in names:
        if module_name not in known:
            hint = did_you_mean(str(module_name), known, before="; ")
            raise RequestError(f"{name}: the model has no module {shown(module_name)}{hint}")
    return names


def switch(name: str, value: Any) -> bool:
    """An argument that is True or False.

    Raises:
        RequestError: it is neither.
    """
    if not isinstance(value, bool):
        raise RequestError(f"{name}: expected True or False, not {shown(value)}")
    return value
