"""A recipe's models as they would be opened, without the values of their weights."""

from __future__ import annotations

import copy
from pathlib import Path

from pelacli.artefact import loading, locating
from pelacli.errors import RequestError
from pelacli.manifest.digests import plain_weight_files
from pelacli.models import opening
from pelacli.models.opened import OpenModel
from pelacli.recipe.aliases import ALIASES
from pelacli.recipe.step import Opening


def of(ref: str, how: Opening) -> OpenModel:
    """The model that a recipe calls ``ref``, an artefact, a name, a file or a directory.

    Only what is small is read of it: its shapes, and what it takes. A bare file of weights says its
    shapes itself, and is read.

    Raises:
        RequestError: there is no such model, or it has no weights.
        PelaError: the hub, which would know it, can't be reached.
    """
    name = ALIASES.get(ref, ref)
    path = locating.locate(name)
    if path is not None:
        return loading.shapes(path)
    weights = how.weights
    is_named = weights in ("pretrained", "random")
    if not is_named and not Path(weights).exists():
        raise RequestError(f"weights {weights}: there is no such file or directory")
    if Path(name).is_file() or not is_named:
        return opening.open(ref, **vars(how))
    if weights == "pretrained" and Path(name).is_dir() and not plain_weight_files(Path(name)):
        raise RequestError(f"{ref}: has no safetensors weights; use weights = 'random'")
    return opening.open(ref, **vars(how), meta=True)


def copied(opened: OpenModel) -> OpenModel:
    """A model of its own of the same shapes, which a step may change."""
    other = copy.copy(opened)
    other.module = copy.deepcopy(opened.module)
    return other
