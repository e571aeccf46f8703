"""``pela import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli.options import Json

EXAMPLES = ("pela import other.safetensors --model vit_base -o runs/imported",)


def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="A safetensors or .pth file of other code."),
    ],
    model: Annotated[
        str,
        typer.Option(metavar="MODEL", help="The dense model that it was made from."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="The directory to write.")
    ],
    json: Json = False,
) -> None:
    """Make an artefact of a low-rank checkpoint that other code wrote.

    Its layers must be pairs of matrices.
    """
    from pelacli.cli import output as cli_output
    from pelacli.steps import importing

    cli_output.print_imported(importing.run(checkpoint, model, output), json)
