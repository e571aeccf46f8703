"""A graph of torch.export (.pt2), which runs, compiles and lowers without the model's code::

model = torch.export.load("model.pt2").module()
model(input_ids=…, attention_mask=…)["logits"]
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pelacli.exports import calls
from pelacli.exports.order import Order
from pelacli.exports.tracing import faults_of, quiet, trace
from pelacli.models.opened import OpenModel

SUFFIX = ".pt2"
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16")
OPSETS = range(0)
call = calls.of
# Shares of an export's time that are over then; docs/log/first-minutes.md has the measurement.
_TRACED, _WRITTEN = 0.5, 0.67


def check_installed() -> None:
    """torch is there."""


def prepare(opened: OpenModel) -> None:
    """The graph is of the module as it is."""


def write(order: Order, at: Path) -> None:
    """See `pelacli.exports.targets.Target`."""
    program = trace(order.opened, order.call, order.example)
    order.reach(_TRACED, 1)
    with faults_of(order.opened, "torch.export"), quiet():
        torch.export.save(program, at)
    order.reach(_WRITTEN, 1)


def run(at: Path, batches: list[dict[str, Tensor]], opened: OpenModel) -> list[dict[str, Tensor]]:
    """See `pelacli.exports.targets.Target`."""
    with faults_of(opened, "torch.export"), quiet(), torch.no_grad():
        module = torch.export.load(at).module()
        return [module(**batch) for batch in batches]


def record(at: Path, document: dict[str, Any]) -> None:
    """As ``extra_files["pela.json"]`` of torch.export.load."""
    with zipfile.ZipFile(at, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/extra/pela.json", json.dumps(document))
