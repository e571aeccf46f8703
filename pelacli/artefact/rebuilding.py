"""Build the low-rank architecture of an artefact again, without the values of its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from pelacli.lowrank import replace
from pelacli.manifest.document import Manifest
from pelacli.messages import naming
from pelacli.models import config_file, libraries
from pelacli.ranks.forms import Form

REMEDY = "make the artefact anew"


def read_config(path: Path) -> dict[str, Any]:
    """config.json of an artefact.

    Raises:
        RequestError: it is missing, or no JSON object.
    """
    return config_file.read(path, REMEDY)


def rebuild(path: Path, manifest: Manifest) -> nn.Module:
    """The low-rank architecture that config.json and the manifest describe."""
    module = rebuild_dense(path, manifest.library)
    replace.replace_empty(module, ranks_of(manifest), forms_of(manifest))
    return module


def rebuild_dense(path: Path, library: str) -> nn.Module:
    """The dense architecture that config.json describes."""
    with naming(f"{path / config_file.FILE}: can't be rebuilt from it", REMEDY):
        return libraries.library(library).rebuild(path)


def forms_of(manifest: Manifest) -> dict[str, Form]:
    """The form of each low-rank layer."""
    return {layer.name: layer.form for layer in manifest.layers if layer.form is not None}


def ranks_of(manifest: Manifest) -> dict[str, int]:
    """The rank of each low-rank layer."""
    return {layer.name: layer.rank for layer in manifest.layers if layer.rank is not None}
