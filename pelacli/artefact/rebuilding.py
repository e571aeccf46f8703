"""Build the low-rank architecture of an artefact again, without the values of its weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank import replace
from pelacli.manifest.document import Manifest
from pelacli.messages import one_line
from pelacli.models import libraries


def read_config(path: Path) -> dict[str, Any]:
    """config.json of an artefact.

    Raises:
        RequestError: it is missing, or no JSON object.
    """
    file = path / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise RequestError(f"{file}: not JSON ({error}); make the artefact anew") from None
    if not isinstance(config, dict):
        raise RequestError(f"{file}: not a configuration; make the artefact anew")
    return config


def rebuild(path: Path, manifest: Manifest) -> nn.Module:
    """The low-rank architecture that config.json and the manifest describe."""
    module = rebuild_dense(path, manifest.library)
    replace.replace_empty(module, ranks_of(manifest))
    return module


def rebuild_dense(path: Path, library: str) -> nn.Module:
    """The dense architecture that config.json describes."""
    try:
        module: nn.Module = libraries.library(library).rebuild(path)
    except RequestError:
        raise
    except Exception as error:  # the libraries raise whatever their builders raise
        reason = one_line(error)
        raise RequestError(f"{path / 'config.json'}: can't be rebuilt from it: {reason}") from None
    return module


def ranks_of(manifest: Manifest) -> dict[str, int]:
    """The rank of each low-rank layer."""
    return {layer.name: layer.rank for layer in manifest.layers if layer.rank is not None}
