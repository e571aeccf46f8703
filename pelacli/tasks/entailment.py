"""Visual entailment: whether an image contradicts a sentence, leaves it open or entails it;
accuracy in percent (SNLI-VE)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import entailment
from pelacli.data.formats.entailment import LABELS, Claim
from pelacli.data.loader import Batch
from pelacli.models.opened import OpenModel
from pelacli.models.pairs.families import view_of
from pelacli.tasks.common.heads import all_named, head_classes
from pelacli.tasks.common.pairs import (
    Entries,
    PairTask,
    PreparePair,
    Tokenise,
    fit_pair_model,
    pair_input,
    pair_inputs,
    stack,
)
from pelacli.tasks.common.pictures import PreparePicture, swap_sides
from pelacli.tasks.image_classification import Accuracy


class Task(PairTask):
    MAIN: ClassVar[str | None] = "accuracy"
    KIND: ClassVar[str] = "entailment"

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        pair = pair_input(inputs, data)
        entries, name = entailment.read(data.dataset, split, self.images)
        picture = PreparePicture(pair, data, training)
        prepare = PrepareClaim(picture, self.wording, labelled=not unlabelled)
        collate = CollateClaims(self.tokeniser(pair.text))
        classes = None if unlabelled else LABELS
        return Dataset(
            data.dataset, Entries(entries), prepare, collate, name, classes, labelled=not unlabelled
        )

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A head of three classes, or of more if the recipe says so, unless the model has one."""
        names = all_named(*head_classes(dataset, classes))
        return fit_pair_model(opened, self.KIND, seed, dataset, names)

    def forward(self, module: nn.Module, batch: Batch) -> Mapping[str, Any]:
        view = view_of(module)
        return {"view": view, "logits": view.classify(batch["inputs"])}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        loss: Tensor = output["view"].class_loss(output["logits"], batch)
        return loss

    def metrics(self, num_classes: int | None) -> EntailmentMetrics:
        return EntailmentMetrics(max(len(LABELS), num_classes or 0))


class EntailmentMetrics(Accuracy):
    """``accuracy`` in percent and ``loss``, of what `Task.forward` gives."""

    def update(self, output: Any, batch: Batch) -> None:
        super().update(output["logits"], batch)


@dataclass
class PrepareClaim(PreparePair):
    """A sample of an image and a claim about it."""

    labelled: bool

    def __call__(self, raw: Claim, where: str) -> Batch:
        image, mirrored = self.picture(raw.image, where)
        text = self.wording(swap_sides(raw.text) if mirrored else raw.text)
        item: Batch = {"image": image, "text": text}
        return item | ({"label": raw.label} if self.labelled else {})


@dataclass
class CollateClaims:
    """A batch of claims, with ``labels`` [B] where there are some."""

    tokenise: Tokenise

    def __call__(self, items: list[Batch]) -> Batch:
        texts = self.tokenise([item["text"] for item in items])
        batch: Batch = {"inputs": pair_inputs(items, texts)}
        if "label" in items[0]:
            batch["labels"] = stack(items, "label").to(torch.long)
        return batch
