"""Refuse options that a command would accept and pass over: each names what it needs to act.

What a recipe's file holds may be meant for another day or command, and is only noted. What is given
on a command line is meant for this one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from pelacli.artefact import locating
from pelacli.console import warn
from pelacli.errors import RequestError
from pelacli.manifest import lookup
from pelacli.recipe import overrides as recipe_overrides
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.evaluation import Evaluation
from pelacli.recipe.idle import idle
from pelacli.recipe.keys import Key, dotted
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import Step

# command → the sections of a recipe that it reads; all read the top level and [data]
_READ: Mapping[str, tuple[Key, ...]] = {
    "decompose": (("decompose",),),
    "pretrain": (("pretrain",),),
    "finetune": (("finetune",),),
    "finetune --dense": (("teacher",),),
    "eval": (("eval",), ("finetune", "data"), ("finetune", "task"), ("finetune", "task_args")),
}
_SECTIONS = ("teacher", "decompose", "pretrain", "finetune", "eval")
# The top level's keys that say how a model is opened that is no artefact.
_OPENING = ("weights", "arch", "model_args", "num_classes")


def refuse_other_sections(command: str, overrides: Sequence[str]) -> None:
    """Refuse ``--set`` of a section that belongs to another command.

    Raises:
        RequestError: naming the command that reads it.
    """
    for key, text in recipe_overrides.apply({}, overrides).by_key.items():
        read = any(key[: len(section)] == section for section in _READ[command])
        if key[0] in _SECTIONS and not read:
            owner = "finetune --dense" if key[0] == "teacher" else key[0]
            raise RequestError(
                f"{text}: `pela {command}` does not read [{key[0]}]; give it to "
                f"`pela {owner}` or `pela run`, or write it into the recipe"
            )


def refuse_idle(
    recipe: Recipe,
    sections: Sequence[str],
    overrides: Sequence[str] = (),
    flags: Collection[str] = (),
) -> None:
    """Refuse flags and overrides that nothing reads, as other keys are what they are. Such keys of
    the recipe's file are noted.

    Args:
        sections: the command's; [data] is read too.
        flags: the keys of the first of them that flags have set.

    Raises:
        RequestError: naming the first of them.
    """
    given = recipe_overrides.apply({}, overrides)
    for key in idle(recipe, *sections, "data"):
        if flags and key.key[:-1] == (sections[0],) and key.key[-1] in flags:
            raise RequestError(f"--{str(key.key[1]).replace('_', '-')}: {key.needs}")
        text = given.locate(key.key, key.key)
        if text is not None:
            raise RequestError(f"{text}: {key.needs}")
        if key.differs:
            warn(f"{dotted(key.key)}: {key.needs}")


def refuse_timing(flags: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse flags of [decompose.latency] where the budget counts no time.

    Args:
        flags: the keys of [decompose] that flags have set.

    Raises:
        RequestError: naming the first of them.
    """
    if "latency" not in flags or recipe.decompose is None:
        return
    if recipe.decompose.counted[0] != "latency":
        name, value = next(iter(flags["latency"].items()))
        text = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        raise RequestError(f"{text}: is about --unit latency; give that too")


def refuse_in_decompose(
    step: Step[Decompose], top: Mapping[str, Any], overrides: Sequence[str]
) -> None:
    """Refuse flags and overrides of the top level and of [data] that the step has no use for.

    Args:
        top: flags for the recipe's top level; None was not given.

    Raises:
        RequestError: naming the first of them.
    """
    given = {name: f"--{name} {value}" for name, value in top.items() if value is not None}
    for key, text in recipe_overrides.apply({}, overrides).by_key.items():
        given[str(key[0])] = text
    is_artefact = lookup.latest(Path(step.source)) is not None
    uses_data = step.settings.max_drop is not None or step.settings.calibrate == "train"
    reads_samples = uses_data or step.settings.calibrate is not None
    for name, text in given.items():
        if name in _OPENING and is_artefact:
            raise RequestError(
                f"{text}: {step.source} is an artefact, which says itself how it is opened; "
                f"leave {name} out"
            )
        if name == "data" and not uses_data:
            raise RequestError(f"{text}: is read with --calibrate train or --max-drop only")
        if name in ("task", "task_args") and not reads_samples:
            raise RequestError(f"{text}: is of use with --calibrate or --max-drop only")


def refuse_in_plan_of_spectra(
    file: Path, output: Path | None, spectra: Path | None, overrides: Sequence[str]
) -> None:
    """Refuse what a plan from stored spectra has no use for.

    Raises:
        RequestError: naming the first option.
    """
    if output is not None:
        raise RequestError(
            f"--output {output}: {file} holds spectra, no weights, so nothing can be written; "
            "leave it out"
        )
    if spectra is not None:
        raise RequestError(f"--spectra {spectra}: {file} holds them; leave --spectra out")
    for key, text in recipe_overrides.apply({}, overrides).by_key.items():
        if key[0] != "decompose":
            raise RequestError(f"{text}: a plan from stored spectra reads [decompose] only")


def refuse_in_eval(
    refs: Sequence[str], opening: Mapping[str, str | None], overrides: Sequence[str]
) -> None:
    """Refuse what no model of an evaluation has a use for.

    Args:
        refs: all models, the one to compare with among them.
        opening: ``weights`` and ``arch``; None was not given.

    Raises:
        RequestError: naming the option.
    """
    recipes = [ref for ref in refs if ref.endswith(".toml")]
    if overrides and not recipes:
        raise RequestError(
            f"--set {overrides[0]}: changes a recipe, and {refs[0]} is none; give --data, --split, "
            "--task or --batch-size, or evaluate its recipe (pela eval RECIPE.toml --set …)"
        )
    refuse_other_sections("eval", overrides)
    others = [ref for ref in refs if ref not in recipes]
    is_artefact = locating.names_artefact if opening["weights"] == "random" else _is_local_artefact
    plain = [ref for ref in others if opening["weights"] is None or not is_artefact(ref)]
    files = [ref for ref in plain if Path(ref).is_file()]
    if opening["weights"] is not None and len(plain) == len(files):
        kind = "a recipe says" if recipes else "artefacts and files hold"
        raise RequestError(
            f"--weights {opening['weights']}: {kind} the weights; it is for names of models"
        )
    weights = Path(opening["weights"] or "")
    if opening["arch"] is not None and not files and not weights.is_file():
        raise RequestError(
            f"--arch {opening['arch']}: is for a bare safetensors file, and none is named; "
            "leave it out"
        )


def _is_local_artefact(ref: str) -> bool:
    return lookup.latest(Path(ref)) is not None


def refuse_without_data(evaluation: Evaluation, flags: Mapping[str, Any]) -> None:
    """Refuse flags about data where an evaluation has none.

    Args:
        flags: option → value; None was not given.

    Raises:
        RequestError: naming the first of them.
    """
    for name, value in flags.items():
        if value is not None and evaluation.data is None:
            raise RequestError(
                f"--{name} {value}: {evaluation.model.ref} has no data of its own; give --data"
            )


def refuse_in_report(
    refs: Sequence[str], kind: str | None, by: str | None, style: str, arch: str | None
) -> None:
    """Refuse the options of ``pela report`` that its kind has no use for.

    Args:
        kind: the option that asks for another report than that of costs: "--sweep", "--curves" or
            "--latency".

    Raises:
        RequestError: naming the option.
    """
    if by is not None and kind:
        raise RequestError(f"--by {by}: {kind} has rows of its own; leave --by out")
    if by is not None and style == "json":
        raise RequestError(f"--by {by}: JSON holds layers and kinds alike; leave --by out")
    if arch is None:
        return
    if kind in ("--sweep", "--curves"):
        raise RequestError(f"--arch {arch}: {kind} builds no model; leave --arch out")
    if not any(Path(ref).is_file() for ref in refs):
        raise RequestError(
            f"--arch {arch}: is for a bare safetensors file, and none is named; leave it out"
        )


def refuse_without_sweep(flags: Mapping[str, Any]) -> None:
    """Refuse the flags of ``pela report`` that only a sweep knows.

    Raises:
        RequestError: one of them is given.
    """
    for name, value in flags.items():
        if value is not None:
            raise RequestError(f"--{name} {value}: belongs to --sweep, as in --sweep 0.9..0.3")
