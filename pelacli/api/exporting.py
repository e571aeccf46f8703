"""Write a model for runtimes that know no pela."""

from __future__ import annotations

import copy
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from pelacli.api import arguments
from pelacli.api.files import kept
from pelacli.artefact import roundtrip
from pelacli.models import wrapping
from pelacli.steps import export as steps_export
from pelacli.steps.export import Exported, Request
from pelacli.system import precisions


@arguments.suggesting
def export(
    model: str | Path | nn.Module,
    path: str | Path,
    *,
    to: str,
    precision: str | None = None,
    opset: int | None = None,
    batches: Any = None,
    tolerance: float | None = None,
) -> Exported:
    """Write a model as ``pela export`` does, load it again and compare it.

    Args:
        model: an artefact; or a module of timm or transformers, low-rank or dense, which stays as
            it is.
        path: what to write, a new file (.onnx, .pt2) or directory.
        to: "dense", a directory of timm or transformers whose layers are dense; "onnx" or "torch"
            (torch.export), a file whose layers are low-rank.
        precision: "fp32", "fp16" or "bf16", which "onnx" does not take; None: that of the model.
        opset: of ONNX; None: torch's default.
        batches: samples to compare on, as `decompose` takes them; None: samples of pela's own.
        tolerance: the largest relative difference that its outputs may have to the model's; None:
            1e-4 in fp32, 3e-2 in fp16, 2e-1 in bf16.

    Returns:
        What was written, with the largest relative difference of its outputs to the model's.

    Raises:
        RequestError: the request can't be met; nothing is written.
        PelaError: what was written is too far from the model; it is removed.

    Example::

        >>> model = timm.create_model("test_vit")
        >>> plan = pelacli.decompose(model, ratio=0.6)
        >>> pelacli.export(model, "dense_vit", to="dense").difference < 1e-5
        True
    """
    given = None if batches is None else arguments.samples(batches)
    kind = precisions.canonical(precision)
    request = Request(to, arguments.path(path), kind, opset, batches=given, tolerance=tolerance)
    if isinstance(model, str | Path):
        arguments.path(model)
        return steps_export.run(os.path.expanduser(model), request)
    steps_export.check(request)
    arguments.module(model)
    opened = kept(model)[0] or wrapping.wrap(model)
    roundtrip.check_merged(opened)
    whole = replace(opened, module=copy.deepcopy(model).cpu().eval())
    return steps_export.export(whole, request)
