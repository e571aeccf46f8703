"""Which view a model of images with texts gets: a family of transformers, or a model of pela's."""

from __future__ import annotations

from torch import nn

from pelacli.errors import RequestError
from pelacli.models.libraries import library
from pelacli.models.pairs.view import PairModel


def find_view(module: nn.Module) -> PairModel | None:
    """The view of a module; None where it doesn't work on pairs."""
    name = getattr(module, "pela_model", None)
    if name is not None:
        view = getattr(library(str(name)), "pairs", None)
        return None if view is None else view(module)
    if not hasattr(getattr(module, "config", None), "to_json_string"):
        return None
    from pelacli.models.pairs import hf  # transformers is imported already, its models are not

    return hf.view(module)


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
