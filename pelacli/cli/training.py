"""``pela heal``, ``pela finetune`` and ``pela run``: the commands that a recipe describes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from pelacli.recipe.schema import Recipe

from pelacli.cli.options import Json, RecipeFile, Set

Resume = Annotated[
    bool,
    typer.Option("--resume", help="Go on from the last checkpoint of a run that was stopped."),
]

HEAL_EXAMPLES = (
    "pela heal my.toml",
    "pela heal my.toml --set pretrain.epochs=10",
    "pela heal my.toml --resume",
)
FINETUNE_EXAMPLES = ("pela finetune my.toml", "pela finetune my.toml --dense")
RUN_EXAMPLES = ("pela run recipes/quickstart.toml", "pela run my.toml --set decompose.ratio=0.7")


def heal(recipe: RecipeFile, resume: Resume = False, set_: Set = None, json: Json = False) -> None:
    """Train a smaller model beside the original until it answers alike.

    It needs no labels. Its section of the recipe is [pretrain], the paper's name for it.
    """
    from pelacli.cli import next_steps
    from pelacli.cli import output as cli_output
    from pelacli.recipe.step import step_of

    read = _checked(recipe, "pretrain", "pretrain", set_ or [])
    from pelacli.steps import pretrain as steps_pretrain

    cli_output.print_trained(steps_pretrain.run(step_of(read, "pretrain"), resume=resume), json)
    next_steps.after_training(recipe, read, "pretrain")


def finetune(
    recipe: RecipeFile,
    dense: Annotated[
        bool,
        typer.Option(
            "--dense", help="Train the recipe's dense model instead, as its [teacher] says."
        ),
    ] = False,
    resume: Resume = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train the smaller model on your task, as the recipe's [finetune] says."""
    from pelacli.cli import next_steps
    from pelacli.cli import output as cli_output
    from pelacli.recipe.step import step_of

    name: Literal["teacher", "finetune"] = "teacher" if dense else "finetune"
    read = _checked(recipe, name, "finetune --dense" if dense else "finetune", set_ or [])
    from pelacli.steps import finetune as steps_finetune

    cli_output.print_trained(steps_finetune.run(step_of(read, name), resume=resume), json)
    next_steps.after_training(recipe, read, name)


def _checked(
    file: Path,
    section: Literal["teacher", "pretrain", "finetune"],
    command: str,
    overrides: Sequence[str],
) -> Recipe:
    """The recipe of a command that trains by one section of it, when nothing stands in its way.

    Args:
        command: as in `pelacli.cli.unused`.

    Raises:
        RequestError: the recipe, an override, or the model and the data that it names.
    """
    from pelacli.cli import unused
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    unused.refuse_other_sections(command, overrides)
    read, place_of = reading.load_with_places(file, overrides)
    unused.refuse_idle(read, [section], overrides)
    step_of(read, section)  # a recipe without the section is refused before torch is loaded
    from pelacli.steps.preflight import check

    check.check(read, place_of, [section])
    return read


def run(
    recipe: RecipeFile,
    force: Annotated[
        bool, typer.Option("--force", help="Do every step again, even those that are done.")
    ] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run all steps of a recipe in order. Steps that are done already are skipped."""
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
    if result.evaluated is not None:
        from pelacli.steps import gate

        gate.check([result.evaluated])
