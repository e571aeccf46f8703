"""Grounding: which box of an image an expression refers to (RefCOCO+), found without ever having
been told boxes. Percent of expressions whose box overlaps the right one by half or more.

ALBEF's way: the map of a fusion layer's cross-attention, weighted by what the matching score feels
of it (Grad-CAM), scores the boxes that a detector offers. Training is that of retrieval.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.pairs.view import PairModel
    from pelacli.recipe.schema import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import referring
from pelacli.data.formats.referring import Box, Referring
from pelacli.data.loader import Batch
from pelacli.errors import RequestError
from pelacli.lowrank.calls import evaluating
from pelacli.models.pairs.families import view_of
from pelacli.recipe.fields import Text
from pelacli.system import processes
from pelacli.system.devices import move_batch
from pelacli.tasks import retrieval
from pelacli.tasks.common.pairs import Entries, PairTask, both, stacked, together
from pelacli.tasks.common.pictures import Look, mirrored


class Task(PairTask):
    MAIN: ClassVar[str | None] = "accuracy"
    KIND: ClassVar[str] = "grounding"

    layer: int = Field(8, ge=0, description="text layer whose cross-attention is looked at")
    boxes: Text | None = Field(None, description="JSON of the boxes to choose from, by image_id")
    refs: Text | None = Field(None, description="JSON of what is meant, where entries have ref_id")

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """Images are never cropped: what is referred to might be cut off."""
        wanted = both(inputs, data)
        judged = not training and not unlabelled
        boxes, refs = (self.boxes, self.refs) if judged else (None, None)
        entries, name = referring.read(data.dataset, split, self.images, boxes, refs)
        numbers = {image: number for number, image in enumerate(dict.fromkeys(
            one.image for one in entries
        ))}  # fmt: skip
        make = Make(Look(wanted, data, training, crop=False), self.wording, numbers, judged)
        collate = Collate(self.tokens(wanted.text), judged)
        return Dataset(data.dataset, Entries(entries), make, collate, name, labelled=not unlabelled)

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        return retrieval.Task().forward(module, batch)

    def loss(self, output: Any, batch: Batch) -> Mapping[str, Tensor]:
        return retrieval.Task().loss(output, batch)

    def evaluate(
        self,
        module: nn.Module,
        loader: Iterable[Batch],
        device: torch.device,
        num_classes: int | None,
    ) -> dict[str, float]:
        """``accuracy`` over all expressions; ``val_d``, ``testA_d`` … of each part of the data, as
        far as the entries tell theirs."""
        view = view_of(module)
        counts: dict[str, list[int]] = {}
        with evaluating(module):
            for batch in loader:
                maps = heatmaps(view, move_batch(batch["inputs"], device), self.layer).cpu()
                for heat, raw, size in zip(maps, batch["raw"], batch["sizes"], strict=True):
                    right = int(overlap(chosen(heat, raw.boxes, size), raw.box) >= 0.5)
                    for name in ("accuracy", *([f"{raw.split}_d"] if raw.split else [])):
                        count = counts.setdefault(name, [0, 0])
                        count[0] += right
                        count[1] += 1
        return {name: 100 * right / of for name, (right, of) in sorted(_summed(counts).items())}


def heatmaps(view: PairModel, inputs: Mapping[str, Tensor], layer: int) -> Tensor:
    """How much each patch speaks for the match of text and image.

    Attention times its positive gradient of the match logit, over the words that are no padding,
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
    felt = (attention.detach() * gradient.clamp_min(0) * mask)[..., 1:].mean((1, 2))
    side = math.isqrt(felt.shape[1])
    return felt.reshape(-1, side, side).float()


def chosen(heat: Tensor, boxes: Sequence[Box], size: tuple[int, int]) -> Box:
    """The box with the most heat for its size: the sum over its pixels by the root of its area.

    Args:
        heat: [n, n], enlarged to the image bicubically.
        size: (width, height) of the image in pixels.
    """
    width, height = size
    pixels = F.interpolate(heat[None, None].double(), (height, width), mode="bicubic")[0, 0]
    sums = F.pad(pixels.cumsum(0).cumsum(1), (1, 0, 1, 0))  # of all above and to the left

    def score(box: Box) -> float:
        x, y, w, h = box
        left, right = (min(max(int(v), 0), width) for v in (x, x + w))
        top, bottom = (min(max(int(v), 0), height) for v in (y, y + h))
        inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
        return float(inside) / math.sqrt(w * h)

    return max(boxes, key=score)


def overlap(one: Box, other: Box) -> float:
    """Intersection over union of two boxes [x, y, width, height]."""
    (x, y, w, h), (u, v, a, b) = one, other
    shared = max(0.0, min(x + w, u + a) - max(x, u)) * max(0.0, min(y + h, v + b) - max(y, v))
    return shared / (w * h + a * b - shared)


def _check(one: Referring) -> None:
    if one.box is None:
        raise RequestError(f"{one.where}: no bbox of what is meant; give task_args.refs")
    if not one.boxes:
        raise RequestError(f"{one.where}: no boxes to choose from; give task_args.boxes")


def _summed(counts: dict[str, list[int]]) -> dict[str, list[int]]:
    """Over all processes; each has seen its share of the expressions."""
    parts = processes.all_gather(counts)
    names = {name for part in parts for name in part}
    return {
        name: [sum(part.get(name, [0, 0])[i] for part in parts) for i in range(2)] for name in names
    }


@dataclass
class Make:
    """A sample from an expression."""

    look: Look
    wording: Callable[[str], str]
    numbers: Mapping[str, int]
    judged: bool

    def __call__(self, raw: Referring, where: str) -> Batch:
        if self.judged:
            _check(raw)
        picture = self.look.read(raw.image, where)
        image, flipped = self.look.show(picture)
        text = self.wording(mirrored(raw.text) if flipped else raw.text)
        return {
            "image": image, "text": text, "id": self.numbers[raw.image], "raw": raw,
            "size": picture.size,
        }  # fmt: skip


@dataclass
class Collate:
    """A batch of expressions; with what they are judged by."""

    tokens: Callable[[Sequence[str]], dict[str, Tensor]]
    judged: bool

    def __call__(self, items: list[Batch]) -> Batch:
        texts = self.tokens([item["text"] for item in items])
        batch: Batch = {"inputs": together(items, texts), "ids": stacked(items, "id")}
        if self.judged:
            batch["raw"] = [item["raw"] for item in items]
            batch["sizes"] = [item["size"] for item in items]
        return batch
