"""Visual entailment: whether an image contradicts a sentence, leaves it open or entails it;
accuracy in percent (SNLI-VE)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.recipe.schema import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import entailment
from pelacli.data.formats.entailment import LABELS, Claim
from pelacli.data.loader import Batch
from pelacli.models.opened import OpenModel
from pelacli.models.pairs.families import view_of
from pelacli.tasks.common.heads import all_named, head_classes
from pelacli.tasks.common.pairs import Entries, PairTask, both, fitted, stacked, together
from pelacli.tasks.common.pictures import Look, mirrored
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
        wanted = both(inputs, data)
        entries, name = entailment.read(data.dataset, split, self.images)
        make = Make(Look(wanted, data, training), self.wording, not unlabelled)
        collate = Collate(self.tokens(wanted.text))
        classes = None if unlabelled else LABELS
        return Dataset(
            data.dataset, Entries(entries), make, collate, name, classes, labelled=not unlabelled
        )

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A head of three classes, or of more if the recipe says so, unless the model has one."""
        return fitted(opened, self.KIND, seed, dataset, all_named(*head_classes(dataset, classes)))

    def forward(self, module: nn.Module, batch: Batch) -> Mapping[str, Any]:
        view = view_of(module)
        return {"view": view, "logits": view.classify(batch["inputs"])}

    def loss(self, output: Any, batch: Batch) -> Tensor:
        found: Tensor = output["view"].class_loss(output["logits"], batch)
        return found

    def metrics(self, num_classes: int | None) -> Shares:
        return Shares(max(len(LABELS), num_classes or 0))


class Shares(Accuracy):
    """``accuracy`` in percent and ``loss``, of what `Task.forward` gives."""

    def update(self, output: Any, batch: Batch) -> None:
        super().update(output["logits"], batch)


@dataclass
class Make:
    """A sample from a claim."""

    look: Look
    wording: Callable[[str], str]
    labelled: bool

    def __call__(self, raw: Claim, where: str) -> Batch:
        image, flipped = self.look(raw.image, where)
        text = self.wording(mirrored(raw.text) if flipped else raw.text)
        item: Batch = {"image": image, "text": text}
        return item | ({"label": raw.label} if self.labelled else {})


@dataclass
class Collate:
    """A batch of claims."""

    tokens: Callable[[Sequence[str]], dict[str, Tensor]]

    def __call__(self, items: list[Batch]) -> Batch:
        batch: Batch = {"inputs": together(items, self.tokens([item["text"] for item in items]))}
        if "label" in items[0]:
            batch["labels"] = stacked(items, "label").to(torch.long)
        return batch
