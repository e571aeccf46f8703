"""The recipe: one validated description of the whole pipeline. No torch.

`pelacli.recipe.reading` reads it from a file, and `pelacli.recipe.flags` from the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Literal, Self

from pydantic import BaseModel, Field, create_model, model_validator
from pydantic.fields import FieldInfo

from pelacli.distillation import registry as distillation
from pelacli.ranks.budget import BUDGETS, Scope, Unit
from pelacli.ranks.policies import registry
from pelacli.recipe.fields import (
    Argument,
    Betas,
    Device,
    FilePath,
    Pattern,
    Pin,
    Range,
    Ratio,
    Section,
    SectionError,
    Text,
    parse_ratio,
)
from pelacli.recipe.keys import Key

if TYPE_CHECKING:
    PolicyName = str
else:
    PolicyName = Literal[registry.names()]

# Keys of [decompose] that say what max_drop is measured on.
MEASURED_ON = ("data", "split", "task", "task_args")


class Augment(Section):
    """Training transforms, in timm's words."""

    none: bool = Field(False, description="no random transforms at all")
    scale: Range = Field((0.08, 1.0), description="area of random crops, least and most")
    ratio: Range = Field((0.75, 4 / 3), description="aspect of random crops, least and most")
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    color_jitter: float | None = Field(0.4, ge=0, description="strength of colour jitter")
    auto_augment: Text | None = Field(None, description="timm's policy, as rand-m9-mstd0.5-inc1")
    reprob: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    mixup: float = Field(0.0, ge=0, description="mixup's alpha; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="cutmix's alpha; 0 is off")
    mixup_prob: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    repeats: int = Field(1, ge=1, description="times each sample comes in an epoch (RepeatAug)")
    interpolation: Text | None = Field(
        None, description="of training crops; the model's own if unset"
    )
    crop_pct: float | None = Field(None, gt=0, le=1, description="centre crop of evaluation")


class Data(Section):
    """Where samples come from."""

    dataset: Text = Field(
        description="digits, a folder, hfds/NAME, torch/NAME, wds/DIRECTORY, or a text file"
    )
    train: Text = Field("train", description="name of the split to train on")
    val: Text = Field("validation", description="name of the split to evaluate on")
    image_size: int | None = Field(
        None, ge=1, description="pixels a side; the model's own if unset"
    )
    batch_size: int = Field(64, ge=1, description="samples per batch, over all processes")
    workers: int = Field(0, ge=0, description="processes that load data")
    augment: Augment = Field(Augment(), description="training transforms")


class Train(Section):
    """How to train: [teacher] and [finetune]."""

    task: Text | None = Field(None, description="task, where it is not the recipe's")
    task_args: dict[str, Argument] | None = Field(None, description="settings of that task")
    data: Data | None = Field(None, description="data, where it is not the recipe's")
    epochs: float = Field(1, gt=0, description="passes over the data; a fraction will do")
    steps: int | None = Field(None, ge=1, description="stop after so many updates")
    batch_size: int | None = Field(None, ge=1, description="in place of data.batch_size")
    opt: Text = Field("adamw", description="timm's name of the optimizer")
    lr: float = Field(1e-3, ge=0, description="learning rate")
    min_lr: float = Field(1e-6, ge=0, description="where the schedule ends")
    warmup_lr: float = Field(1e-6, ge=0, description="where the warm-up starts")
    warmup_epochs: float = Field(0, ge=0, description="length of the warm-up")
    sched: Text = Field("cosine", description="timm's name of the schedule, or none")
    weight_decay: float = Field(0.05, ge=0, description="not for norms, biases, position tables")
    betas: Betas | None = Field(None, description="of Adam's averages")
    momentum: float = Field(0.9, ge=0, le=1, description="of SGD and its kin")
    layer_decay: float | None = Field(None, gt=0, le=1, description="lr factor per layer down")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    factor_lr: float = Field(1.0, gt=0, description="lr factor of the low-rank factors")
    factor_decay: Literal["each", "product", "none"] = Field(
        "each", description="what decays of a low-rank layer: each factor, up·down, or nothing"
    )
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth; unset: as the model was built"
    )
    drop_path_rule: Literal["linear", "constant"] = Field(
        "linear", description="drop_path rises with depth, or is the same in all blocks"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights")
    precision: Literal["no", "fp16", "bf16"] = Field("no", description="mixed precision")
    accumulate: int = Field(1, ge=1, description="batches per update")
    channels_last: bool = Field(False, description="convolutions and images with channels last")
    compile: bool = Field(False, description="torch.compile the model")
    checkpointing: bool = Field(False, description="recompute activations to save memory")
    save_every: int | None = Field(None, ge=1, description="updates between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints to keep, beside the best")
    result: Literal["last", "best"] = Field(
        "last", description="weights of the artefact: those at the end, or of the best evaluation"
    )
    log_every: int = Field(10, ge=1, description="updates between lines of metrics.jsonl")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    trackers: list[Text] = Field([], description="accelerate's trackers: tensorboard, wandb")

    @model_validator(mode="after")
    def _check_learning_rates(self) -> Self:
        if self.sched != "none" and self.min_lr > self.lr:
            raise SectionError(
                f"min_lr {self.min_lr:g} is above lr {self.lr:g}; lower it", "min_lr", "lr"
            )
        return self


class _Loss(Section):
    """Weights of the healing losses; 0 leaves one out."""

    task: float = Field(1.0, ge=0, description="the task's own loss, where there are labels")
    feature: float = Field(1.0, ge=0, description="mean squared difference at the taps")
    logits: float = Field(0.0, ge=0, description=distillation.get("logits").DESCRIPTION)
    kl: float = Field(0.0, ge=0, description=distillation.get("kl").DESCRIPTION)
    temperature: float = Field(1.0, gt=0, description="of kl's distributions")
    cosine: float = Field(0.0, ge=0, description=distillation.get("cosine").DESCRIPTION)
    perturbation: float = Field(0.0, ge=0, description="largest entry of up·down - W against eps")
    eps: float = Field(1e-3, ge=0, description="target of the perturbation")
    perturbation_form: Literal["two-sided", "hinge"] = Field(
        "two-sided", description="the paper's, or only what exceeds eps"
    )

    @property
    def weights(self) -> dict[str, float]:
        """The losses by name, each with its weight."""
        settings = {"temperature", "eps", "perturbation_form"}
        return self.model_dump(exclude=settings)


if TYPE_CHECKING:
    Loss = _Loss
else:
    # Each loss between outputs is a file. The weights of those that pela has stand above, because
    # the order of keys in what is recorded of a recipe is theirs.
    Loss = create_model(
        "Loss",
        __base__=_Loss,
        __doc__=_Loss.__doc__,
        __module__=__name__,
        **{
            name: (float, Field(0.0, ge=0, description=distillation.get(name).DESCRIPTION))
            for name in distillation.names()
            if name not in _Loss.model_fields
        },
    )


class Pretrain(Train):
    """How to heal."""

    loss: Loss = Field(Loss(), description="weights of the losses")
    taps: list[Pattern] | None = Field(None, description="modules to distil; the blocks if unset")
    taps_over: float = Field(
        0, ge=0, le=1, description="share of the run over which taps join in, first to last"
    )
    labels: bool | None = Field(None, description="use labels; unset: where the data has them")

    @model_validator(mode="after")
    def _learns(self) -> Self:
        weights = self.loss.weights
        if self.labels is False:
            del weights["task"]
        if not any(weights.values()):
            raise SectionError("no loss is left to train on; give one a weight above 0", "loss")
        if self.taps_over and not self.loss.feature:
            raise SectionError("is about loss.feature, which is 0; give that a weight", "taps_over")
        return self


class Decompose(Section):
    """How small, and by which ranks."""

    ratio: Ratio = Field(
        None, description="after / before: 0.5, 2/3; 1/2 where nothing else says how small"
    )
    unit: Unit = Field("params", description="what the ratio counts")
    scope: Scope = Field("model", description="whose it counts")
    energy: float | None = Field(
        None, gt=0, le=1, description="as small as keeps this share of all layers' energy"
    )
    max_drop: float | None = Field(
        None, ge=0, description="as small as loses no more points of the main metric"
    )
    data: Data | None = Field(None, description="max_drop's samples, where not the recipe's data")
    split: Text | None = Field(None, description="of max_drop's samples, in place of data.val")
    task: Text | None = Field(None, description="of max_drop, where it is not the recipe's")
    task_args: dict[str, Argument] | None = Field(None, description="settings of that task")
    policy: PolicyName = Field("energy", description="how ranks are chosen")
    threshold: float | None = Field(None, gt=0, le=1, description="share of energy a layer keeps")
    calibrate: Text | None = Field(None, description="unlabelled samples: a dataset, or train")
    samples: int = Field(256, ge=1, description="how many samples to calibrate on")
    correct: bool | None = Field(
        None, description="refit each layer to the inputs it really gets; unset: with calibrate"
    )
    include: list[Pattern] = Field([], description="only layers whose name matches")
    exclude: list[Pattern] = Field([], description="not layers whose name matches")
    pin: dict[Pattern, Pin] = Field({}, description="layers → rank, dense or full")
    min_rank: int = Field(1, ge=0, description="smallest rank")
    max_rank: int | None = Field(None, ge=1, description="largest rank")
    multiple: int | None = Field(
        None, ge=1, description="ranks are multiples of this; unset: 8 in large layers by 'energy'"
    )
    plan: FilePath | None = Field(None, description="JSON plan to use, in place of a policy")

    @model_validator(mode="after")
    def _check_section(self) -> Self:
        if self.correct and self.calibrate is None:
            raise SectionError("needs samples to refit to; give calibrate", "correct")
        self._check_budget()
        by_threshold = registry.with_budget("threshold")
        if self.policy in by_threshold and self.threshold is None:
            raise SectionError(
                f"{self.policy!r} needs threshold too, the share of energy to keep", "policy"
            )
        if self.threshold is not None and "policy" not in self.model_fields_set:
            raise SectionError(f"needs policy = {_either(by_threshold)} too", "threshold")
        low, high = self.min_rank, self.max_rank
        if high is not None and high < low:
            raise SectionError(
                f"max_rank {high} is below min_rank {low}; change one", "max_rank", "min_rank"
            )
        return self

    def _check_budget(self) -> None:
        """Refuse what says how small beside energy or max_drop, or does not belong to them."""
        for budget in ("max_drop", "energy"):
            if getattr(self, budget) is None:
                continue
            for other in BUDGETS:
                if other != budget and getattr(self, other) is not None:
                    raise SectionError(
                        f"{budget} and {other} both say how small; give one", budget, other
                    )
        by_energy = registry.with_budget("energy")
        if self.energy is not None and self.policy not in by_energy:
            raise SectionError(
                f"belongs to policy {_either(by_energy)}, not to {self.policy!r}", "energy"
            )
        if self.max_drop is not None and self.policy not in registry.with_budget("ratio"):
            raise SectionError(
                f"policy {self.policy!r} has no ratio to search", "max_drop", "policy"
            )
        for key in MEASURED_ON:
            if getattr(self, key) is not None and self.max_drop is None:
                raise SectionError("is what max_drop measures on; give that too", key)

    @property
    def budget(self) -> Fraction | None:
        """The ratio to plan for; None where something else says how small."""
        if self.ratio is None and any(getattr(self, key) is not None for key in BUDGETS):
            return None
        return parse_ratio(self.ratio or "1/2")


def _either(names: Sequence[str]) -> str:
    return " or ".join(map(repr, names))


class Eval(Section):
    """How to measure."""

    data: Data | None = Field(None, description="data, where it is not the recipe's")
    task: Text | None = Field(None, description="task, where it is not the recipe's")
    task_args: dict[str, Argument] | None = Field(None, description="settings of that task")
    batch_size: int | None = Field(None, ge=1, description="in place of data.batch_size")
    split: Text | None = Field(None, description="in place of data.val")
    latency: bool = Field(True, description="time the forward pass")
    against: Text | None = Field(None, description="baseline; the recipe's dense model if unset")
    max_drop: float | None = Field(None, description="points the main metric may drop by")


class Recipe(Section):
    """The whole pipeline; each step reads its section."""

    model: Text = Field(description="timm name or alias, hub id, directory, file, artefact")
    weights: Text = Field("pretrained", description="pretrained, random, or a path")
    arch: Text | None = Field(None, description="architecture of a bare safetensors file")
    model_args: dict[str, Argument] = Field({}, description="for the architecture")
    num_classes: int | None = Field(None, ge=1, description="outputs, if not the checkpoint's")
    output: FilePath = Field(description="directory of the run; each step writes into it")
    seed: int = Field(0, ge=0, lt=2**63, description="of everything random")
    task: Text = Field(
        "image-classification", description="what the model is trained and judged on"
    )
    task_args: dict[str, Argument] = Field({}, description="settings of the task")
    device: Device = Field("auto", description="auto, cpu, cuda, mps")
    data: Data | None = Field(None, description="data of all steps that name none of their own")
    teacher: Train | None = Field(None, description="train the dense model first")
    decompose: Decompose | None = Field(None, description="factorise")
    pretrain: Pretrain | None = Field(None, description="heal under the dense model")
    finetune: Train | None = Field(None, description="train on the task")
    eval: Eval | None = Field(None, description="measure at the end")

    @model_validator(mode="after")
    def _check_data(self) -> Self:
        if self.data is not None:
            return self
        for name in ("teacher", "pretrain", "finetune"):
            section = getattr(self, name)
            if section is not None and section.data is None:
                raise SectionError(f"needs data; add [data] or [{name}.data]", name)
        if self.decompose is not None and self.decompose.calibrate == "train":
            raise SectionError(
                "'train' is the recipe's own data; add [data]", "decompose.calibrate"
            )
        if self.decompose and self.decompose.max_drop is not None and not self.decompose.data:
            raise SectionError(
                "needs samples to measure on; give --data, or [data] or [decompose.data]",
                "decompose.max_drop",
            )
        last = self.eval
        if last and last.max_drop is not None and not (last.data or self.finetune):
            raise SectionError(
                "needs data to measure on; add [data] or [eval.data]", "eval.max_drop"
            )
        return self


def task_of(
    recipe: Recipe, section: Train | Decompose | Eval | None = None
) -> tuple[str, dict[str, Any]]:
    """(name, settings) of the task of a section: its own, or else the recipe's."""
    name = getattr(section, "task", None)
    args = getattr(section, "task_args", None)
    if args is None:
        args = recipe.task_args if name in (None, recipe.task) else {}
    return name or recipe.task, dict(args)


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, ready for JSON; `Recipe.model_validate` reads it back."""
    return recipe.model_dump(mode="json")


def json_schema() -> dict[str, Any]:
    """The JSON schema of recipes."""
    return Recipe.model_json_schema()


def sections(model: type[BaseModel] = Recipe, at: Key = ()) -> dict[Key, dict[str, FieldInfo]]:
    """Every section of a recipe with the keys that it may have; () is the top level."""
    known = {at: dict(model.model_fields)}
    for name, field in model.model_fields.items():
        for option in (field.annotation, *getattr(field.annotation, "__args__", ())):
            if isinstance(option, type) and issubclass(option, BaseModel):
                known |= sections(option, (*at, name))
    return known
