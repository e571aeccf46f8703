"""``pela push``."""

from __future__ import annotations

from typing import Annotated

import typer

from pelacli.cli.options import Json

EXAMPLES = ("pela push runs/small me/small-vit --private",)


def push(
    artefact: Annotated[
        str,
        typer.Argument(
            metavar="ARTEFACT", help="An artefact, a run's directory (its last step), or a hub id."
        ),
    ],
    repo: Annotated[
        str, typer.Argument(metavar="REPO", help="OWNER/NAME on the hub. Made if it is not there.")
    ],
    private: Annotated[
        bool, typer.Option("--private", help="Make the repository private.")
    ] = False,
    revision: Annotated[
        str | None, typer.Option(metavar="BRANCH", help="The branch. By default the main one.")
    ] = None,
    json: Json = False,
) -> None:
    """Upload an artefact to the Hugging Face hub, with a model card."""
    from pelacli import console
    from pelacli.cli import terminal
    from pelacli.steps import push as steps_push

    done = steps_push.run(artefact, repo, private=private, revision=revision)
    if json:
        console.print_json(vars(done))
    else:
        seen_by = "private" if done.private else "public"
        terminal.print_text(f"{len(done.files)} files, {done.bytes / 1e6:,.1f} MB, {seen_by}")
        terminal.print_text(done.url)
