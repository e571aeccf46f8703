"""A recipe's models on their way through its steps, as shapes: what each step needs of them and of
its data, and what it makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pelacli.console import info
from pelacli.errors import PelaError
from pelacli.lowrank import find, replace
from pelacli.lowrank.find import Selection
from pelacli.manifest import lookup
from pelacli.measure import evaluation as measure_evaluation
from pelacli.models import heads
from pelacli.models.opened import OpenModel
from pelacli.models.without_values import without_values
from pelacli.planning.choice import choose
from pelacli.ranks.pins import pins_by_name
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe import schema
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.keys import Key
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import NamedTask, Step, opening_of
from pelacli.recipe.training import Pretrain, Train
from pelacli.steps.dense import DenseModel
from pelacli.steps.preflight import samples, shapes, tasks, training
from pelacli.steps.preflight.problems import Problems


@dataclass
class Walk:
    """The recipe's models on their way through the steps.

    Attributes:
        dense: what [pretrain] learns from and [eval] compares with: the recipe's model, or what
            [teacher] makes of it.
        current: what the last step has made.
        is_known: whether ``current`` is what it will be. What can't be simulated, as it computes
            with the values of weights, leaves the rest to the steps themselves.
    """

    problems: Problems
    recipe: Recipe
    dense: OpenModel
    current: OpenModel
    is_known: bool = True

    def go(self, step: Step[Any]) -> None:
        """Look at a step, and let it change the model's shape."""
        looks: dict[str, Callable[[Any], None]] = {
            "teacher": self._teach,
            "decompose": self._decompose,
            "pretrain": self._heal,
            "finetune": self._train,
        }
        if self.is_known or step.name == "decompose":
            with self._simulated():
                looks[step.name](step)
        else:
            self._look_apart(step)

    def _look_apart(self, step: Step[Train]) -> None:
        """Look at a training step whose model is not known: at all that does not depend on it."""
        assert step.data is not None  # the recipe's validation has seen to it
        at = samples.key_of_data(step.name, step.settings.data)
        size = step.settings.batch_size or step.data.batch_size
        for name in ("train", "val"):
            samples.look(
                self.problems,
                self.current,
                step.data,
                getattr(step.data, name),
                step.task,
                at,
                (*at, name),
                size,
                training=name == "train",
            )
        training.check_settings(self.problems, step, self.current, None)

    def _teach(self, step: Step[Train]) -> None:
        self._train(step)
        self.dense = shapes.copied(self.current)

    def _train(self, step: Step[Train]) -> None:
        trained = training.train(self.problems, step, self.current)
        self.is_known, self.current = trained is not None, trained or self.current

    def _heal(self, step: Step[Pretrain]) -> None:
        if lookup.latest(Path(step.source)) is not None or step.source == step.model:
            with self.problems.at((step.name,)):
                training.check_student(step, self.current)
        training.heal(self.problems, step, self.current, self._teacher(step))

    def _teacher(self, step: Step[Pretrain]) -> OpenModel:
        """The dense model as it will be: an artefact of [teacher] that is there already, or what
        is made of the recipe's model."""
        path = lookup.latest(Path(step.dense)) if step.dense != step.model else None
        return self.dense if path is None else shapes.of(str(path), step.opening)

    def _decompose(self, step: Step[Decompose]) -> None:
        settings, problems = step.settings, self.problems
        if step.calibration is not None:
            own = settings.calibrate == "train"
            at: Key = ("data",) if own else (step.name, "calibrate")
            split_key: Key = ("data", "train") if own else at
            data, task = step.calibration.data, step.calibration.task
            samples.look(problems, self.current, data, data.train, task, at, split_key)
        if settings.max_drop is not None:
            self._look_at_drop(step)
        before = len(problems)
        of_plan: Key = (step.name,) if settings.plan is None else (step.name, "plan")
        with problems.at(of_plan, _key_in_decompose):
            self._factorise(settings)
        self.is_known = self.is_known and len(problems) == before

    def _factorise(self, settings: Decompose) -> None:
        """Give the model layers of such ranks as the budget asks for, if all mattered alike."""
        opened = self.current
        selection = Selection(opened.head, settings.include, settings.exclude)
        layers = find.find_dense(opened.module, selection, opened.ref)
        dense = DenseModel(opened.module, opened.ref, layers, None, opened)
        pins_by_name(_flat_spectra(dense), settings.pin)
        if not _is_planned_by_shapes(settings):
            self.is_known = False
            return
        plan = choose(_flat_spectra(dense), dense.size, settings)
        with without_values():
            replace.replace_empty(opened.module, plan.ranks(), plan.forms())

    def _look_at_drop(self, step: Step[Decompose]) -> None:
        """What decompose.max_drop measures on."""
        settings, data = step.settings, step.data
        assert data is not None  # the recipe's validation has seen to it
        at = samples.key_of_data(step.name, settings.data)
        split = settings.split or data.val
        split_key: Key = (step.name, "split") if settings.split else (*at, "val")
        if not samples.is_here(data):
            samples.look_from_afar(self.problems, data, split, at, split_key)
            return
        with self.problems.at((*at, "dataset"), samples.key_of_split({split: split_key})):
            task = None if step.task.is_default else step.task.name
            measured = measure_evaluation.open_data(
                self.current, data, task, step.task.settings, split=settings.split
            )
            if measured.labelled and measured.task.MAIN is None:
                self.problems.add(
                    (step.name, "max_drop"), f"task {measured.task_name!r} has no metric to drop"
                )

    def judge(self) -> None:
        """Look at [eval]."""
        with self._simulated():
            self._judge()

    def _judge(self) -> None:
        section, recipe = self.recipe.eval, self.recipe
        assert section is not None
        baseline = self.dense
        if section.against is not None:
            with self.problems.at(("eval", "against")):
                baseline = shapes.of(section.against, opening_of(recipe))
        trained = recipe.finetune.data if recipe.finetune else None
        data = section.data or trained or recipe.data
        if data is None:
            return
        own = ("eval", section.data) if section.data else ("finetune", trained)
        at = samples.key_of_data(*own)
        split = section.split or data.val
        split_key: Key = ("eval", "split") if section.split else (*at, "val")
        if not samples.is_here(data):
            samples.look_from_afar(self.problems, data, split, at, split_key)
            return
        task = NamedTask(*schema.task_of(recipe, tasks.judged_by(recipe)[1]))
        if not self.is_known:
            size = section.batch_size or data.batch_size
            samples.look(self.problems, self.current, data, split, task, at, split_key, size)
            return
        task_key = tasks.key_of_task(*tasks.judged_by(recipe))
        with self.problems.at((*at, "dataset"), _key_in_eval({split: split_key}, task_key)):
            measured = measure_evaluation.open_data(
                self.current,
                data,
                task.name,
                task.settings,
                split=section.split,
                batch_size=section.batch_size,
                insists=section.task is not None or "task" in recipe.model_fields_set,
            )
            if section.max_drop is not None:
                self._check_gate(measured, baseline)
            by = f"{measured.main_metric} of task {measured.task_name}, and "
            self.problems.chosen.append(
                f"eval: by {by if measured.main_metric else ''}the agreement with the dense model"
            )

    def _check_gate(self, measured: Any, baseline: OpenModel) -> None:
        """Look whether eval.max_drop will have figures to compare."""
        remedy = "leave it out, or fine-tune the dense model too ([teacher])"
        classes = heads.num_classes(self.current)
        same = heads.num_classes(baseline) == classes
        if measured.main_metric is None and classes == 1:
            reason = "needs labels, as the model gives one number a sample"
        elif not same or (measured.main_metric and not measured.task.fits(baseline)):
            reason = f"{baseline.ref} has other outputs, so it has no figure to drop from"
        else:
            return
        self.problems.add(("eval", "max_drop"), f"{reason}; {remedy}")

    @contextmanager
    def _simulated(self) -> Iterator[None]:
        """While active, code that needs the values of weights may fail. The step itself will then
        say what is wrong, if anything is."""
        try:
            yield
        except PelaError:
            raise
        except Exception as error:  # whatever a library raises where it finds no values
            self.is_known = False
            info(f"not looked at any further: {type(error).__name__}: {error}")


def _flat_spectra(dense: DenseModel) -> list[Spectrum]:
    """Spectra of layers all of whose directions matter alike."""
    return [Spectrum(layer.name, layer.shape, np.ones(min(layer.shape))) for layer in dense.free]


def _is_planned_by_shapes(settings: Decompose) -> bool:
    """Whether shapes alone tell that there is a plan: of parameters, by a ratio or from a file.
    Other budgets are a matter of spectra, figures, FLOPs or times."""
    budgets = set(settings.budgets)
    return settings.plan is not None or (settings.counted[0] == "params" and budgets == {"ratio"})


def _key_in_decompose(message: str) -> Key | None:
    """The key of [decompose] that a refusal is about, where it names one first."""
    for name in ("include", "exclude", "pin", "plan", "ratio", "max_rank", "min_rank"):
        if message.startswith((name, f"--{name}")):
            return ("decompose", name)
    return None


def _key_in_eval(splits: dict[str, Key], task_key: Key) -> Callable[[str], Key | None]:
    of_data = samples.key_of_split(splits, task_key)

    def key_of(message: str) -> Key | None:
        return ("eval",) if "judge" in message else of_data(message)

    return key_of
