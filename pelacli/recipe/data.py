"""The sections that say where samples come from and how they are transformed. No torch."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pelacli.recipe.fields import Range, Section, Text


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
    on_bad_sample: Literal["refuse", "skip"] = Field(
        "refuse",
        description="a training or calibration sample that can't be read stops the step, or is "
        "passed over and counted; evaluation always stops",
    )
    augment: Augment = Field(Augment(), description="training transforms")

    @property
    def skips_bad(self) -> bool:
        """Whether training and calibration pass over samples that can't be read."""
        return self.on_bad_sample == "skip"
