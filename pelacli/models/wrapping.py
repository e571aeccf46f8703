"""A module as `open` would have given it."""

from __future__ import annotations

from pathlib import Path
from typing import overload

from torch import nn

from pelacli.errors import RequestError
from pelacli.manifest.document import SourceRecord
from pelacli.models.libraries import library
from pelacli.models.opened import OpenModel


@overload
def wrap(module: nn.Module) -> OpenModel: ...
@overload
def wrap(module: nn.Module, *, must: bool) -> OpenModel | None: ...
def wrap(module: nn.Module, *, must: bool = True) -> OpenModel | None:
    """What `open` would have given for a module that the caller built.

    Args:
        must: raise where the module's library is unknown; else give None.

    Raises:
        RequestError: the module is neither timm's nor transformers'.
    """
    name = type(module).__name__
    if hasattr(module, "pela_model"):
        return describe(name, module, str(module.pela_model), None, name, "in memory", None)
    if hasattr(module, "pretrained_cfg"):
        return describe(name, module, "timm", None, name, "in memory", None)
    if hasattr(getattr(module, "config", None), "to_json_string"):
        return describe(name, module, "transformers", None, name, "in memory", None)
    if must:
        raise RequestError(f"{name}: neither timm's nor transformers', so it can't be rebuilt")
    return None


def describe(
    ref: str,
    module: nn.Module,
    lib: str,
    folder: Path | None,
    asked: str,
    weights: str,
    digest: str | None,
) -> OpenModel:
    adapter = library(lib)
    config = adapter.config(module)
    architecture = config.get("architecture") or type(module).__name__
    source = SourceRecord(
        model=asked, library=lib, architecture=architecture, weights=weights, digest=digest
    )
    inputs = adapter.inputs(module, folder)
    return OpenModel(module, ref, lib, config, {}, source, inputs, adapter.head(module))
