"""Image–text retrieval: which caption belongs to which image; recall both ways, in percent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.pairs.view import PairModel
    from pelacli.recipe.schema import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import captions
from pelacli.data.formats.captions import Captioned
from pelacli.data.loader import Batch
from pelacli.lowrank.calls import evaluating
from pelacli.models.pairs.families import view_of
from pelacli.system.devices import move_batch
from pelacli.tasks.common import ranking
from pelacli.tasks.common.pairs import Entries, PairTask, both, stacked, together
from pelacli.tasks.common.pictures import Look, mirrored


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
        wanted = both(inputs, data)
        entries, name = captions.read(data.dataset, split, self.images)
        if training:
            entries = [
                Captioned(one.image, one.number, one.where, [caption])
                for one in entries
                for caption in one.captions
            ]
        look = Look(wanted, data, training)
        make = Make(look, self.wording)
        collate = Collate(self.tokens(wanted.text), training)
        return Dataset(data.dataset, Entries(entries), make, collate, name, labelled=not unlabelled)

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        """Both sides of the pairs by themselves, and matched where the model matches."""
        view, inputs = view_of(module), batch["inputs"]
        images, texts = view.encode_images(inputs["pixel_values"]), view.encode_texts(inputs)
        found: dict[str, Any] = {"view": view, "images": images, "texts": texts}
        found["matched"] = view.match(images, texts) if view.matches else None
        sides = [side.features for side in (images, texts) if side.features is not None]
        main = torch.cat(sides, -1) if sides else found["matched"]
        return found | {"logits": main}  # what a student's outputs are compared with a teacher's by

    def loss(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        view: PairModel = output["view"]
        return view.retrieval_losses(output["images"], output["texts"], output["matched"], batch)

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
            images, texts, numbers, text_of = [], [], [], []
            for batch in loader:
                inputs = move_batch(batch["inputs"], device)
                images.append(view.encode_images(inputs["pixel_values"]).to("cpu"))
                texts.append(view.encode_texts(move_batch(batch["texts"], device)).to("cpu"))
                numbers.append(batch["ids"])
                text_of.append(batch["text_of"])
            split = ranking.Split.share(images, texts, numbers, text_of)
            return ranking.recalls(view, split, self.k_test, device)


@dataclass
class Make:
    """A sample from an image with its captions."""

    look: Look
    wording: Callable[[str], str]

    def __call__(self, raw: Captioned, where: str) -> Batch:
        image, flipped = self.look(raw.image, where)
        said = [mirrored(text) if flipped else text for text in raw.captions]
        return {"image": image, "texts": [self.wording(text) for text in said], "id": raw.number}


@dataclass
class Collate:
    """A batch: the pairs of the images with their first captions, and all captions beside them."""

    tokens: Callable[[Sequence[str]], dict[str, Tensor]]
    training: bool

    def __call__(self, items: list[Batch]) -> Batch:
        first = self.tokens([item["texts"][0] for item in items])
        batch = {"inputs": together(items, first), "ids": stacked(items, "id")}
        if self.training:
            return batch
        texts = [text for item in items for text in item["texts"]]
        of = [item["id"] for item in items for _ in item["texts"]]
        return batch | {"texts": self.tokens(texts), "text_of": torch.tensor(of)}
