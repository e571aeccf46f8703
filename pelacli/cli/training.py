"""``pela pretrain``, ``pela finetune`` and ``pela run``: the commands that a recipe describes."""

from __future__ import annotations

from typing import Annotated

import typer

from pelacli.cli.options import Json, RecipeFile, Set

Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")]


def pretrain(
    recipe: RecipeFile, resume: Resume = False, set_: Set = None, json: Json = False
) -> None:
    """Heal a low-rank model under the frozen original."""
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    step = step_of(reading.load(recipe, set_ or []), "pretrain")
    from pelacli.steps import pretrain as steps_pretrain

    cli_output.print_trained(steps_pretrain.run(step, resume=resume), json)


def finetune(
    recipe: RecipeFile,
    dense: Annotated[
        bool, typer.Option("--dense", help="Train the recipe's dense model, its [teacher] section.")
    ] = False,
    resume: Resume = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train a model on a task; with --dense, the dense model that a recipe asks for."""
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    step = step_of(reading.load(recipe, set_ or []), "teacher" if dense else "finetune")
    from pelacli.steps import finetune as steps_finetune

    cli_output.print_trained(steps_finetune.run(step, resume=resume), json)


def run(
    recipe: RecipeFile,
    force: Annotated[bool, typer.Option("--force", help="Do every step again.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run the steps of a recipe in order, skipping those that are done."""
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.steps import pipeline
    from pelacli.system import malloc

    malloc.large_pages()
    result = pipeline.run(reading.load(recipe, set_ or []), force=force)
    cli_output.print_run(result, json)
    pipeline.gate(result)
