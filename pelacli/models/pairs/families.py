"""Which view a model of images with texts gets: a family of transformers, or a model of pela's."""

from __future__ import annotations

from torch import nn

from pelacli.errors import RequestError
from pelacli.models import libraries
from pelacli.models.pairs.view import PairModel


def find_view(module: nn.Module) -> PairModel | None:
    """The view of a module; None where it doesn't work on pairs."""
    return libraries.library(libraries.of(module)).pairs(module)


def view_of(module: nn.Module) -> PairModel:
    """The view of a module.

    Raises:
        RequestError: it doesn't work on pairs of an image and a text.
    """
    view = find_view(module)
    if view is None:
        raise RequestError(
            f"{type(module).__name__}: no model of images with texts that pela knows; CLIP, "
            "SigLIP, BLIP, ViLT and ALBEF are"
        )
    return view
