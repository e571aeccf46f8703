"""ARTEFACT → a file or directory for runtimes that know no pela, loaded again and compared."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelacli import console
from pelacli.artefact import loading
from pelacli.errors import PelaError, RequestError
from pelacli.exports import samples, targets
from pelacli.exports.agreement import BOUNDS, largest_difference
from pelacli.exports.calls import Call
from pelacli.exports.order import Order
from pelacli.exports.targets import Target
from pelacli.measure.latency import DTYPES
from pelacli.models.opened import OpenModel
from pelacli.steps.latency import own_precision
from pelacli.system import drafts
from pelacli.system.amounts import Unit
from pelacli.version import __version__

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class Request:
    """What to export to, and how.

    Attributes:
        to: name of the target, see `pelacli.exports.targets`.
        path: of what is written, a new one.
        precision: "fp32", "fp16" or "bf16"; None: as the artefact is stored, or "fp32" where the
            target has not that.
        opset: of ONNX; None: torch's default.
        data: a dataset to compare on; None: samples of pela's own.
        batches: samples in its place.
        tolerance: the largest relative difference that is allowed; None: the precision's, see
            `pelacli.exports.agreement`.
    """

    to: str
    path: Path
    precision: str | None = None
    opset: int | None = None
    data: str | None = None
    batches: Sequence[Any] | None = None
    tolerance: float | None = None


@dataclass
class Exported:
    """What was written, and how far it is from the artefact.

    Attributes:
        model: what was exported.
        difference: the largest relative one; bound: the largest that is allowed.
        batches: of each the shapes of its inputs by name, and its difference.
        size: bytes of all files.
    """

    model: str
    to: str
    path: Path
    precision: str
    opset: int | None
    difference: float
    bound: float
    batches: list[dict[str, Any]]
    size: int = field(default=0)
    seconds: float = field(default=0.0)

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "artefact": self.model,
            "to": self.to,
            "path": str(self.path),
            "precision": self.precision,
            "opset": self.opset,
            "difference": self.difference,
            "bound": self.bound,
            "batches": self.batches,
            "bytes": self.size,
            "seconds": self.seconds,
        }


def run(source: str, request: Request) -> Exported:
    """Export an artefact, or a model that is stored dense.

    Raises:
        RequestError: the request can't be met; nothing is written.
        PelaError: what was written is too far from the artefact; it is removed.
    """
    check(request)
    with console.file_progress(f"opening {source}"):
        opened, _ = loading.open(source, as_stored=True)
    return export(opened, request)


def check(request: Request) -> None:
    """Refuse what can't be met, as far as that shows without the model.

    Raises:
        RequestError: naming the option.
    """
    target = targets.get(request.to)
    target.check_installed()
    if request.precision is not None and request.precision not in target.PRECISIONS:
        raise RequestError(
            f"--precision {request.precision}: --to {request.to} takes "
            f"{', '.join(target.PRECISIONS)}"
        )
    if request.opset is not None and request.opset not in target.OPSETS:
        known = target.OPSETS
        remedy = f"give {known[0]} to {known[-1]}" if known else "it is for --to onnx; leave it out"
        raise RequestError(f"--opset {request.opset}: {remedy}")
    if request.tolerance is not None and not 0 < request.tolerance < math.inf:
        raise RequestError(f"--tolerance {request.tolerance:g}: give a number above 0, as 1e-3")
    if target.SUFFIX and request.path.suffix != target.SUFFIX:
        raise RequestError(
            f"--output {request.path}: --to {request.to} writes a file; give it a name that ends "
            f"in {target.SUFFIX}"
        )
    drafts.check_is_new(request.path)


@torch.no_grad()
def export(opened: OpenModel, request: Request) -> Exported:
    """Write an opened model and compare what was written with it. Its module is changed."""
    start = time.perf_counter()
    target = targets.get(request.to)
    call = target.call(opened).eval()
    precision = _precision(opened, request, target)
    kind = DTYPES[precision]
    _cast(opened, torch.float32)
    given = samples.batches(opened, call, request.data, request.batches)
    batches = [_inputs(call, batch, torch.float32) for batch in given]
    expected = [call(**batch) for batch in batches]
    target.prepare(opened)
    _cast(opened, kind)
    example = _inputs(call, samples.plain(opened, call)[0], kind)
    with (
        drafts.draft(request.path) as at,
        console.file_progress(f"exporting {opened.ref}", 1.0, Unit.SHARE) as bar,
    ):
        target.write(Order(opened, call, example, request.opset, bar.reach), at)
        outputs = target.run(at, [_inputs(call, batch, kind) for batch in batches], opened)
        compared = [_compared(*one) for one in zip(batches, expected, outputs, strict=True)]
        result = Exported(
            opened.ref,
            request.to,
            request.path,
            precision,
            request.opset,
            max(batch["difference"] for batch in compared),
            BOUNDS[precision] if request.tolerance is None else request.tolerance,
            compared,
        )
        _refuse_if_far(result)
        target.record(at, _record(result))
        result.size = sum(f.stat().st_size for f in at.parent.rglob("*") if f.is_file())
    result.seconds = time.perf_counter() - start
    return result


def _precision(opened: OpenModel, request: Request, target: Target) -> str:
    """The name of the one that is written."""
    if request.precision is not None:
        return request.precision
    stored = own_precision(opened)
    if stored in target.PRECISIONS:
        return stored
    console.warn(f"{opened.ref}: is stored in {stored}; --to {request.to} writes fp32")
    return "fp32"


def _cast(opened: OpenModel, kind: torch.dtype) -> None:
    """Give a module's floating tensors one type. What transformers computes when it builds a model
    (rotary frequencies) stays in float32, as there."""
    if opened.library != "transformers":
        opened.module.to(kind)
        return
    for tensor in opened.module.state_dict(keep_vars=True).values():
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(kind)


def _inputs(call: Call, batch: Batch, kind: torch.dtype) -> dict[str, Tensor]:
    """What the call takes of a batch."""
    return {
        name: value.to(kind) if value.is_floating_point() else value
        for name, value in batch.items()
        if not call.names or name in call.names
    }


def _compared(batch: Batch, expected: Batch, outputs: Batch) -> dict[str, Any]:
    shapes = {name: list(value.shape) for name, value in batch.items()}
    difference = largest_difference(expected, outputs, batch.get("attention_mask"))
    return {"inputs": shapes, "difference": difference}


def _refuse_if_far(result: Exported) -> None:
    if result.difference > result.bound:
        is_number = math.isfinite(result.difference)
        remedy = "; --tolerance sets another bound" if is_number else ""
        raise PelaError(
            f"{result.path}: nothing is written: the largest relative difference to "
            f"{result.model} would be {result.difference:.1e} in {result.precision}, and "
            f"{result.bound:.1e} is allowed{remedy}"
        )


def _record(result: Exported) -> dict[str, Any]:
    """What is kept in the export: no paths of this machine."""
    return {
        "pela": __version__,
        "model": Path(result.model).name,
        "precision": result.precision,
        "difference": result.difference,
    }
