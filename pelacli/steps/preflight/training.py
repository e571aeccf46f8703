"""What a training step needs: data with its labels, classes that fit, taps, an optimizer, a
schedule, batches that can be made."""

from __future__ import annotations

from collections.abc import Callable

from pelacli.console import warn_once
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.models.opened import OpenModel
from pelacli.models.without_values import without_values
from pelacli.recipe.keys import Key
from pelacli.recipe.step import Step
from pelacli.recipe.training import Pretrain, Train
from pelacli.steps import finetune
from pelacli.steps.preflight import batches
from pelacli.steps.preflight.problems import Problems
from pelacli.steps.preflight.samples import (
    check_labelled,
    is_here,
    key_of_data,
    key_of_split,
    look_from_afar,
)
from pelacli.system import devices
from pelacli.train import acceleration, optim, rate_search, regularisation
from pelacli.train.healing import Stage
from pelacli.train.run import updates
from pelacli.train.splits import Splits, open_splits

_UPDATES = 1000  # of a run whose data is not looked at


def train(problems: Problems, step: Step[Train], opened: OpenModel) -> OpenModel | None:
    """Look at [teacher] or [finetune].

    Returns:
        The model with the head that the step would give it; None where its data does not tell.
    """
    data, at = step.data, key_of_data(step.name, step.settings.data)
    assert data is not None  # the recipe's validation has seen to it
    splits = None
    if is_here(data):
        with problems.at((*at, "dataset"), _key_of(step, at)):
            dataset = finetune.dataset_of(step, opened)
            check_labelled(data.dataset, dataset.labelled or not finetune.task_of(step).LABELLED)
            with without_values():
                opened = finetune.fitted(step, opened, dataset)
            splits = _splits(step, opened, labelled=True)
    else:
        _from_afar(problems, step, at)
    if splits is not None:
        _check_batches(problems, step, at, opened, splits)
    check_settings(problems, step, opened, splits)
    return None if splits is None else opened


def heal(
    problems: Problems, step: Step[Pretrain], student: OpenModel, teacher: OpenModel | None
) -> None:
    """Look at [pretrain].

    Args:
        teacher: None where it is not known yet.
    """
    data, at = step.data, key_of_data(step.name, step.settings.data)
    assert data is not None  # the recipe's validation has seen to it
    splits = None
    if is_here(data):
        with problems.at((*at, "dataset"), _key_of(step, at)):
            splits = _splits(step, student, labelled=step.settings.labels)
    else:
        _from_afar(problems, step, at)
    if splits is not None:
        _check_batches(problems, step, at, student, splits, teacher)
    if teacher is not None and not find.low_rank_layers(teacher.module):
        with problems.at((step.name,), _key_of_taps):
            task = finetune.task_of(step)
            labelled = splits is not None and splits.labelled
            stage = Stage(step.settings, student, teacher, task, labelled=labelled)
            taps = stage.taps
            if splits is not None:
                use = "learned from" if labelled else "not used"
                problems.chosen.append(f"{step.name}: labels are {use}")
            if taps:
                problems.chosen.append(f"{step.name}: {len(taps)} taps, {taps[0]} … {taps[-1]}")
    check_settings(problems, step, student, splits)


def _splits(step: Step[Train], opened: OpenModel, labelled: bool | None) -> Splits:
    """The step's loaders, after they have given a sample."""
    splits = open_splits(step, opened, labelled=labelled)
    if splits.validation is not None:
        batches.sample_of(splits.validation)
    return splits


def _check_batches(
    problems: Problems,
    step: Step[Train],
    at: Key,
    opened: OpenModel,
    splits: Splits,
    teacher: OpenModel | None = None,
) -> None:
    """Whether the model takes the samples, and there are enough of them, and room for a batch."""
    assert step.data is not None  # the recipe's validation has seen to it
    own = step.settings.batch_size is not None
    key: Key = (step.name, "batch_size") if own else (*at, "batch_size")
    asked = step.settings.batch_size or step.data.batch_size
    is_set = own or "batch_size" in step.data.model_fields_set
    if splits.train.batch_size < asked and is_set:
        text = f"{asked} samples, and the data has {len(splits.train.dataset)}, which are one batch"
        warn_once(text, f"{problems.place_of(key)}: {text}")
    sized: Key = (*at, "image_size") if step.data.image_size is not None else (*at, "dataset")
    per_sample = None
    with problems.at(sized):
        sample = batches.sample_of(splits.train)
        if sample is not None:
            per_sample = batches.kept_by_a_pass(opened, sample)
    if per_sample is not None:
        size = splits.train.batch_size
        with problems.at(key):
            batches.check_memory(
                step.name, step.settings, opened, per_sample, size, step.device, teacher
            )


def _from_afar(problems: Problems, step: Step[Train], at: Key) -> None:
    assert step.data is not None
    for name in ("train", "val"):
        split = getattr(step.data, name)
        look_from_afar(problems, step.data, split, at, (*at, name))


def _key_of(step: Step[Train], at: Key) -> Callable[[str], Key | None]:
    """What a refusal of a step's data is about."""
    assert step.data is not None
    task_key: Key = (step.name, "task") if step.settings.task else ("task",)
    keys: dict[str, Key] = {step.data.val: (*at, "val"), step.data.train: (*at, "train")}
    split_of = key_of_split(keys, task_key)

    def key_of(message: str) -> Key | None:
        if "num_classes" in message:
            return ("num_classes",)
        if "batch_size" in message:
            own = step.settings.batch_size is not None
            return (step.name, "batch_size") if own else (*at, "batch_size")
        if "pretrain.labels" in message:
            return (step.name, "labels")
        if message.startswith("data.augment"):
            return (*at, "augment")
        return split_of(message)

    return key_of


def _key_of_taps(message: str) -> Key | None:
    return ("pretrain", "taps") if message.startswith("taps") else None


def check_settings(
    problems: Problems, step: Step[Train], opened: OpenModel, splits: Splits | None
) -> None:
    """What does not depend on the data: the optimizer, its schedule, stochastic depth, trackers."""
    settings, module = step.settings, opened.module
    per_epoch = _UPDATES if splits is None else len(splits.train) / settings.accumulate
    total = _UPDATES if splits is None else updates(settings, len(splits.train))
    if isinstance(settings, Pretrain) and settings.lr == "auto":
        settings = rate_search.settings_at(settings, rate_search.FIRST, total, per_epoch)
    if settings.drop_path is not None:
        with problems.at((step.name, "drop_path")):
            regularisation.set_drop_path(module, settings.drop_path, settings.drop_path_rule)
    with problems.at((step.name, "precision")):
        acceleration.computed_in(settings.precision, devices.select(step.device))
    with problems.at((step.name, "trackers")):
        acceleration.check_trackers(settings.trackers)
    with problems.at((step.name, "opt"), lambda text: _if_layer_decay(step, text)):
        optimizer = optim.optimizer(module, settings)
        with problems.at((step.name, "sched")):
            optim.schedule(optimizer, settings, total, per_epoch)
    if splits is not None:
        problems.chosen.append(
            f"{step.name}: {total} updates of {splits.train.batch_size * settings.accumulate} "
            f"samples, an epoch is {per_epoch:g}"
        )
    warm_up = round(settings.warmup_epochs * per_epoch)
    if splits is not None and warm_up >= total and settings.sched != "none" and warm_up:
        warn_once(
            f"{step.name} is all warm-up",
            f"{problems.place_of((step.name, 'warmup_epochs'))}: {warm_up} updates of warm-up, and "
            f"the run has {total}, so the rate never gets to lr = {settings.lr:g}; lower it, or "
            "train for longer",
        )


def _if_layer_decay(step: Step[Train], message: str) -> Key | None:
    return (step.name, "layer_decay") if message.startswith("layer_decay") else None


def check_student(step: Step[Pretrain], student: OpenModel) -> None:
    """Refuse to heal a dense model.

    Raises:
        RequestError: with the remedy.
    """
    if not find.low_rank_layers(student.module):
        raise RequestError(
            f"{step.source}: has no low-rank layers, so there is nothing to heal; add [decompose], "
            "or name an artefact that `pela decompose` made"
        )
