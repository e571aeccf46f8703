"""Make an artefact of a low-rank checkpoint of other code."""

from __future__ import annotations

import copy
import os
import time
from dataclasses import replace
from pathlib import Path

from torch import nn

from pelacli.api import arguments
from pelacli.api.files import kept
from pelacli.artefact import into_module, roundtrip
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.models import torch_module, wrapping
from pelacli.steps import importing
from pelacli.steps.importing import Imported


@arguments.suggesting
def import_checkpoint(
    checkpoint: str | Path, path: str | Path, *, model: str | Path | nn.Module
) -> Imported:
    """Make an artefact of a checkpoint whose layers are pairs of matrices, as ``pela import`` does.

    Args:
        checkpoint: a safetensors or ``.pth`` file of other code. Which names its pairs may have is
            said in "Use it elsewhere"; ranks and the order of a pair are read from the shapes.
        path: a new directory, an empty one, or an artefact, which is replaced.
        model: the dense model that was factorised, for its architecture; its weights are not used.
            Whatever ``pela decompose`` takes as a model; or a module, which stays as it is. An
            artefact of a class of your own is read by ``pelacli.load(path, model=…)``.

    Returns:
        The artefact's ``path``, and ``ranks``, a dict of its low-rank layers.

    Raises:
        RequestError: the checkpoint can't be read, or does not fit the model; nothing is written.
        PelaError: the disk refuses.

    Example::

        >>> class Net(nn.Sequential):
        ...     def __init__(self):
        ...         super().__init__(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))
        >>> tensors = Net().state_dict()
        >>> del tensors["0.weight"]
        >>> tensors |= {"0.V": torch.randn(5, 32), "0.U": torch.randn(64, 5)}
        >>> torch.save(tensors, "low_rank.pth")
        >>> pelacli.import_checkpoint("low_rank.pth", "imported", model=Net()).ranks
        {'0': 5}
    """
    file, output = arguments.path(checkpoint), arguments.path(path)
    if isinstance(model, str | Path):
        arguments.path(model)
        return importing.run(file, os.path.expanduser(model), output)
    start = time.perf_counter()
    module = arguments.module(model)
    if find.low_rank_layers(module):
        raise RequestError("model: is low-rank already; give the dense model")
    opened = kept(module)[0] or wrapping.wrap(module)
    roundtrip.check_merged(opened)
    tensors = importing.read(file, output)
    opened = replace(opened, module=copy.deepcopy(module).cpu())
    if opened.library == torch_module.NAME:
        into_module.check_writable(opened)
    return importing.write(opened, opened.ref, tensors, file, output, start)
