"""Vision–language pre-training as ALBEF's: contrast, matching, and masked words under the image.

What PELA distils are the passes of `albef.objectives.passes`; the teacher runs these and nothing
else. Masks come with the samples, so teacher and student read the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torchmetrics import MeanMetric

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs, PairInput
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.schema import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import captions
from pelacli.data.formats.captions import Captioned
from pelacli.data.loader import Batch, Samples
from pelacli.errors import RequestError
from pelacli.models.albef import objectives
from pelacli.models.albef.network import Albef
from pelacli.tasks.common.pairs import Entries, PairTask, both, stacked, together
from pelacli.tasks.common.pictures import Look, mirrored


class Task(PairTask):
    MAIN: ClassVar[str | None] = "matching"

    clean: bool = Field(True, description="lower case and no punctuation, as ALBEF reads")
    max_words: int | None = Field(30, ge=1, description="captions are cut there")
    max_tokens: int | None = Field(25, ge=3, description="of a caption, with its start and its end")
    mask: float = Field(0.15, gt=0, lt=1, description="share of words that are hidden")

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        """A sample is an entry of the data: an image with one caption or several."""
        wanted = _checked(inputs, data)
        entries, name = captions.read(data.dataset, split, self.images, together=False)
        limit = min(self.max_tokens or wanted.text.max_length, wanted.text.max_length)
        look = Look(wanted, data, training)
        make = Make(look, self.wording, wanted.text.tokenizer, limit, self.mask, training)
        return Dataset(
            data.dataset, Entries(entries), make, make.collate, name, labelled=not unlabelled
        )

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        return opened

    def training(self, module: nn.Module, dataset: Samples) -> AbstractContextManager[Any]:
        return super().training(_albef(module), dataset)

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
class Make:
    """A sample from an image with its captions, and a batch from samples; see `albef.objectives`
    for their names."""

    look: Look
    wording: Callable[[str], str]
    tokenizer: Any
    max_tokens: int
    mask: float
    training: bool

    def __post_init__(self) -> None:
        from transformers import DataCollatorForLanguageModeling

        self._hide = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=self.mask)

    def __call__(self, raw: Captioned, where: str) -> Batch:
        image, flipped = self.look(raw.image, where)
        caption = random.choice(raw.captions) if self.training else raw.captions[0]
        text = self.wording(mirrored(caption) if flipped else caption)
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        masked, labels = self._hide.torch_mask_tokens(torch.tensor([ids]))
        return {"image": image, "ids": ids, "masked": masked[0].tolist(),
                "labels": labels[0].tolist(), "number": raw.number}  # fmt: skip

    def collate(self, items: list[Batch]) -> Batch:
        filler = self.tokenizer.pad_token_id
        ids = [item["ids"] for item in items]
        mask = _padded([[1] * len(row) for row in ids], 0)
        texts = {"input_ids": _padded(ids, filler), "attention_mask": mask}
        return {
            "inputs": together(items, texts),
            "masked_ids": _padded([item["masked"] for item in items], filler),
            "masked_labels": _padded([item["labels"] for item in items], -100),
            "ids": stacked(items, "number"),
        }


def _padded(rows: Sequence[Sequence[int]], filler: int) -> Tensor:
    """Rows of token numbers of several lengths → [B, T]."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)


def _checked(inputs: Inputs, data: Data) -> PairInput:
    pair = both(inputs, data)
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
