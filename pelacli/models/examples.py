"""A sample to run a model on: what its FLOPs are counted at."""

from __future__ import annotations

from torch import Tensor

from pelacli.models.libraries import library
from pelacli.models.opened import OpenModel


def example(opened: OpenModel) -> Tensor | dict[str, Tensor] | None:
    """A batch of one sample, where the model is: what its FLOPs are counted at. None for a module
    of the user's own class."""
    return library(opened.library).example(opened.module, opened.inputs)
