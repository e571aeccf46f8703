"""The recipe: one validated description of the whole pipeline. No torch.

Reading a file, overriding keys and reporting mistakes is `pelacli.recipe_file`'s matter.
"""

from __future__ import annotations

import re
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def parse_ratio(value: str | float | int) -> Fraction:
    """A ratio, exactly: "0.5", "2/3", 0.1 (which is 1/10).

    Raises:
        ValueError: it is no number, or not above 0 and at most 1.
    """
    try:
        ratio = Fraction(str(value).replace(" ", ""))
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{value!r} is no ratio; give a decimal or a fraction: 0.5, 2/3") from None
    if not 0 < ratio <= 1:
        raise ValueError(f"{value} is no ratio; it must be above 0 and at most 1")
    return ratio


def _ratio(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return value
    parse_ratio(value)
    return str(value)


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"{value!r} is no regular expression ({error})") from None
    return value


Ratio = Annotated[str, BeforeValidator(_ratio)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Pin = Annotated[int, Field(ge=0)] | Literal["dense", "full"]
Scalar = bool | int | float | str


class Section(BaseModel):
    """Unknown keys are mistakes, values never change after validation."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Augment(Section):
    """Training transforms, in timm's words."""

    none: bool = Field(False, description="no random transforms at all")
    scale: tuple[float, float] = Field((0.08, 1.0), description="area range of random crops")
    ratio: tuple[float, float] = Field((0.75, 4 / 3), description="aspect range of random crops")
    hflip: float = Field(0.5, ge=0, le=1, description="probability of a horizontal flip")
    vflip: float = Field(0.0, ge=0, le=1, description="probability of a vertical flip")
    color_jitter: float | None = Field(0.4, ge=0, description="strength of colour jitter")
    auto_augment: str | None = Field(None, description="timm's policy, as rand-m9-mstd0.5-inc1")
    reprob: float = Field(0.0, ge=0, le=1, description="probability of random erasing")
    mixup: float = Field(0.0, ge=0, description="mixup's alpha; 0 is off")
    cutmix: float = Field(0.0, ge=0, description="cutmix's alpha; 0 is off")
    mixup_prob: float = Field(1.0, ge=0, le=1, description="share of batches that are mixed")
    smoothing: float = Field(0.0, ge=0, lt=1, description="label smoothing")
    repeats: int = Field(1, ge=1, description="times each sample comes in an epoch (RepeatAug)")
    interpolation: str | None = Field(
        None, description="of training crops; the model's own if unset"
    )
    crop_pct: float | None = Field(None, gt=0, le=1, description="centre crop of evaluation")


class Data(Section):
    """Where samples come from."""

    dataset: str = Field(
        description="digits, a folder, hfds/NAME, torch/NAME, wds/DIRECTORY, or a text file"
    )
    train: str = Field("train", description="name of the split to train on")
    val: str = Field("validation", description="name of the split to evaluate on")
    image_size: int | None = Field(
        None, ge=1, description="pixels a side; the model's own if unset"
    )
    batch_size: int = Field(64, ge=1, description="samples per batch, over all processes")
    workers: int = Field(0, ge=0, description="processes that load data")
    augment: Augment = Field(Augment(), description="training transforms")


class Train(Section):
    """How to train: [teacher] and [finetune]."""

    task: str | None = Field(None, description="task, where it is not the recipe's")
    data: Data | None = Field(None, description="data, where it is not the recipe's")
    epochs: float = Field(1, gt=0, description="passes over the data; a fraction will do")
    steps: int | None = Field(None, ge=1, description="stop after so many updates")
    batch_size: int | None = Field(None, ge=1, description="in place of data.batch_size")
    opt: str = Field("adamw", description="timm's name of the optimizer")
    lr: float = Field(1e-3, ge=0, description="learning rate")
    min_lr: float = Field(1e-6, ge=0, description="where the schedule ends")
    warmup_lr: float = Field(1e-6, ge=0, description="where the warm-up starts")
    warmup_epochs: float = Field(0, ge=0, description="length of the warm-up")
    sched: str = Field("cosine", description="timm's name of the schedule, or none")
    weight_decay: float = Field(0.05, ge=0, description="not for norms, biases, position tables")
    betas: tuple[float, float] | None = Field(None, description="of Adam's averages")
    momentum: float = Field(0.9, ge=0, le=1, description="of SGD and its kin")
    layer_decay: float | None = Field(None, gt=0, le=1, description="lr factor per layer down")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    drop_path: float | None = Field(None, ge=0, lt=1, description="stochastic depth")
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights")
    precision: Literal["no", "fp16", "bf16"] = Field("no", description="mixed precision")
    accumulate: int = Field(1, ge=1, description="batches per update")
    compile: bool = Field(False, description="torch.compile the model")
    checkpointing: bool = Field(False, description="recompute activations to save memory")
    save_every: int | None = Field(None, ge=1, description="updates between checkpoints")
    keep: int = Field(2, ge=1, description="checkpoints to keep")
    log_every: int = Field(10, ge=1, description="updates between lines of metrics.jsonl")
    eval_every: int = Field(1, ge=1, description="epochs between evaluations")
    trackers: list[str] = Field([], description="accelerate's trackers: tensorboard, wandb")


class Loss(Section):
    """Weights of the healing losses; 0 leaves one out."""

    task: float = Field(1.0, ge=0, description="the task's own loss, where there are labels")
    feature: float = Field(1.0, ge=0, description="mean squared difference at the taps")
    logits: float = Field(0.0, ge=0, description="mean squared difference of the outputs")
    perturbation: float = Field(0.0, ge=0, description="largest entry of up·down - W against eps")
    eps: float = Field(1e-3, ge=0, description="target of the perturbation")
    perturbation_form: Literal["two-sided", "hinge"] = Field(
        "two-sided", description="the paper's, or only what exceeds eps"
    )


class Pretrain(Train):
    """How to heal."""

    loss: Loss = Field(Loss(), description="weights of the losses")
    taps: list[Pattern] | None = Field(None, description="modules to distil; the blocks if unset")
    labels: bool | None = Field(None, description="use labels; unset: where the data has them")


class Decompose(Section):
    """How small, and by which ranks."""

    ratio: Ratio = Field("1/2", description="parameters after / before: 0.5, 2/3")
    scope: Literal["model", "layers"] = Field("model", description="what the ratio counts")
    policy: Literal["energy", "uniform", "threshold"] = Field(
        "energy", description="how ranks are chosen"
    )
    threshold: float | None = Field(None, gt=0, le=1, description="share of energy a layer keeps")
    calibrate: str | None = Field(None, description="unlabelled samples: a dataset, or train")
    samples: int = Field(256, ge=1, description="how many samples to calibrate on")
    include: list[Pattern] = Field([], description="only layers whose name matches")
    exclude: list[Pattern] = Field([], description="not layers whose name matches")
    pin: dict[Pattern, Pin] = Field({}, description="layers → rank, dense or full")
    min_rank: int = Field(1, ge=0, description="smallest rank")
    max_rank: int | None = Field(None, ge=1, description="largest rank")
    multiple: int = Field(1, ge=1, description="ranks are multiples of this")
    plan: Path | None = Field(None, description="JSON plan to use, in place of a policy")

    @model_validator(mode="after")
    def _complete(self) -> Decompose:
        if self.policy == "threshold" and self.threshold is None:
            raise ValueError("policy threshold needs a threshold, the share of energy to keep")
        if self.max_rank is not None and self.max_rank < self.min_rank:
            raise ValueError(f"max_rank {self.max_rank} is below min_rank {self.min_rank}")
        return self


class Eval(Section):
    """How to measure."""

    data: Data | None = Field(None, description="data, where it is not the recipe's")
    task: str | None = Field(None, description="task, where it is not the recipe's")
    batch_size: int | None = Field(None, ge=1, description="in place of data.batch_size")
    split: str | None = Field(None, description="in place of data.val")
    latency: bool = Field(True, description="time the forward pass")
    against: str | None = Field(None, description="baseline; the recipe's dense model if unset")
    max_drop: float | None = Field(None, description="points the main metric may drop by")


class Recipe(Section):
    """The whole pipeline; each step reads its section."""

    model: str = Field(description="timm name or alias, hub id, directory, file, artefact")
    weights: str = Field("pretrained", description="pretrained, random, or a path")
    arch: str | None = Field(None, description="architecture of a bare safetensors file")
    model_args: dict[str, Scalar | list[Scalar]] = Field({}, description="for the architecture")
    num_classes: int | None = Field(None, ge=1, description="outputs, if not the checkpoint's")
    output: Path = Field(description="directory of the run; each step writes into it")
    seed: int = Field(0, ge=0, description="of everything random")
    task: str = Field("image-classification", description="what the model is trained and judged on")
    device: str = Field("auto", description="auto, cpu, cuda, mps")
    data: Data | None = Field(None, description="data of all steps that name none of their own")
    teacher: Train | None = Field(None, description="train the dense model first")
    decompose: Decompose | None = Field(None, description="factorise")
    pretrain: Pretrain | None = Field(None, description="heal under the dense model")
    finetune: Train | None = Field(None, description="train on the task")
    eval: Eval | None = Field(None, description="measure at the end")

    @model_validator(mode="after")
    def _has_data(self) -> Recipe:
        if self.data is None:
            for name in ("teacher", "pretrain", "finetune"):
                section = getattr(self, name)
                if section is not None and section.data is None:
                    raise ValueError(f"[{name}] needs data; add a [data] section")
            if self.decompose is not None and self.decompose.calibrate == "train":
                raise ValueError('decompose.calibrate = "train" needs a [data] section')
        return self


# What changes how a result is come by, and not the result.
_NO_EFFECT = {
    "workers", "save_every", "keep", "log_every", "trackers", "compile", "checkpointing", "latency",
}  # fmt: skip


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, ready for JSON; `Recipe.model_validate` reads it back."""
    return recipe.model_dump(mode="json")


def schema() -> dict[str, Any]:
    """The JSON schema of recipes."""
    return Recipe.model_json_schema()


def fingerprint(recipe: Recipe, section: str, inputs: str) -> str:
    """What decides the result of a step, as a SHA-256: its settings and the digest of its input."""
    import hashlib
    import json

    whole = resolved(recipe)
    own = whole[section] or {}
    top = ("model", "weights", "arch", "model_args", "num_classes", "seed", "task")
    parts = {key: whole[key] for key in top}
    parts |= {"section": own, "data": own.get("data") or whole["data"], "inputs": inputs}
    return hashlib.sha256(json.dumps(_effective(parts), sort_keys=True).encode()).hexdigest()


def _effective(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _effective(v) for k, v in value.items() if k not in _NO_EFFECT}
    return value
