"""The graph of a model, by torch.export: low-rank layers stay two products."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.export import Dim, ExportedProgram

from pelacli.errors import RequestError
from pelacli.exports.calls import Call
from pelacli.messages import one_line
from pelacli.models.inputs import TextInput
from pelacli.models.opened import OpenModel
from pelacli.system import logs

_LOGGERS = ("torch", "torch.export", "torch._export", "torch.onnx", "onnxscript", "onnx_ir")


def trace(opened: OpenModel, call: Call, example: Mapping[str, Tensor]) -> ExportedProgram:
    """The model's graph for any number of samples, and of texts any length that it reads.

    Args:
        example: inputs by name, [B, …] with B > 1.

    Raises:
        RequestError: the model does something that a graph can't hold.
    """
    dims = {0: Dim("batch", min=1)}
    inputs = opened.inputs
    if isinstance(inputs, TextInput) and not inputs.fill:
        dims[1] = Dim("sequence", min=1, max=inputs.max_length)
    with faults_of(opened, "torch.export"), quiet(), torch.no_grad():
        return torch.export.export(
            call.eval(),
            (),
            dict(example),
            dynamic_shapes=dict.fromkeys(example, dims),
            strict=False,
        )


@contextlib.contextmanager
def faults_of(opened: OpenModel, library: str) -> Iterator[None]:
    """What a library raises over a model, as a refusal in one line.

    Raises:
        RequestError: in place of any other error of the block.
    """
    try:
        yield
    except (MemoryError, OSError, RequestError):
        raise
    except Exception as error:  # exporters raise whatever the model's code and theirs raise
        raise RequestError(
            f"{opened.ref}: {type(opened.module).__name__} can't be exported by {library}: "
            f"{type(error).__name__}: {one_line(error, 200)}"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings, logs and prints of exporters: pela says what matters itself."""
    with (
        logs.at_level(_LOGGERS, logging.ERROR),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
