"""Grounding: which box of an image an expression refers to (RefCOCO+), by a model that was trained
without boxes. Percent of expressions whose box overlaps the right one by half or more.

As in ALBEF, the map of a fusion layer's cross-attention, weighted by the gradient of the matching
score (Grad-CAM), scores the boxes that a detector offers. Training is that of retrieval.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.pairs.view import PairModel
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import referring
from pelacli.data.formats.objects import check_inside
from pelacli.data.formats.referring import Box, Referring
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.models.pairs.families import view_of
from pelacli.recipe.fields import Text
from pelacli.system import processes
from pelacli.system.devices import move_batch
from pelacli.tasks import retrieval
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
    MAIN: ClassVar[str | None] = "accuracy"
    KIND: ClassVar[str] = "grounding"

    layer: int = Field(8, ge=0, description="text layer whose cross-attention is looked at")
    boxes: Text | None = Field(None, description="JSON of the boxes to choose from, by image_id")
    refs: Text | None = Field(None, description="JSON of the boxes that texts refer to, by ref_id")

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """Images are never cropped: a crop might lose the object that the text is about."""
        pair = pair_input(inputs, data)
        judged = not training and not unlabelled
        boxes, refs = (self.boxes, self.refs) if judged else (None, None)
        entries, name = referring.read(data.dataset, split, self.images, boxes, refs)
        images = dict.fromkeys(entry.image for entry in entries)  # each once, in their order
        numbers = {image: number for number, image in enumerate(images)}
        picture = PreparePicture(pair, data, training, crop=False)
        prepare = PrepareExpression(picture, self.wording, numbers, judged)
        collate = CollateExpressions(self.tokeniser(pair.text), judged)
        return Dataset(
            data.dataset, Entries(entries), prepare, collate, name, labelled=not unlabelled
        )

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        return retrieval.encode_and_match(module, batch)

    def loss(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        return retrieval.retrieval_losses(output, batch)

    def evaluate(
        self,
        module: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        num_classes: int | None,
    ) -> dict[str, float]:
        """``accuracy`` over all expressions; ``val_d``, ``testA_d`` … over those of each part of
        the data, where the entries name their part."""
        view = view_of(module)
        right: Counter[str] = Counter()
        asked: Counter[str] = Counter()
        with evaluating(module):
            for batch in loader:
                maps = heatmaps(view, move_batch(batch["inputs"], device), self.layer).cpu()
                for heat, raw, size in zip(maps, batch["raw"], batch["sizes"], strict=True):
                    is_right = overlap(best_box(heat, raw.boxes, size), raw.box) >= 0.5
                    for name in ("accuracy", *([f"{raw.split}_d"] if raw.split else [])):
                        right[name] += is_right
                        asked[name] += 1
        right, asked = (_over_processes(counts) for counts in (right, asked))
        return {name: 100 * right[name] / asked[name] for name in sorted(asked)}


def heatmaps(view: PairModel, inputs: Mapping[str, Tensor], layer: int) -> Tensor:
    """How much each patch speaks for the match of text and image.

    Attention times the positive part of the matching logit's gradient by it, zero at padding,
    averaged over heads and words (ALBEF, Li et al., NeurIPS 2021, section 6.3).

    Args:
        inputs: a batch of pairs.

    Returns:
        [B, n, n]. Parameters' gradients are left as they were.
    """
    pixels = inputs["pixel_values"].detach().requires_grad_()  # for models whose weights are frozen
    with torch.enable_grad(), view.attention_maps(layer) as maps:
        images, texts = view.encode_images(pixels), view.encode_texts(inputs)
        maps.clear()
        score = view.match(images, texts)[:, 1].sum()
        (attention,) = maps
        (gradient,) = torch.autograd.grad(score, attention)
    mask = inputs["attention_mask"][:, None, :, None]
    heat = (attention.detach() * gradient.clamp_min(0) * mask)[..., 1:].mean((1, 2))
    side = math.isqrt(heat.shape[1])
    return heat.reshape(-1, side, side).float()


def best_box(heat: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> Box:
    """The box with the most heat for its size: the sum over its pixels, divided by the root of its
    area.

    Args:
        heat: [n, n], enlarged to the image bicubically.
        size: (width, height) of the image in pixels.
    """
    width, height = size
    pixels = F.interpolate(heat[None, None].double(), (height, width), mode="bicubic")[0, 0]
    sums = F.pad(pixels.cumsum(0).cumsum(1), (1, 0, 1, 0))  # of all pixels above and to the left

    def score(box: Box) -> float:
        x, y, w, h = box
        left, right = (min(max(int(v), 0), width) for v in (x, x + w))
        top, bottom = (min(max(int(v), 0), height) for v in (y, y + h))
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        return float(inside) / math.sqrt(w * h)

    return max(boxes, key=score)


def overlap(box: Box, other: Box) -> float:
    """Intersection over union of two boxes [x, y, width, height]."""
    (x, y, w, h), (u, v, a, b) = box, other
    shared = max(0.0, min(x + w, u + a) - max(x, u)) * max(0.0, min(y + h, v + b) - max(y, v))
    return shared / (w * h + a * b - shared)


def _over_processes(counts: Counter[str]) -> Counter[str]:
    """The sum over all processes, each of which has seen its share of the expressions."""
    return sum(processes.all_gather(counts), Counter())


@dataclass
class PrepareExpression(PreparePair):
    """A sample of an image and an expression.

    Attributes:
        numbers: image → its number in the split.
        judged: whether the boxes are needed.
    """

    numbers: Mapping[str, int]
    judged: bool

    def __call__(self, raw: Referring, where: str) -> Batch:
        if self.judged:
            _check(raw)
        original = self.picture.decode(raw.image, where)
        if self.judged:
            _check_boxes(raw, original.size)
        image, mirrored = self.picture.prepare(original)
        text = self.wording(swap_sides(raw.text) if mirrored else raw.text)
        return {
            "image": image, "text": text, "id": self.numbers[raw.image], "raw": raw,
            "size": original.size,
        }  # fmt: skip


def _check(expression: Referring) -> None:
    if expression.box is None:
        raise RequestError(
            f"{expression.where}: no bbox of what the text refers to; give task_args.refs"
        )
    if not expression.boxes:
        raise RequestError(f"{expression.where}: no boxes to choose from; give task_args.boxes")


def _check_boxes(expression: Referring, size: tuple[int, int]) -> None:
    """Refuse boxes outside of the picture: they are those of a larger original."""
    boxes = [box for box in (expression.box, *expression.boxes) if box is not None]
    corners = [(x, y, x + width, y + height) for x, y, width, height in boxes]
    check_inside(corners, *size, f"{expression.where} ({expression.image})")


@dataclass
class CollateExpressions:
    """A batch of expressions; to evaluate, with their boxes (``raw``) and the images' sizes."""

    tokenise: Tokenise
    judged: bool

    def __call__(self, items: list[Batch]) -> Batch:
        texts = self.tokenise([item["text"] for item in items])
        batch: Batch = {"inputs": pair_inputs(items, texts), "ids": stack(items, "id")}
        if self.judged:
            batch["raw"] = [item["raw"] for item in items]
            batch["sizes"] = [item["size"] for item in items]
        return batch
