"""Vision–language pre-training as ALBEF's: contrast, matching, and masked words under the image.

What PELA distils are the passes of `albef.objectives.passes`; the teacher runs these and nothing
else. Masks come with the samples, so teacher and student read the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor, nn
from torchmetrics import MeanMetric

from pelacli.data import Batch, Dataset, decode
from pelacli.errors import RequestError
from pelacli.formats import captions
from pelacli.models.albef import momentum, objectives
from pelacli.models.albef.network import Albef
from pelacli.tasks._pairs import padded, picture
from pelacli.tasks.base import Base

if TYPE_CHECKING:
    from collections.abc import Callable

    from pelacli.models import Inputs, PairInput
    from pelacli.recipe import Data


class Task(Base):
    MAIN: ClassVar[str | None] = "matching"

    images: str | None = Field(None, description="folder that image paths are seen from")
    max_tokens: int = Field(25, ge=3, description="of a caption, with its start and its end")
    mask: float = Field(0.15, gt=0, lt=1, description="share of words that are hidden")
    queue: int = Field(65536, ge=1, description="pairs that the contrast remembers")
    momentum: float = Field(0.995, ge=0, le=1, description="decay of the slow copies")
    alpha: float = Field(0.4, ge=0, le=1, description="share of the slow copies in soft targets")
    ramp: float = Field(1.0, ge=0, description="epochs over which alpha rises to that")

    _pairs: int = PrivateAttr(0)  # of the training split, which an epoch of the ramp is

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """Images with captions; ``data.dataset`` as in `captions.read`."""
        pair = _checked(inputs, data)
        source, found = captions.read(data.dataset, split, self.images)
        if training:
            self._pairs = len(source)
        make = _Make(
            picture(pair.image, data.augment if training else None),
            pair.text.tokenizer,
            min(self.max_tokens, pair.text.max_length),
            self.mask,
            training,
        )
        return Dataset(data.dataset, source, make, make.collate, found, labelled=not unlabelled)

    @contextmanager
    def training(self, module: nn.Module) -> Iterator[None]:
        """With momentum copies of the module as it is now, and queues."""
        network = _albef(module)
        momentum.attach(
            network,
            queue=self.queue,
            decay=self.momentum,
            weight=self.alpha,
            ramp=round(self.ramp * self._pairs),
        )
        try:
            yield
        finally:
            momentum.detach(network)

    def forward(self, module: nn.Module, batch: Batch) -> dict[str, Any]:
        network = _albef(module)
        pairs = objectives.passes(network, batch)
        return {"last_hidden_state": pairs.masked, "pairs": pairs, "network": network}

    def loss(self, output: Mapping[str, Any], batch: Batch) -> dict[str, Tensor]:
        """ "contrast", "matching" and "words", each a mean over the batch."""
        return objectives.pretraining(output["network"], output["pairs"], batch)

    def metrics(self, num_classes: int | None) -> Figures:
        return Figures()


class Figures:
    """In percent: ``matching``, true pairs and pairs with the batch's next text that are told
    apart; ``words``, hidden words that are named; ``contrast``, images and texts whose nearest of
    the batch is their own (the smaller the batch, the easier)."""

    def __init__(self) -> None:
        self.shares = {name: MeanMetric() for name in ("matching", "words", "contrast")}

    def to(self, device: torch.device) -> Figures:
        for share in self.shares.values():
            share.to(device)
        return self

    def update(self, output: Mapping[str, Any], batch: Batch) -> None:
        network, pairs = output["network"], output["pairs"]
        mask, ids = batch["inputs"]["attention_mask"], batch["ids"]
        following = torch.arange(1, len(ids) + 1, device=ids.device) % len(ids)
        true = network.match(pairs.text, mask, pairs.image).argmax(1) == 1
        other = ids != ids[following]
        false = network.match(pairs.text[following], mask[following], pairs.image).argmax(1) == 0
        self._add("matching", torch.cat([true, false[other]]))
        there = batch["masked_labels"] != -100
        words = network.text_encoder.words(pairs.masked[there]).argmax(-1)
        self._add("words", words == batch["masked_labels"][there])
        similar = network.image_features(pairs.image) @ network.text_features(pairs.text).T
        nearest = torch.cat([similar.argmax(1), similar.argmax(0)])
        self._add("contrast", ids[nearest] == ids.repeat(2))

    def _add(self, name: str, right: Tensor) -> None:
        if len(right):
            self.shares[name].update(right.float())

    def compute(self) -> dict[str, float]:
        """The figures so far, of what there was to judge."""
        found = {name: 100 * float(share.compute()) for name, share in self.shares.items()}
        return {name: value for name, value in found.items() if math.isfinite(value)}


@dataclass
class _Make:
    """A sample from a raw one, and a batch from samples; see `albef.objectives` for their names."""

    picture: Callable[[Any], Tensor]
    tokenizer: Any
    max_tokens: int
    mask: float
    training: bool

    def __post_init__(self) -> None:
        from transformers import DataCollatorForLanguageModeling

        self._hide = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=self.mask)

    def __call__(self, raw: captions.Raw, where: str) -> Batch:
        image, texts, number = raw
        text = captions.plain(random.choice(texts) if self.training else texts[0])
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        masked, labels = self._hide.torch_mask_tokens(torch.tensor([ids]))
        pixels = self.picture(decode(image, "RGB", where))
        return {"image": pixels, "ids": ids, "masked": masked[0].tolist(),
                "labels": labels[0].tolist(), "number": number}  # fmt: skip

    def collate(self, items: list[Batch]) -> Batch:
        filler = self.tokenizer.pad_token_id
        ids = [item["ids"] for item in items]
        return {
            "inputs": {
                "pixel_values": torch.stack([item["image"] for item in items]),
                "input_ids": padded(ids, filler),
                "attention_mask": padded([[1] * len(row) for row in ids], 0),
            },
            "masked_ids": padded([item["masked"] for item in items], filler),
            "masked_labels": padded([item["labels"] for item in items], -100),
            "ids": torch.tensor([item["number"] for item in items]),
        }


def _checked(inputs: Inputs, data: Data) -> PairInput:
    if not hasattr(inputs, "image"):
        raise RequestError("task 'vision-language': the model does not see images beside texts")
    pair = cast("PairInput", inputs)
    tokenizer = pair.text.tokenizer
    if tokenizer is None:
        raise RequestError(
            "task 'vision-language': the model came without a tokenizer; put the tokenizer files "
            "(for ALBEF, vocab.txt of bert-base-uncased) beside its weights"
        )
    if tokenizer.mask_token_id is None:
        raise RequestError("task 'vision-language': the model's tokenizer has no mask token")
    if data.image_size not in (None, pair.image.size[1]):
        raise RequestError(
            f"data.image_size: the model takes {pair.image.size[1]} pixels; set "
            f"model_args.image_size = {data.image_size} where it is decomposed"
        )
    return pair


def _albef(module: nn.Module) -> Albef:
    if not isinstance(module, Albef) or module.config.variant != "pretrain":
        raise RequestError(
            "task 'vision-language': trains ALBEF with all its heads (variant 'pretrain'), not "
            f"{type(module).__name__}"
            + (f"'s {module.config.variant!r}" if isinstance(module, Albef) else "")
        )
    return module
