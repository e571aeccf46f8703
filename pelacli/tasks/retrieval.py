"""Image–text retrieval: which caption belongs to which image; recall both ways, in percent."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.pairs.view import PairModel
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import captions
from pelacli.data.formats.captions import Captioned
from pelacli.data.loader import Batch
from pelacli.lowrank.calls import evaluating
from pelacli.models.pairs.families import view_of
from pelacli.system.devices import move_batch
from pelacli.tasks.common import ranking
from pelacli.tasks.common.pairs import (
    Entries,
    PairTask,
    PreparePair,
    Tokenise,
    pair_input,
    pair_inputs,
    stack,
)
from pelacli.tasks.common.pictures import PreparePicture, swap_sides


class Task(PairTask):
    MAIN: ClassVar[str | None] = "mean_r"
    KIND: ClassVar[str] = "retrieval"

    k_test: int = Field(
        128, ge=1, description="likeliest candidates that matching ranks anew, where a model does"
    )

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """For training a sample is a caption with its image, else an image with its captions."""
        pair = pair_input(inputs, data)
        entries, name = captions.read(data.dataset, split, self.images)
        if training:
            entries = [
                Captioned(entry.image, entry.number, entry.where, [caption])
                for entry in entries
                for caption in entry.captions
            ]
        prepare = PrepareCaptions(PreparePicture(pair, data, training), self.wording)
        collate = CollateCaptions(self.tokeniser(pair.text), training)
        return Dataset(
            data.dataset, Entries(entries), prepare, collate, name, labelled=not unlabelled
        )

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        return encode_and_match(module, batch)

    def loss(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        return retrieval_losses(output, batch)

    @torch.no_grad()
    def evaluate(
        self,
        module: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        num_classes: int | None,
    ) -> dict[str, float]:
        """``text_r1``, ``text_r5``, ``text_r10``: percent of images of which a caption is among the
        first 1, 5, 10 of all captions of the split; ``image_r…``: of captions, whose image is among
        the first of all images; ``mean_r``, the mean of the six."""
        view = view_of(module)
        with evaluating(module):
            images, texts, image_ids, text_ids = [], [], [], []
            for batch in loader:
                inputs = move_batch(batch["inputs"], device)
                images.append(view.encode_images(inputs["pixel_values"]).to("cpu"))
                texts.append(view.encode_texts(move_batch(batch["texts"], device)).to("cpu"))
                image_ids.append(batch["ids"])
                text_ids.append(batch["text_of"])
            split = ranking.EncodedSplit.gather(images, texts, image_ids, text_ids)
            return ranking.recalls(view, split, self.k_test, device)


def encode_and_match(module: nn.Module, batch: Batch) -> dict[str, Any]:
    """Images and texts of a batch, each encoded by itself, and the pairs' matching logits where the
    model matches. ``logits`` are what a student's outputs are compared with its teacher's by."""
    view, inputs = view_of(module), batch["inputs"]
    images, texts = view.encode_images(inputs["pixel_values"]), view.encode_texts(inputs)
    matched = view.match(images, texts) if view.matches else None
    features = [side.features for side in (images, texts) if side.features is not None]
    logits = torch.cat(features, -1) if features else matched
    return {"view": view, "images": images, "texts": texts, "matched": matched, "logits": logits}


def retrieval_losses(output: Any, batch: Batch) -> Mapping[str, Tensor]:
    """ "contrast" and "matching", as far as the model compares and matches.

    Args:
        output: of `encode_and_match`.
    """
    view: PairModel = output["view"]
    return view.retrieval_losses(output["images"], output["texts"], output["matched"], batch)


@dataclass
class PrepareCaptions(PreparePair):
    """A sample of an image with its captions."""

    def __call__(self, raw: Captioned, where: str) -> Batch:
        image, mirrored = self.picture(raw.image, where)
        texts = [swap_sides(text) if mirrored else text for text in raw.captions]
        return {"image": image, "texts": [self.wording(text) for text in texts], "id": raw.number}


@dataclass
class CollateCaptions:
    """A batch: pairs of an image with its first caption, and, to evaluate, all captions too."""

    tokenise: Tokenise
    training: bool

    def __call__(self, items: list[Batch]) -> Batch:
        first = self.tokenise([item["texts"][0] for item in items])
        batch = {"inputs": pair_inputs(items, first), "ids": stack(items, "id")}
        if self.training:
            return batch
        texts = [text for item in items for text in item["texts"]]
        image_of_text = [item["id"] for item in items for _ in item["texts"]]
        return batch | {"texts": self.tokenise(texts), "text_of": torch.tensor(image_of_text)}
