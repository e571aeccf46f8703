"""The adapters of timm and transformers, each imported when it is asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pelacli.errors import RequestError
from pelacli.models.adapters import Adapter


def _timm() -> Adapter:
    from pelacli.models.timm import adapter

    return adapter


def _transformers() -> Adapter:
    from pelacli.models.hf import adapter

    return adapter


UPSTREAM: Mapping[str, Callable[[], Adapter]] = {"timm": _timm, "transformers": _transformers}


def upstream(name: str) -> Adapter:
    """The adapter of "timm" or "transformers".

    Raises:
        RequestError: it is neither.
    """
    if name not in UPSTREAM:
        raise RequestError(f"library {name!r}: it is neither timm nor transformers")
    return UPSTREAM[name]()
