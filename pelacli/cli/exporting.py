"""``pela export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli.options import Json


def export(
    artefact: Annotated[
        str, typer.Argument(metavar="ARTEFACT", help="Artefact, run directory, or id of the hub.")
    ],
    to: Annotated[
        str,
        typer.Option(
            help="dense: a directory of timm or transformers, factors multiplied out. onnx, torch: "
            "a file (.onnx; .pt2 of torch.export), layers low-rank."
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="What to write; it must not exist yet.")
    ],
    precision: Annotated[
        str | None,
        typer.Option(help="fp32, fp16 or, but for onnx, bf16; by default as it is stored."),
    ] = None,
    opset: Annotated[
        int | None, typer.Option(help="Of ONNX, 18 to 23; by default torch's own choice.")
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option("--data", help="Dataset to compare on; by default samples of pela's own."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="The largest relative difference that it may have; by default 1e-4 in fp32, 3e-2 "
            "in fp16, 2e-1 in bf16."
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for runtimes that know no pela, load it again, and compare it."""
    from pelacli.cli import output as cli_output
    from pelacli.steps import export as steps_export
    from pelacli.system import precisions

    kind = precisions.canonical(precision)
    request = steps_export.Request(to, output, kind, opset, dataset, tolerance=tolerance)
    cli_output.print_exported(steps_export.run(artefact, request), json)
