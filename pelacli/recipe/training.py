"""The sections of the steps that train, with the weights of the healing losses. No torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, create_model, model_validator

from pelacli.distillation import registry as distillation
from pelacli.recipe.data import Data
from pelacli.recipe.fields import (
    Argument,
    Betas,
    Epochs,
    Pattern,
    Precision,
    Section,
    SectionError,
    Text,
)


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
    min_lr: float = Field(1e-6, ge=0, description="learning rate where the schedule ends")
    warmup_lr: float = Field(1e-6, ge=0, description="learning rate where the warm-up starts")
    warmup_epochs: float = Field(0, ge=0, description="length of the warm-up, in epochs")
    sched: Text = Field("cosine", description="timm's name of the schedule, or none")
    weight_decay: float = Field(
        0.05, ge=0, description="of weights; norms, biases and position tables never decay"
    )
    betas: Betas | None = Field(None, description="decay of Adam's two averages")
    momentum: float = Field(0.9, ge=0, le=1, description="momentum of SGD and its kin")
    layer_decay: float | None = Field(None, gt=0, le=1, description="lr factor per layer down")
    clip_grad: float | None = Field(None, gt=0, description="largest norm of the gradient")
    factor_lr: float = Field(1.0, gt=0, description="lr factor of the low-rank factors")
    factor_decay: Literal["each", "product", "none"] = Field(
        "each", description="what decays of a low-rank layer: each factor, up·down, or nothing"
    )
    dropout: bool = Field(True, description="dropout and stochastic depth as the model was built")
    drop_path: float | None = Field(
        None, ge=0, lt=1, description="stochastic depth; unset: as the model was built"
    )
    drop_path_rule: Literal["linear", "constant"] = Field(
        "linear", description="drop_path rises with depth, or is the same in all blocks"
    )
    ema: float | None = Field(None, gt=0, lt=1, description="decay of the averaged weights")
    precision: Precision = Field("fp32", description="fp32, or mixed: bf16, fp16")
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
    eval_every: Epochs | None = Field(
        1, description="epochs between evaluations; a fraction will do"
    )
    trackers: list[Text] = Field([], description="accelerate's trackers: tensorboard, wandb")

    @model_validator(mode="after")
    def _check_learning_rates(self) -> Self:
        if isinstance(self.lr, str):  # [pretrain]'s "auto", with which they go down together
            return self
        if self.sched != "none" and self.min_lr > self.lr:
            raise SectionError(
                f"min_lr {self.min_lr:g} is above lr {self.lr:g}; lower it", "min_lr", "lr"
            )
        return self


class _Loss(Section):
    """Weights of the healing losses; 0 leaves one out."""

    task: float = Field(1.0, ge=0, description="the task's own loss, where there are labels")
    output: float = Field(
        0.0, ge=0, description="distance of the outputs: kl of classes and words, else relative"
    )
    feature: float = Field(1.0, ge=0, description="mean squared difference at the taps")
    feature_unit: Literal["relative", "absolute"] = Field(
        "absolute", description="relative: a share of each tap's variance in the teacher"
    )
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
        settings = {"temperature", "eps", "perturbation_form", "feature_unit"}
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

    lr: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(  # type: ignore[assignment]
        "auto", description="learning rate; auto: what short trials on held-out samples find"
    )
    dropout: bool = Field(
        False,
        description="dropout and stochastic depth as the model was built; the teacher has none",
    )
    loss: Loss = Field(
        Loss(output=1.0, feature_unit="relative"),
        description="weights of the losses; unset: task, output and feature, in units of their own",
    )
    result: Literal["last", "best"] = Field(
        "best",
        description="weights of the artefact: of the best evaluation, the start's too, or the last",
    )
    eval_every: Epochs | None = Field(
        None, description="epochs between evaluations; a tenth of the run if unset"
    )
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
