"""``pela export``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli import completion
from pelacli.cli.options import Json

EXAMPLES = (
    "pela export runs/small --to onnx -o small.onnx",
    "pela export runs/small --to dense -o small-dense",
    "pela export runs/small --to torch -o small.pt2 --precision fp16",
)


def export(
    artefact: Annotated[
        str, typer.Argument(metavar="ARTEFACT", help="An artefact, a run's directory, or a hub id.")
    ],
    to: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            autocompletion=completion.one_of("dense", "onnx", "torch"),
            help="onnx (a file) or torch (a .pt2 file of torch.export), both with low-rank layers; "
            "or dense (a directory of timm or transformers, each pair multiplied out).",
        ),
    ],
    output: Annotated[
        Path,
        typer.Option(
            "--output", "-o", metavar="PATH", help="What to write. It must not exist yet."
        ),
    ],
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="PRECISION",
            autocompletion=completion.precisions,
            help="fp32, fp16 or bf16 (not for onnx). By default as the weights are stored.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(metavar="N", help="ONNX's opset, 18 to 23. By default torch's choice."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="The data to compare on. By default samples that pela makes up.",
        ),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            metavar="DIFFERENCE",
            help="The largest relative difference that it may have. By default 1e-4 in fp32, 3e-2 "
            "in fp16 and 2e-1 in bf16.",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Write a model for programs without pela, and check that it gives the same outputs."""
    from pelacli.cli import output as cli_output
    from pelacli.steps import export as steps_export
    from pelacli.system import precisions

    kind = precisions.canonical(precision)
    request = steps_export.Request(to, output, kind, opset, dataset, tolerance=tolerance)
    cli_output.print_exported(steps_export.run(artefact, request), json)
