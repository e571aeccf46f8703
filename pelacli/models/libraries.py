"""The table of all libraries: timm, transformers, pela's own models, and plain modules of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import nn

from pelacli.errors import RequestError
from pelacli.models.adapters import Adapter, OwnAdapter
from pelacli.models.upstream import UPSTREAM


def _albef() -> OwnAdapter:
    from pelacli.models.albef import adapter

    return adapter


def _segmenter() -> OwnAdapter:
    from pelacli.models.around import segmenter

    return segmenter


def _torch() -> Adapter:
    from pelacli.models import torch_module

    return torch_module


# The config.json of pela's own models names their library under "pela_model".
_OWN: Mapping[str, Callable[[], OwnAdapter]] = {"albef": _albef, "segmenter": _segmenter}
OWN_NAMES: dict[str, str] = {"albef": "albef"}  # the name that `open` takes → its library


def library(name: str) -> Adapter:
    """The adapter of a library.

    Raises:
        RequestError: this version of pela doesn't know it.
    """
    adapters: dict[str, Callable[[], Adapter]] = {**UPSTREAM, **_OWN, "torch": _torch}
    if name not in adapters:
        known = ", ".join(adapters)
        raise RequestError(f"library {name!r}: this version of pela knows {known} only")
    return adapters[name]()


def of(module: nn.Module) -> str:
    """The library that a module is a model of, by what these set on their models; "torch" where it
    is of none. No library is imported to answer this."""
    if hasattr(module, "pela_model"):
        return str(module.pela_model)
    if hasattr(module, "pretrained_cfg"):
        return "timm"
    if hasattr(getattr(module, "config", None), "to_json_string"):
        return "transformers"
    return "torch"


def own(name: str) -> OwnAdapter:
    """The adapter of a model of pela's own.

    Raises:
        RequestError: pela has no model of that name.
    """
    if name not in _OWN:
        raise RequestError(f"library {name!r}: pela's own models are {', '.join(_OWN)}")
    return _OWN[name]()
