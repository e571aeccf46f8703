"""From the words of the command line to what a step is called with. No torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pelacli.artefact import locating
from pelacli.cli import unused
from pelacli.console import info, warn
from pelacli.errors import RequestError
from pelacli.manifest import document, lookup
from pelacli.models.hub import Files
from pelacli.planning.settings import check_has_budget
from pelacli.ranks.budgets import registry as budgets
from pelacli.ranks.policies import registry as policies
from pelacli.recipe import overrides as recipe_overrides
from pelacli.recipe import reading, stored, validation
from pelacli.recipe.aliases import ALIASES
from pelacli.recipe.data import Data
from pelacli.recipe.decompose import MEASURED_ON, Decompose
from pelacli.recipe.evaluation import Evaluation, NamedModel
from pelacli.recipe.flags import from_flags, with_flags, without_none
from pelacli.recipe.idle import PLANNED
from pelacli.recipe.step import Opening, Step, step_of
from pelacli.report.latencies import TimingRequest
from pelacli.steps import pipeline


def decompose(
    model: str,
    top: Mapping[str, Any],
    section: Mapping[str, Any],
    overrides: Sequence[str],
    output: Path | None,
) -> Step[Decompose]:
    """The decompose step of a recipe, or of a model that flags alone describe.

    Args:
        model: MODEL, which may be a recipe.
        top, section: flags for the recipe's top level and for [decompose], which win over its own
            values; None was not given.
        output: where to write; by default the recipe's place, or runs/MODEL-rRATIO.

    Raises:
        RequestError: flags that don't go together, or none that says how small.
    """
    unused.refuse_other_sections("decompose", overrides)
    flags = without_none(section)
    if policy := budgets.implied_policy(flags):
        flags.setdefault("policy", policy)
    if model.endswith(".toml"):
        step = _decompose_recipe(Path(model), top, flags, overrides)
        unused.refuse_in_decompose(step, top, overrides)
        return replace(step, output=output) if output else step
    check_has_budget(section, overrides)
    if model in ALIASES:
        info(f"{model} is {ALIASES[model]}")
    given = recipe_overrides.section_with("decompose", flags, overrides)
    folder = output or Path("runs") / _folder_name(model, given)
    recipe = from_flags(
        {"model": model, "output": str(folder), **top}, {"decompose": flags}, overrides
    )
    unused.refuse_timing(flags, recipe)
    if recipe.model != model:
        raise RequestError(f"--set model={recipe.model}: MODEL is {model}; give one")
    unused.refuse_idle(recipe, ["decompose"], overrides, flags)
    step = replace(step_of(recipe, "decompose"), output=output or recipe.output)
    unused.refuse_in_decompose(step, top, overrides)
    return step


def _decompose_recipe(
    file: Path, top: Mapping[str, Any], flags: dict[str, Any], overrides: Sequence[str]
) -> Step[Decompose]:
    recipe = with_flags(reading.load(file, overrides), "", **top)
    if "data" in flags:
        data = _data(flags["data"]["dataset"], recipe.data)
        flags = flags | {"data": data.model_dump(mode="json", exclude_unset=True)}
    if "latency" in flags and recipe.decompose is not None and recipe.decompose.latency is not None:
        own = recipe.decompose.latency.model_dump(exclude_unset=True)
        flags = flags | {"latency": own | flags["latency"]}
    replaced = _replaced_keys(recipe.decompose, flags)
    recipe = with_flags(recipe, "decompose", instead_of=replaced, **flags)
    unused.refuse_timing(flags, recipe)
    unused.refuse_idle(recipe, ["decompose"], overrides, flags)
    step = step_of(recipe, "decompose")
    lookup.require(step.source, step.name)
    return step


def _replaced_keys(section: Decompose | None, flags: Mapping[str, Any]) -> set[str]:
    """The recipe's keys that mean nothing beside a budget that is given as a flag."""
    given = [name for name in budgets.names() if name in flags]
    if section is None or not given:
        return set()
    replaced = set(budgets.alone())
    if "plan" in given:
        replaced |= {*budgets.names(), *PLANNED} - {"plan"}
    if set(budgets.alone()) & set(given):
        replaced |= set(budgets.names())
        if section.policy not in policies.with_budget("ratio"):
            replaced.add("policy")
    return replaced if set(budgets.searched()) & set(given) else replaced | set(MEASURED_ON)


def _folder_name(model: str, given: Mapping[str, Any]) -> str:
    """vit_base-r0.50: the model's own name and the budget; f0.50 is a ratio of FLOPs.

    Args:
        given: keys of [decompose], not yet validated.
    """
    stem = Path(model).name.removesuffix(".safetensors") or "model"
    name = next(name for name in (*budgets.alone(), *budgets.names()) if name in given)
    try:
        return f"{stem}-{budgets.get(name).suffix(given[name], given.get('unit', 'params'))}"
    except (ValueError, TypeError):
        return stem  # the recipe's validation refuses the value in better words


def timing_keys(
    batch_size: int | None, precision: str | None, compile: bool | None
) -> dict[str, Any]:
    """The keys of [decompose.latency] that flags set."""
    return without_none({"batch_size": batch_size, "precision": precision, "compile": compile})


def pins(texts: Sequence[str] | None) -> dict[str, int | str] | None:
    """["REGEX=RANK", …] → {regex: rank}.

    Raises:
        RequestError: one of them has no rank.
    """
    if not texts:
        return None
    ranks: dict[str, int | str] = {}
    for text in texts:
        pattern, equals, rank = text.rpartition("=")
        if not equals or not (rank.isdigit() or rank in ("dense", "full")):
            raise RequestError(f"--pin {text}: give REGEX=RANK, a number, 'dense' or 'full'")
        ranks[pattern] = int(rank) if rank.isdigit() else rank
    return ranks


@dataclass(frozen=True)
class EvalFlags:
    """The flags of ``pela eval``; None was not given."""

    against: str | None = None
    max_drop: float | None = None
    data: str | None = None
    split: str | None = None
    task: str | None = None
    batch_size: int | None = None
    latency: bool | None = None
    weights: str | None = None
    arch: str | None = None

    def opening(self, ref: str) -> Opening:
        """How to open a plain model: a file holds weights and needs ``arch``, a name needs
        ``weights``, which may be a file."""
        if Path(ref).is_file():
            return Opening(arch=self.arch)
        weights = "pretrained" if self.weights is None else self.weights
        if weights == "random" and locating.names_artefact(ref):
            return Opening()
        return Opening(weights=weights, arch=self.arch if Path(weights).is_file() else None)


def evaluations(
    refs: Sequence[str], flags: EvalFlags, overrides: Sequence[str] = ()
) -> list[Evaluation]:
    """What to measure of each model.

    An artefact is measured on the data of the recipe that made it, unless a flag says otherwise.

    Args:
        refs: artefacts, models or recipes.

    Raises:
        RequestError: a recipe, or the data that an artefact's recipe names, can't be read; a batch
            without samples.
    """
    if flags.batch_size is not None and flags.batch_size < 1:
        raise RequestError(f"--batch-size {flags.batch_size}: give a number from 1 on")
    models = [*refs, flags.against] if flags.against else refs
    unused.refuse_in_eval(models, {"weights": flags.weights, "arch": flags.arch}, overrides)
    return [_evaluation(ref, flags, overrides) for ref in refs]


def _evaluation(ref: str, flags: EvalFlags, overrides: Sequence[str]) -> Evaluation:
    if ref.endswith(".toml"):
        request = pipeline.evaluation(reading.load(Path(ref), overrides))
    else:
        data, task, task_args = _stored_data(ref, needed=flags.data is None)
        model = _named_model(ref, flags)
        request = Evaluation(model, data=data, task=task, task_args=task_args, task_is_named=False)
    if flags.task not in (None, request.task):
        request = replace(request, task_args=None)
    names = ("max_drop", "split", "task", "batch_size", "latency")
    changes = without_none({name: getattr(flags, name) for name in names})
    if flags.task is not None:
        changes["task_is_named"] = True
    if flags.data is not None:
        changes["data"] = _data(flags.data, request.data)
    if flags.against is not None:
        changes["baseline"] = _named_model(flags.against, flags)
    request = replace(request, **changes)
    of_data = {"split": flags.split, "task": flags.task, "batch-size": flags.batch_size}
    unused.refuse_without_data(request, of_data)
    return request


def _named_model(ref: str, flags: EvalFlags) -> NamedModel:
    """A run directory is named by its last step."""
    return NamedModel(str(lookup.latest(Path(ref)) or ref), flags.opening(ref))


def _stored_data(
    ref: str, *, needed: bool
) -> tuple[Data | None, str | None, dict[str, Any] | None]:
    """(data, task, its settings) of the last step of an artefact that has data; else None each.

    Args:
        needed: no other data is given. Where it is, what can't be read is only noted.

    Raises:
        RequestError: the data is needed and can't be read.
    """
    path = locating.locate(ref, Files.SMALL)
    if path is None:
        return None, None, None
    is_here = Path(ref).exists()
    for number, step in reversed([*enumerate(document.read(path).history)]):
        where = f"{path if is_here else ref}/{document.FILE}: history[{number}].recipe"
        try:
            data, task, task_args = stored.data_and_task(step.recipe, step.step, where)
        except RequestError as error:
            if needed:
                raise RequestError(f"{error}, or give --data and --task") from None
            warn(str(error))
            break
        if data is not None and not is_here and needed and _is_elsewhere(data.dataset):
            warn(f"{ref}: the data that it was made with, {data.dataset}, is not here; give --data")
            break
        if data is not None:
            return data, task, task_args
    return None, None, None


def _is_elsewhere(dataset: str) -> bool:
    """Whether a dataset that somebody else has named lies on their disk, and not on this one."""
    is_fetched = dataset.startswith(("hfds/", "torch/")) or dataset == "digits"
    return not is_fetched and not Path(dataset).expanduser().exists()


def _data(dataset: str, base: Data | None) -> Data:
    """The data of a dataset that a flag names, with the recipe's settings where it is its own."""
    if base is not None and base.dataset == dataset:
        return base
    try:
        return validation.section(Data, {"dataset": dataset}, names={})
    except RequestError as error:
        raise RequestError(f"--data: {str(error).removeprefix('dataset: ')}") from None


def timing(asked: bool, **flags: Any) -> TimingRequest | None:
    """How ``pela report --latency`` is to time models; None where it is not asked to.

    Args:
        flags: as `TimingRequest.parse` takes them.

    Raises:
        RequestError: a flag that makes no sense, or one without --latency.
    """
    if asked:
        return TimingRequest.parse(**flags)
    names = {"batch_sizes": "batch-size"}
    for name, value in flags.items():
        if value not in (None, False):
            text = "" if value is True else f" {value}"
            raise RequestError(f"--{names.get(name, name)}{text}: belongs to --latency")
    return None
