"""The cells of `reproduce.py`: which model is healed how, as recipes of pela's own steps.

A cell is one line of the results: a method, a ratio, a seed. Its recipe runs by
`pelacli.steps.pipeline.run`, as `pela run` would, so what is done is skipped and what was stopped
in the middle goes on from its checkpoint.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pelacli.manifest import document
from pelacli.recipe import layout
from pelacli.recipe.evaluation import Evaluation, NamedModel
from pelacli.recipe.schema import Recipe
from pelacli.steps import eval as steps_eval
from pelacli.steps import pipeline

# How each stage trains. The rates are choices: to change one, look at the validation figure of the
# rows, not at the tests. The warm-up is a share of the steps.
TEACHER = {"lr": 5e-5, "warmup": 0.1, "weight_decay": 0.05}
# At 1e-4 the dense model still learned the digits, low-rank ones hardly; at 3e-4 neither did.
TRANSFER = {"lr": 3e-5, "warmup": 0.1, "weight_decay": 0.05}
PAPER = {"lr": 2e-4, "warmup": 0.1, "weight_decay": 0.05}
PAPER_LOSS = {"task": 1.0, "feature": 1.0, "logits": 0.0, "perturbation": 1.0, "eps": 1e-3}
# A good start needs a small learning rate: 1e-4 ruined it within twenty steps
# (docs/log/healing-and-training.md). Calibration moves it away from the dense weights on purpose,
# so the perturbation loss would pull it back to a worse model. The teacher's logits say more than
# the labels alone.
OURS = {"lr": 1e-5, "warmup": 0.2, "weight_decay": 0.05}
OURS_LOSS = {"task": 1.0, "feature": 1.0, "logits": 1.0, "perturbation": 0.0, "eps": 1e-3}
LABEL_FREE = {"task": 0.0, "feature": 1.0, "logits": 0.0, "perturbation": 0.0, "eps": 1e-3}


@dataclass(frozen=True)
class Method:
    """A way to a low-rank model.

    Attributes:
        start: "svd" (uniform ranks, plain), "ours" (calibrated, corrected), None: stays dense.
        train, loss: of the healing; None: untrained. Without a loss it is the task's alone.
        share: of the N steps.
        transfer: whether it is fine-tuned on the other task too.
        at: the ratios it is wanted at; None: all.
        backbone: of the headless model, without labels, and judged by a probe.
        seeded: whether the seed changes anything, so that several are worth their time.
    """

    start: str | None
    train: dict[str, float] | None = None
    loss: dict[str, float] | None = None
    share: Fraction = Fraction(1)
    transfer: bool = False
    at: tuple[str, ...] | None = None
    backbone: bool = False
    seeded: bool = True

    @property
    def section(self) -> str:
        """The step that makes the model; "" for the dense one as it is."""
        if self.start is None:
            return "finetune" if self.train is not None else ""
        return "pretrain" if self.train is not None else "decompose"


_WITHOUT = {
    "feature distillation": {"feature": 0.0},
    "perturbation": {"perturbation": 0.0},
    "both": {"feature": 0.0, "perturbation": 0.0},
}
# What makes our healing what it is: one setting at a time, in a quarter of the steps.
_SETTINGS: dict[str, tuple[dict[str, float], dict[str, float]]] = {
    "": ({}, {}),
    ", without labels": ({}, {"task": 0.0}),
    ", without logits": ({}, {"logits": 0.0}),
    ", labels alone": ({}, {"feature": 0.0, "logits": 0.0}),
    ", taps joining over half": ({"taps_over": 0.5}, {}),
    ", factors at a third of the rate": ({"factor_lr": 1 / 3}, {}),
    ", averaged weights": ({"ema": 0.95}, {}),
    ", from plain SVD": ({}, {}),
}
METHODS = {
    "dense": Method(None, transfer=True),
    # What labels alone would still teach the dense model in the steps that healing takes.
    "dense, N steps more": Method(None, OURS, seeded=False),
    "plain SVD, untrained": Method("svd", seeded=False),
    "the paper's, N steps": Method("svd", PAPER, PAPER_LOSS, transfer=True),
    "ours, untrained": Method("ours"),
    "ours, N/10 steps": Method("ours", OURS, OURS_LOSS, Fraction(1, 10)),
    "ours, N steps": Method("ours", OURS, OURS_LOSS, transfer=True),
    **{
        f"the paper's without {what}": Method("svd", PAPER, PAPER_LOSS | off, at=("1/2",))
        for what, off in _WITHOUT.items()
    },
    **{
        f"ours, N/4 steps{what}": Method(
            "svd" if "SVD" in what else "ours",
            OURS | train,
            OURS_LOSS | loss,
            Fraction(1, 4),
            at=("1/2",),
            seeded=False,
        )
        for what, (train, loss) in _SETTINGS.items()
    },
    "backbone: dense": Method(None, backbone=True, seeded=False),
    "backbone: ours, untrained": Method("ours", backbone=True, seeded=False),
    "backbone: ours, healed without labels": Method(
        "ours", OURS, LABEL_FREE, backbone=True, seeded=False
    ),
}


@dataclass(frozen=True)
class Settings:
    """What all cells share; written beside every result.

    Attributes:
        model: directory of the headless model; data: of the folders of images.
        size: pixels a side; samples: of the calibration; steps: N.
        multiple: of which our start's ranks are; None: as pela chooses. The paper's are single.
        form: of our start's layers; the paper's have factors.
    """

    model: str
    data: str
    size: int
    steps: int
    teacher_steps: int
    transfer_steps: int
    samples: int
    train: int
    tests: int
    batch: int
    precision: str
    multiple: int | None = None
    form: str = "auto"

    def stamp(self) -> dict[str, Any]:
        """What decides the results, and no path."""
        own = {k: v for k, v in asdict(self).items() if k not in ("model", "data")}
        return own | {"teacher": TEACHER, "transfer": TRANSFER}


@dataclass(frozen=True)
class Cell:
    """One line of the results."""

    name: str
    ratio: str
    seed: int

    @property
    def method(self) -> Method:
        return METHODS[self.name]

    @property
    def key(self) -> tuple[str, str, int]:
        return self.name, self.ratio, self.seed

    @property
    def healing(self) -> dict[str, Any] | None:
        """How it is trained, for the record."""
        method = self.method
        return None if method.train is None else {**method.train, "loss": method.loss}

    @property
    def slug(self) -> str:
        """A name for its folder."""
        words = "".join(c if c.isalnum() else " " for c in self.name).split()
        return "-".join([*words, self.ratio.replace("/", "_"), str(self.seed)])


def cells(ratios: Sequence[str], seeds: Sequence[int], methods: Sequence[str]) -> list[Cell]:
    """All cells, those that say most first: the first seed of all ratios, the others at 1/2, and
    last the ablations, which are for one ratio.

    The dense model has no ratio and is fine-tuned by every seed.
    """
    wanted = [name for name in METHODS if name in methods]
    middle = "1/2" if "1/2" in ratios else ratios[0]
    found = []
    for i, seed in enumerate(seeds):
        for ratio in sorted(ratios, key=lambda r: r != middle) if i == 0 else [middle]:
            for name in wanted:
                method = METHODS[name]
                if i and not method.seeded:
                    continue
                if method.start is None:
                    if ratio == middle:
                        found.append(Cell(name, "1", seed))
                elif method.at is None or ratio in method.at:
                    found.append(Cell(name, ratio, seed))
    return sorted(found, key=lambda cell: cell.method.at is not None)


def begin_with(spec: Recipe, start: Path) -> None:
    """Let a recipe's run begin with a low-rank model that is there already: many runs share one."""
    own = layout.folder(spec, "decompose")
    own.parent.mkdir(parents=True, exist_ok=True)
    if not own.is_symlink():
        own.symlink_to(start.absolute())


class Workshop:
    """Where the cells run. Starts and the teacher stay; a finished cell's models are removed."""

    def __init__(self, settings: Settings, work: Path, device: str, workers: int) -> None:
        self.settings, self.work, self.device = settings, work, device
        self.data = {
            "dataset": settings.data,
            "image_size": settings.size,
            "batch_size": settings.batch,
            "workers": workers,
            "augment": {"none": True},
        }

    def teacher(self) -> str:
        """The dense model, fine-tuned on the images; a directory."""
        spec = self._recipe(
            self.settings.model,
            self.work / "teacher",
            0,
            teacher=self._train(TEACHER, self.settings.teacher_steps, self.settings.train),
        )
        pipeline.run(spec)
        return layout.dense(spec)

    def run(
        self, cell: Cell, probe: Callable[[str], float], *, keep: bool = False
    ) -> dict[str, Any]:
        """The cell's figures; ``probe`` gives that of a headless model's directory."""
        spec, start = self.spec(cell), self.start(cell)
        if start is not None:
            pipeline.run(start)
            begin_with(spec, layout.folder(start, "decompose"))
        if spec.decompose is not None or spec.finetune is not None:
            pipeline.run(spec)
        figures = self._figures(cell, spec, probe)
        if not keep:
            shutil.rmtree(spec.output, ignore_errors=True)
        return figures

    def start(self, cell: Cell) -> Recipe | None:
        """The recipe of the cell's low-rank model before training; many cells begin with one."""
        method = cell.method
        if method.start is None:
            return None
        name = f"{method.start}{'-backbone' if method.backbone else ''}"
        if method.start == "ours":
            name += f"-{self.settings.form}"
        output = self.work / "starts" / f"{name}-{cell.ratio.replace('/', '_')}-{cell.seed}"
        return self._recipe(self._dense(cell), output, cell.seed, decompose=self._decompose(cell))

    def spec(self, cell: Cell) -> Recipe:
        """The cell's recipe."""
        method, s = cell.method, self.settings
        sections: dict[str, Any] = {}
        if method.start is not None:
            sections["decompose"] = self._decompose(cell)
        if method.train is not None:
            steps = max(1, int(s.steps * method.share))
            sections[method.section] = self._train(method.train, steps, s.train)
        if method.loss is not None:
            sections["pretrain"] |= {"loss": method.loss, "labels": not method.backbone}
        if method.transfer:
            digits = self.data | {"dataset": "digits"}
            sections["finetune"] = self._train(TRANSFER, s.transfer_steps, 1437) | {"data": digits}
        if method.backbone:
            sections["task"] = "unlabelled"
        return self._recipe(
            self._dense(cell), self.work / "cells" / cell.slug, cell.seed, **sections
        )

    def _dense(self, cell: Cell) -> str:
        return self.settings.model if cell.method.backbone else str(self.work / "teacher" / "dense")

    def _decompose(self, cell: Cell) -> dict[str, Any]:
        common = {"ratio": cell.ratio, "scope": "layers"}
        if cell.method.start == "svd":
            return common | {"policy": "uniform", "multiple": 1}
        s = self.settings
        ours = {"samples": s.samples, "multiple": s.multiple, "form": s.form}
        return common | {"calibrate": "train"} | ours

    def _train(self, table: dict[str, float], steps: int, images: int) -> dict[str, Any]:
        """A training section of so many updates; recipes count the warm-up in epochs."""
        found: dict[str, Any] = dict(table)
        per_epoch = max(1, images // self.settings.batch)
        found["warmup_epochs"] = round(found.pop("warmup") * steps) / per_epoch
        return found | {
            "epochs": 1 + steps / per_epoch,
            "steps": steps,
            "min_lr": 0.0,
            "warmup_lr": 0.0,
            "eval_every": 1_000_000,  # at the end alone
            "save_every": 25,
            "keep": 1,
            "precision": self.settings.precision,
        }

    def _recipe(self, model: str, output: Path, seed: int, **sections: Any) -> Recipe:
        top = {"model": model, "output": str(output), "seed": seed, "device": self.device}
        return Recipe.model_validate(top | {"data": self.data} | sections)

    def _figures(self, cell: Cell, spec: Recipe, probe: Callable[[str], float]) -> dict[str, Any]:
        method = cell.method
        healed = layout.folder(spec, method.section) if method.section else Path(spec.model)
        figures: dict[str, Any] = {"steps": 0, "seconds": 0.0}
        if method.train is not None:
            last = document.read(healed).history[-1]
            figures |= {"steps": last.metrics["steps"], "seconds": last.seconds}
            figures["validation"] = last.metrics.get("accuracy")
            figures["losses"] = last.metrics["losses"]
        if method.backbone:
            figures["probe"] = probe(str(healed))
        else:
            evaluated = steps_eval.run(
                Evaluation(
                    NamedModel(str(healed)),
                    data=spec.data,
                    split="test",
                    latency=False,
                    device=self.device,
                )
            )
            figures["accuracy"] = evaluated.metrics["accuracy"]
            figures["params"] = evaluated.params
        if method.transfer:
            done = document.read(layout.folder(spec, "finetune")).history[-1]
            figures["transfer"] = done.metrics["accuracy"]
        return figures
