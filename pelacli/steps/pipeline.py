"""All steps of a recipe in order; a step whose result is there already is skipped."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from pelacli import console
from pelacli.errors import RequestError, StoppedError
from pelacli.manifest import document, integrity, lookup
from pelacli.manifest.document import NewerFormatError, StepRecord
from pelacli.recipe import layout, schema
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.evaluation import Evaluation, NamedModel
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.keys import Key, dotted
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import Step, opening_of, steps_of
from pelacli.steps import outputs, step_figures
from pelacli.system import leftovers, locks, processes


@dataclass
class Ran:
    """What `run` did: each step with its outcome, and the evaluation at the end."""

    steps: list[Outcome]
    evaluated: Any


@dataclass(frozen=True)
class Outcome:
    """A step of a run.

    Attributes:
        skipped: it was done already.
        seconds: of this run.
        record: what the artefact's manifest says of the step.
    """

    step: str
    artefact: str
    skipped: bool
    seconds: float
    record: StepRecord

    def document(self) -> dict[str, Any]:
        """As JSON has it."""
        about = {key: value for key, value in vars(self).items() if key != "record"}
        return about | step_figures.figures(self.record)


def run(recipe: Recipe, *, force: bool = False, place_of: Callable[[Key], str] = dotted) -> Ran:
    """Run the recipe, after a look at all that its steps will need.

    A step is done if its artefact was made by the same settings from the same input: the
    fingerprint in its manifest says so. The evaluation is always run, as it leaves no artefact.

    Args:
        force: do every step again.
        place_of: key → its place and name in the recipe, for messages.

    Raises:
        RequestError: the recipe has no steps, or what one of them needs is not there. Nothing has
            been computed or written then.
    """
    steps = steps_of(recipe)
    if not steps and recipe.eval is None:
        raise RequestError("the recipe has no steps; add [decompose], [pretrain] …")
    processes.meet(recipe.device)
    done = 0 if force else len(list(takewhile(is_done, steps)))
    if done < len(steps) or recipe.eval is not None:
        from pelacli.steps.preflight import check

        check.check(recipe, place_of, [*(step.name for step in steps[done:]), "eval"])
    all_done = done == len(steps)
    holds = not all_done and processes.is_first()
    with locks.holding(Path(recipe.output)) if holds else nullcontext():  # nobody else runs them
        # Who waited for others looks again; else what is done has just been read.
        known = all_done and processes.launched() == 1
        outcomes = [_outcome(step, force, is_known_done=known) for step in steps]
    return Ran(outcomes, _evaluate(recipe))


def _outcome(step: Step[Any], force: bool, *, is_known_done: bool) -> Outcome:
    """Do a step, unless it is done."""
    start = time.perf_counter()
    processes.wait(step.device)  # or a late one would find the step done by another
    skipped = is_known_done or (not force and is_done(step))
    if skipped:
        console.info(f"{step.name}: done already in {step.output}")
        outputs.tidy(step.output)
    else:
        console.info(f"{step.name} → {step.output}")
        try:
            _do(step, force)
        except StoppedError as error:
            without = " without --force" if force else ""
            remedy = f"run the same command again{without} to go on"
            raise StoppedError(error.where, remedy) from None
    seconds = 0.0 if skipped else time.perf_counter() - start
    record = document.read(step.output).history[-1]
    return Outcome(step.name, str(step.output), skipped, seconds, record)


def is_done(step: Step[Any]) -> bool:
    """Whether the step's artefact is there, whole, and was made by these settings from the weights
    that the step would read now. A model that isn't here, but on a hub, counts as it was recorded.
    """
    if not document.is_artefact(step.output):
        return False
    try:
        manifest = document.read(step.output)
    except NewerFormatError:
        raise
    except RequestError as error:
        console.warn_once(f"damage in {step.output}", f"{error}: {step.name} is done again")
        return False
    history = manifest.history
    if not history or history[-1].step != step.name:
        return False
    last = history[-1]
    if last.fingerprint != fingerprint(step, last.inputs):
        return False  # other settings: the weights, which may be large, need not be read
    with console.file_progress(f"checking {step.output}"):
        damage = integrity.first_damage(step.output, manifest)
    if damage is not None:
        console.warn_once(
            f"damage in {step.output}",
            f"{step.output / damage.file}: {damage.what}; {step.name} is done again",
        )
        return False
    try:
        with console.file_progress(f"checking what {step.name} reads"):
            return lookup.input_digest(step) in (None, last.inputs)
    except OSError:
        return False  # the step itself will say so


def _do(step: Step[Any], force: bool) -> None:
    lookup.require(step.source, step.name)
    if force and processes.is_first():  # an unfinished run is started again too
        leftovers.discard(layout.workplace(step.output))
    if step.name == "decompose":
        _decompose(step)
    elif step.name == "pretrain":
        from pelacli.steps import pretrain

        pretrain.run(step, resume=not force)
    else:
        from pelacli.steps import finetune

        finetune.run(step, resume=not force)


def _decompose(step: Step[Decompose]) -> None:
    """One process factorises; the others wait for its artefact."""
    from pelacli.steps import decompose
    from pelacli.system import by_first

    by_first.done(lambda: decompose.run(step), step.device)


def _evaluate(recipe: Recipe) -> Any:
    if recipe.eval is None:
        return None
    from pelacli.steps import eval as steps_eval

    return steps_eval.run(evaluation(recipe))


def evaluation(recipe: Recipe) -> Evaluation:
    """What the recipe's [eval] measures: its last artefact, against the dense model.

    Raises:
        RequestError: one of these artefacts is not there.
    """
    section = recipe.eval or schema.Eval()
    result, against = layout.result(recipe), section.against or layout.dense(recipe)
    trained = recipe.finetune if section.task is None and recipe.finetune else section
    task, task_args = schema.task_of(recipe, trained)
    finetune_data = recipe.finetune.data if recipe.finetune else None
    opening = opening_of(recipe)
    model = NamedModel(lookup.require(result, "eval"), opening)
    baseline = None
    if against != result:
        baseline = NamedModel(lookup.require(against, "eval"), opening)
    return Evaluation(
        model,
        baseline,
        data=section.data or finetune_data or recipe.data,
        split=section.split,
        batch_size=section.batch_size,
        task=task,
        task_args=task_args if section.task_args is None else section.task_args,
        task_is_named=section.task is not None or "task" in recipe.model_fields_set,
        max_drop=section.max_drop,
        latency=section.latency,
        device=recipe.device,
    )
