"""A graph of ONNX, by torch's own exporter, checked in onnxruntime on the CPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelacli.exports import calls
from pelacli.exports.order import Order
from pelacli.exports.tracing import faults_of, quiet, trace
from pelacli.models.opened import OpenModel
from pelacli.system import extras

SUFFIX = ".onnx"
PRECISIONS: tuple[str, ...] = (
    "fp32",
    "fp16",
)  # onnxruntime multiplies no bf16 on a CPU, so none could be checked
OPSETS = range(18, 24)  # torch writes 18 and translates from there up to 23
call = calls.of
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# Shares of an export's time that are over then; docs/log/first-minutes.md has the measurement.
_TRACED, _WRITTEN = 0.23, 0.97
_ONE_FILE = 1_900_000_000  # bytes of weights; a protobuf file ends at 2 GiB


def check_installed() -> None:
    """See `pelacli.exports.targets.Target`."""
    extras.refuse_missing(_PACKAGES, "--to onnx")


def prepare(opened: OpenModel) -> None:
    """The graph is of the module as it is."""


def write(order: Order, at: Path) -> None:
    """See `pelacli.exports.targets.Target`. Weights of more than 2 GiB lie beside the file, as
    ONNX has it, under its name with ".data" behind it."""
    for package in _PACKAGES:
        extras.require(package, "--to onnx")
    program = trace(order.opened, order.call, order.example)
    order.reach(_TRACED, 1)
    with torch.no_grad():
        outputs = list(order.call(**order.example))
    with faults_of(order.opened, "torch.onnx"), quiet():
        graph = torch.onnx.export(
            program, dynamo=True, verbose=False, opset_version=order.opset, output_names=outputs
        )
        assert graph is not None
        _name_dimensions(graph.model.graph)
        size = sum(t.nbytes for t in program.state_dict.values())
        graph.save(at, external_data=size > _ONE_FILE)
    order.reach(_WRITTEN, 1)


def _name_dimensions(graph: Any) -> None:
    """Call the dimensions that may vary "batch" and "sequence", which torch has numbered."""
    import onnx_ir

    names: dict[str, str] = {}
    for value in graph.inputs:
        for axis, size in enumerate(value.shape):
            if isinstance(size, onnx_ir.SymbolicDim) and axis < 2:
                names[str(size.value)] = ("batch", "sequence")[axis]
    for value in [*graph.inputs, *graph.outputs]:
        value.shape = onnx_ir.Shape(
            [names.get(str(getattr(size, "value", size)), size) for size in value.shape]
        )


def run(at: Path, batches: list[dict[str, Tensor]], opened: OpenModel) -> list[dict[str, Tensor]]:
    """See `pelacli.exports.targets.Target`."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    with faults_of(opened, "onnxruntime"):
        session = onnxruntime.InferenceSession(str(at), options, providers=["CPUExecutionProvider"])
        taken = {value.name for value in session.get_inputs()}
        names = [value.name for value in session.get_outputs()]
        results = []
        for batch in batches:
            feed = {name: value.numpy() for name, value in batch.items() if name in taken}
            arrays = session.run(names, feed)
            results.append(dict(zip(names, map(torch.from_numpy, arrays), strict=True)))
        return results


def record(at: Path, document: dict[str, Any]) -> None:
    """As the property "pela" of the file's metadata."""
    import onnx

    model = onnx.load(str(at), load_external_data=False)
    onnx.helper.set_model_props(model, {"pela": json.dumps(document)})
    onnx.save(model, str(at))
