"""The recipe: one validated description of the whole pipeline. No torch.

`pelacli.recipe.reading` reads it from a file, and `pelacli.recipe.flags` from the command line.
"""

from __future__ import annotations

from typing import Any, Self

from pydantic import BaseModel, Field, model_validator
from pydantic.fields import FieldInfo

from pelacli.recipe.data import Data
from pelacli.recipe.decompose import Decompose
from pelacli.recipe.fields import Argument, Device, FilePath, Section, SectionError, Text
from pelacli.recipe.keys import Key
from pelacli.recipe.training import Pretrain, Train


class Eval(Section):
    """How to measure."""

    data: Data | None = Field(None, description="data, where it is not the recipe's")
    task: Text | None = Field(None, description="task, where it is not the recipe's")
    task_args: dict[str, Argument] | None = Field(None, description="settings of that task")
    batch_size: int | None = Field(None, ge=1, description="in place of data.batch_size")
    split: Text | None = Field(None, description="in place of data.val")
    latency: bool = Field(True, description="time the forward pass")
    against: Text | None = Field(None, description="baseline; the recipe's dense model if unset")
    max_drop: float | None = Field(
        None,
        description="points that the main metric (without labels, the agreement) may drop by; "
        "more is exit code 3",
    )


class Recipe(Section):
    """The whole pipeline; each step reads its section."""

    model: Text = Field(description="timm name or alias, hub id, directory, file, artefact")
    weights: Text = Field(
        "pretrained", description="pretrained, random, or the path of a file or directory"
    )
    arch: Text | None = Field(None, description="architecture of a bare safetensors file")
    model_args: dict[str, Argument] = Field(
        {}, description="arguments of the architecture, as img_size"
    )
    num_classes: int | None = Field(
        None, ge=1, description="classes, where not as many as the checkpoint has"
    )
    output: FilePath = Field(description="directory of the run; each step writes into it")
    seed: int = Field(
        0, ge=0, lt=2**63, description="of sampling, order, augmentation and fresh weights"
    )
    task: Text = Field(
        "image-classification", description="what the model is trained and judged on"
    )
    task_args: dict[str, Argument] = Field(
        {}, description="settings of the task; each task has its own"
    )
    device: Device = Field("auto", description="auto (a GPU where there is one), cpu, cuda or mps")
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
