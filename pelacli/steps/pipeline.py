"""All steps of a recipe in order; a step whose result is there already is skipped."""

from __future__ import annotations

import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pelacli import console
from pelacli.errors import RequestError
from pelacli.manifest import document, lookup
from pelacli.recipe import layout, schema
from pelacli.recipe.fingerprint import fingerprint
from pelacli.recipe.schema import Recipe
from pelacli.system import processes


@dataclass
class Ran:
    """What `run` did: each step with its outcome, and the evaluation at the end."""

    steps: list[dict[str, Any]]
    evaluated: Any


def run(spec: Recipe, *, force: bool = False) -> Ran:
    """Run the recipe.

    A step is done if its artefact was made by the same settings from the same input: the
    fingerprint in its manifest says so. The evaluation is always run, as it leaves no artefact.

    Args:
        force: do every step again.
    """
    sections = [name for name in layout.FOLDERS if getattr(spec, name) is not None]
    if not sections and spec.eval is None:
        raise RequestError("the recipe has no steps; add [decompose], [pretrain] …")
    done = []
    for section in sections:
        start = time.perf_counter()
        output = layout.folder(spec, section)
        processes.wait(spec.device)  # or one would see what another has already done
        if not force and is_done(spec, section):
            console.info(f"{section}: done already in {output}")
            done.append({"step": section, "artefact": str(output), "skipped": True, "seconds": 0.0})
            continue
        console.info(f"{section} → {output}")
        _do(spec, section, output, force)
        seconds = time.perf_counter() - start
        done.append(
            {"step": section, "artefact": str(output), "skipped": False, "seconds": seconds}
        )
    return Ran(done, _evaluate(spec))


def is_done(spec: Recipe, section: str) -> bool:
    """Whether the step's artefact is there and was made by these settings from the weights that
    the step would read now. A model that isn't here, but on a hub, counts as it was recorded."""
    output = layout.folder(spec, section)
    if not document.is_artefact(output):
        return False
    record = document.read(output)
    last = record.history[-1] if record.history else None
    if last is None or last.step != section:
        return False
    if last.fingerprint != fingerprint(spec, section, last.inputs):
        return False  # other settings: the weights, which may be large, need not be read
    try:
        return lookup.input_digest(spec, section) in (None, last.inputs)
    except OSError:
        return False  # the step itself will say so


def _do(spec: Recipe, section: str, output: Path, force: bool) -> None:
    source = lookup.require(layout.source(spec, section), section)
    if force and processes.is_first():  # an unfinished run is started again too
        shutil.rmtree(layout.workplace(output), ignore_errors=True)
    if section == "decompose":
        from pelacli.steps import decompose
        from pelacli.system import threads

        if processes.launched() > 1 and spec.decompose and spec.decompose.max_drop is not None:
            raise RequestError(
                "decompose.max_drop: looked for by one process; run `pela decompose` on the recipe "
                "first, and launch `pela run` then, which goes on from there"
            )
        if processes.is_first():
            # Launchers leave each process one thread.
            cores = os.cpu_count() if processes.launched() > 1 else None
            with processes.alone(), threads.limited(cores):
                decompose.run(spec, source, output)
        processes.wait(spec.device)
    elif section == "pretrain":
        from pelacli.steps import pretrain

        pretrain.run(spec, resume=not force)
    else:
        from pelacli.steps import finetune

        finetune.run(spec, section, resume=not force)


def _evaluate(spec: Recipe) -> Any:
    if spec.eval is None:
        return None
    from pelacli.steps import eval as steps_eval

    return steps_eval.run(**evaluation(spec))


def gate(done: Ran) -> None:
    """Raise `GateError` if the result dropped by more than the recipe's eval.max_drop."""
    if done.evaluated is not None:
        from pelacli.steps import eval as steps_eval

        steps_eval.gate([done.evaluated])


def evaluation(spec: Recipe) -> dict[str, Any]:
    """The recipe's [eval] as the keyword arguments of `steps.eval.run`."""
    section = spec.eval or schema.Eval()
    result, against = layout.result(spec), section.against or layout.dense(spec)
    trained = spec.finetune if section.task is None and spec.finetune else section
    task, task_args = schema.task_of(spec, trained)
    return {
        "ref": lookup.require(result, "eval"),
        "data": section.data or (spec.finetune.data if spec.finetune else None) or spec.data,
        "task": task,
        "task_args": task_args if section.task_args is None else section.task_args,
        "against": lookup.require(against, "eval") if against != result else None,
        "max_drop": section.max_drop,
        "split": section.split,
        "batch_size": section.batch_size,
        "with_latency": section.latency,
        "how": lookup.how_to_open(spec, result),
        "how_against": lookup.how_to_open(spec, against),
        "device": spec.device,
    }
