"""``pela heal``, ``pela finetune`` and ``pela run``: the commands that a recipe describes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from pelacli.cli.options import Json, RecipeFile, Set

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on with a run that was stopped, from its last checkpoint."),
]


def heal(recipe: RecipeFile, resume: Resume = False, set_: Set = None, json: Json = False) -> None:
    """Heal a smaller model: train it for a while to do as the original does.

    It needs no labels. Its section in recipes is [pretrain], the paper's name for it.
    """
    from pelacli.cli import next_steps, unused
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    unused.refuse_other_sections("pretrain", set_ or [])
    read, place_of = reading.load_with_places(recipe, set_ or [])
    unused.refuse_idle(read, ["pretrain"], set_ or [])
    step = step_of(read, "pretrain")
    from pelacli.steps import pretrain as steps_pretrain
    from pelacli.steps.preflight import check

    check.check(read, place_of, ["pretrain"])

    cli_output.print_trained(steps_pretrain.run(step, resume=resume), json)
    next_steps.after_training(recipe, read, "pretrain")


def finetune(
    recipe: RecipeFile,
    dense: Annotated[
        bool,
        typer.Option("--dense", help="Train the recipe's dense model, by its section \\[teacher]."),
    ] = False,
    resume: Resume = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train a model on a task, by the recipe's section on it."""
    from pelacli.cli import next_steps, unused
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    name: Literal["teacher", "finetune"] = "teacher" if dense else "finetune"
    unused.refuse_other_sections("finetune --dense" if dense else "finetune", set_ or [])
    read, place_of = reading.load_with_places(recipe, set_ or [])
    unused.refuse_idle(read, [name], set_ or [])
    step = step_of(read, name)
    from pelacli.steps import finetune as steps_finetune
    from pelacli.steps.preflight import check

    check.check(read, place_of, [name])

    cli_output.print_trained(steps_finetune.run(step, resume=resume), json)
    next_steps.after_training(recipe, read, name)


def run(
    recipe: RecipeFile,
    force: Annotated[
        bool, typer.Option("--force", help="Do every step again, also those that are done.")
    ] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run all steps of a recipe in order; those that are done already are skipped."""
    from pelacli.cli import next_steps, unused
    from pelacli.cli import output as cli_output
    from pelacli.recipe import layout, reading
    from pelacli.steps import pipeline
    from pelacli.system import malloc

    malloc.large_pages()
    read, place_of = reading.load_with_places(recipe, set_ or [])
    unused.refuse_idle(read, layout.sections(read), set_ or [])
    result = pipeline.run(read, force=force, place_of=place_of)
    cli_output.print_run(result, json)
    next_steps.after_run(result.steps)
    pipeline.gate(result)
