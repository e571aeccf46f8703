"""Refuse configurations that need code from elsewhere. pela runs none: every call that opens a file
of transformers says ``trust_remote_code=False``, so that it never asks on standard input either."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import transformers

from pelacli.errors import RequestError
from pelacli.messages import shown

_ATTENTION = "attn_implementation"  # also within the key that transformers itself writes


def refuse(config: dict[str, Any], where: str) -> None:
    """Refuse a configuration that transformers could follow with somebody's code only.

    Args:
        config: of a model, as in config.json, or settings that take the place of some of it.

    Raises:
        RequestError: its type is none of transformers' and it names code (``auto_map``), or its
            attention is a kernel, which transformers would fetch from the hub and load.
    """
    kind = config.get("model_type")
    if config.get("auto_map") and not (isinstance(kind, str) and _is_known(kind)):
        raise RequestError(
            f"{where}: its model_type {shown(kind)} is none of transformers', and pela never runs "
            "the code that auto_map names; take a version of the model that transformers has, or "
            "build the module yourself and give it to pelacli.decompose in Python"
        )
    for key, kernel in _kernels(config):
        raise RequestError(
            f"{where}: {key} is {shown(kernel)}, a kernel from the hub, and pela never runs code "
            'from there; set it to "sdpa" or "eager"'
        )


def _is_known(model_type: str) -> bool:
    return model_type in transformers.CONFIG_MAPPING or model_type == "pela_timm"


def _kernels(part: Any) -> Iterator[tuple[str, str]]:
    """The settings of attention in a configuration, or in its parts, that name a repository."""
    for key, value in part.items() if isinstance(part, dict) else ():
        if _ATTENTION in str(key):
            by_part = value.values() if isinstance(value, dict) else [value]
            yield from ((key, one) for one in by_part if isinstance(one, str) and "/" in one)
        else:
            yield from _kernels(value)
