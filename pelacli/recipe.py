"""The recipe: one validated description of the whole pipeline. No torch.

Reading a file, overriding keys and reporting mistakes is `pelacli.recipe_file`'s matter.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    WithJsonSchema,
    model_validator,
)

# A decimal or a fraction. Exponents end at three digits: Fraction("1e-999999999") never returns.
_RATIO = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d{1,3})?|[+-]?\d+/\d+", re.IGNORECASE)


class Mistake(ValueError):  # noqa: N818
    """Keys that don't go together.

    Args:
        keys: dotted, seen from the section that is checked; the first is the one to mend.
    """

    def __init__(self, message: str, *keys: str) -> None:
        super().__init__(message)
        self.keys = [tuple(key.split(".")) for key in keys]


def parse_ratio(value: str | float | Fraction) -> Fraction:
    """A ratio, exactly: "0.5", "2/3", 0.1 (which is 1/10).

    Raises:
        ValueError: it is no number, or not above 0 and at most 1.
    """
    text = re.sub(r"\s*/\s*", "/", str(value).strip())
    try:
        ratio = Fraction(text) if _RATIO.fullmatch(text) else None
    except (ValueError, ZeroDivisionError):
        ratio = None
    if ratio is None:
        raise ValueError(f"{value!r} is no ratio; give a decimal or a fraction: 0.5, 2/3")
    if not 0 < ratio <= 1:
        raise ValueError(f"{text} is out of range; a ratio is above 0 and at most 1")
    return ratio


def _ratio(value: Any) -> str:
    parse_ratio(str(value).lower() if isinstance(value, bool) else value)
    return str(value)


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{value!r} is no regular expression ({error})") from None
    return value


def _pin(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
    if not whole and value not in ("dense", "full"):
        raise ValueError(f"{value!r} is no rank; give a whole number, 'dense' or 'full'")
    return value


def _argument(value: Any) -> Any:
    for item in value if isinstance(value, list) else [value]:
        if not isinstance(item, bool | int | float | str):
            raise ValueError("expected a number, text, true or false, or a list of these")
    return value


def _named(value: Any) -> Any:
    if value == "":
        raise ValueError("is empty")
    return value


def _pair(value: Any) -> Any:
    if not isinstance(value, list | tuple) or len(value) != 2:
        raise ValueError("expected two numbers, as [0.5, 1.0]")
    return value


def _range(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"{list(value)} is no range; the smaller number comes first")
    return value


Text = Annotated[str, Field(min_length=1)]
Pattern = Annotated[str, AfterValidator(_pattern)]
Scalar = bool | int | float | str
Argument = Annotated[Scalar | list[Scalar], BeforeValidator(_argument)]
Pin = Annotated[Annotated[int, Field(ge=0)] | Literal["dense", "full"], BeforeValidator(_pin)]
Ratio = Annotated[
    str,
    BeforeValidator(_ratio),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "number"}]}),
]
# Files have lists for tuples and text for paths, hence not strict.
FilePath = Annotated[Path, Strict(False), BeforeValidator(_named)]
Positive = Annotated[float, Field(gt=0)]
Beta = Annotated[float, Field(ge=0, lt=1)]
_pairs = (Strict(False), BeforeValidator(_pair))
Range = Annotated[tuple[Positive, Positive], *_pairs, AfterValidator(_range)]
Betas = Annotated[tuple[Beta, Beta], *_pairs]


class Section(BaseModel):
    """Unknown keys are mistakes, nothing is converted ("5" is no number), values never change."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True)


class Augment(Section):
    """Training transforms, in timm's words."""

    none: bool = Field(False, description="no random transforms at all")
    scale: Range = Field((0.08, 1.0), description="area of random crops, least and most")
    ratio: Range = Field((0.75, 4 / 3), description="aspect of random crops, least and most")
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

    dataset: Text = Field(
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
    betas: Betas | None = Field(None, description="of Adam's averages")
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

    @model_validator(mode="after")
    def _falls(self) -> Self:
        if self.sched != "none" and self.min_lr > self.lr:
            raise Mistake(
                f"min_lr {self.min_lr:g} is above lr {self.lr:g}; lower it", "min_lr", "lr"
            )
        return self


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

    @model_validator(mode="after")
    def _learns(self) -> Self:
        loss = self.loss
        label_free = (loss.feature, loss.logits, loss.perturbation)
        if not any(label_free) and (self.labels is False or not loss.task):
            raise Mistake("no loss is left to train on; give one a weight above 0", "loss")
        return self


class Decompose(Section):
    """How small, and by which ranks."""

    ratio: Ratio = Field("1/2", description="parameters after / before: 0.5, 2/3")
    scope: Literal["model", "layers"] = Field("model", description="what the ratio counts")
    policy: Literal["energy", "uniform", "threshold"] = Field(
        "energy", description="how ranks are chosen"
    )
    threshold: float | None = Field(None, gt=0, le=1, description="share of energy a layer keeps")
    calibrate: Text | None = Field(None, description="unlabelled samples: a dataset, or train")
    samples: int = Field(256, ge=1, description="how many samples to calibrate on")
    correct: bool = Field(False, description="refit each layer to the inputs it really gets")
    blend: float = Field(0.5, ge=0, le=1, description="share of the refitted weight")
    include: list[Pattern] = Field([], description="only layers whose name matches")
    exclude: list[Pattern] = Field([], description="not layers whose name matches")
    pin: dict[Pattern, Pin] = Field({}, description="layers → rank, dense or full")
    min_rank: int = Field(1, ge=0, description="smallest rank")
    max_rank: int | None = Field(None, ge=1, description="largest rank")
    multiple: int = Field(1, ge=1, description="ranks are multiples of this")
    plan: FilePath | None = Field(None, description="JSON plan to use, in place of a policy")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.correct and self.calibrate is None:
            raise Mistake("needs samples to refit to; give calibrate", "correct")
        if self.policy == "threshold" and self.threshold is None:
            raise Mistake("'threshold' needs threshold too, the share of energy to keep", "policy")
        if self.threshold is not None and "policy" not in self.model_fields_set:
            raise Mistake("needs policy = 'threshold' too", "threshold")
        low, high = self.min_rank, self.max_rank
        if high is not None and high < low:
            raise Mistake(
                f"max_rank {high} is below min_rank {low}; change one", "max_rank", "min_rank"
            )
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

    model: Text = Field(description="timm name or alias, hub id, directory, file, artefact")
    weights: Text = Field("pretrained", description="pretrained, random, or a path")
    arch: str | None = Field(None, description="architecture of a bare safetensors file")
    model_args: dict[str, Argument] = Field({}, description="for the architecture")
    num_classes: int | None = Field(None, ge=1, description="outputs, if not the checkpoint's")
    output: FilePath = Field(description="directory of the run; each step writes into it")
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
    def _finite(self) -> Self:
        for key in _not_finite(self.model_dump()):  # the manifest's JSON could not hold it
            raise Mistake("expected a finite number", key)
        return self

    @model_validator(mode="after")
    def _has_data(self) -> Self:
        if self.data is not None:
            return self
        for name in ("teacher", "pretrain", "finetune"):
            section = getattr(self, name)
            if section is not None and section.data is None:
                raise Mistake(f"needs data; add [data] or [{name}.data]", name)
        if self.decompose is not None and self.decompose.calibrate == "train":
            raise Mistake("'train' is the recipe's own data; add [data]", "decompose.calibrate")
        last = self.eval
        if last and last.max_drop is not None and not (last.data or self.finetune):
            raise Mistake("needs data to measure on; add [data] or [eval.data]", "eval.max_drop")
        return self


def _not_finite(value: Any, key: str = "") -> Iterator[str]:
    """The keys, dotted, of numbers that are infinite or none."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _not_finite(item, f"{key}.{name}" if key else name)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _not_finite(item, key)
    elif isinstance(value, float) and not math.isfinite(value):
        yield key


def resolved(recipe: Recipe) -> dict[str, Any]:
    """Every key with its value, ready for JSON; `Recipe.model_validate` reads it back."""
    return recipe.model_dump(mode="json")


def schema() -> dict[str, Any]:
    """The JSON schema of recipes."""
    return Recipe.model_json_schema()


# What changes how a result is come by, and not the result.
_NO_EFFECT = {
    "workers", "compile", "checkpointing", "save_every", "keep", "log_every", "eval_every",
    "trackers",
}  # fmt: skip


def fingerprint(recipe: Recipe, section: str, inputs: str) -> str:
    """What decides the result of a step, as a SHA-256.

    Args:
        section: the step's, as "decompose".
        inputs: digest of the weights that the step starts from.
    """
    whole = resolved(recipe)
    top = ("model", "weights", "arch", "model_args", "num_classes", "seed")
    own = {key: value for key, value in (whole[section] or {}).items() if key not in _NO_EFFECT}
    task = own.pop("task", None) or whole["task"]
    data = own.pop("data", None) or whole["data"] or {}
    data = {key: value for key, value in data.items() if key not in _NO_EFFECT}
    if size := own.pop("batch_size", None):
        data["batch_size"] = size
    if section == "decompose" and recipe.decompose is not None:
        # It sees no more of the data than what it calibrates on.
        used = {"dataset", "train", "image_size"} if own["calibrate"] == "train" else set()
        data = {key: value for key, value in data.items() if key in used}
        own["ratio"] = str(parse_ratio(own["ratio"]))  # 0.5 and 1/2 are one ratio
        own["plan"] = _digest(recipe.decompose.plan)  # people edit it under its old name
    parts = {key: whole[key] for key in top}
    parts |= {"task": task, "section": own, "data": data, "inputs": inputs}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _digest(file: Path | None) -> str | None:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None
    except OSError:
        return None  # the step itself will say so
