"""``pela import``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli.options import Json


def import_checkpoint(
    checkpoint: Annotated[
        Path,
        typer.Argument(metavar="CHECKPOINT", help="Safetensors or .pth file of other code."),
    ],
    model: Annotated[
        str, typer.Option(help="The dense model that was factorised, for its architecture.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Directory of the artefact to write.")
    ],
    json: Json = False,
) -> None:
    """Make an artefact of a low-rank checkpoint of other code, whose layers are pairs of
    matrices."""
    from pelacli.cli import output as cli_output
    from pelacli.steps import importing

    cli_output.print_imported(importing.run(checkpoint, model, output), json)
