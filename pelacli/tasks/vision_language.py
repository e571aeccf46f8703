"""ALBEF's vision–language pre-training: contrast, matching, and masked words under the image.

PELA distils the passes of `albef.objectives.passes`, and the teacher runs nothing else. Words are
masked when a sample is made, so that teacher and student read the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
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
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset
from pelacli.data.formats import captions
from pelacli.data.formats.captions import Captioned
from pelacli.data.loader import Batch, Samples
from pelacli.errors import RequestError
from pelacli.models.albef import objectives
from pelacli.models.albef.network import Albef
from pelacli.tasks.common.metrics import TorchMetrics
from pelacli.tasks.common.pairs import (
    Entries,
    PairTask,
    PreparePair,
    pair_input,
    pair_inputs,
    stack,
)
from pelacli.tasks.common.pictures import PreparePicture, swap_sides

IGNORED = -100  # the label of a token that is not to be predicted, torch's own


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
        pair = _checked_input(inputs, data)
        entries, name = captions.read(data.dataset, split, self.images, together=False)
        text = pair.text
        masking = Masking(
            text.tokenizer, min(self.max_tokens or text.max_length, text.max_length), self.mask
        )
        picture = PreparePicture(pair, data, training)
        prepare = PrepareMaskedCaption(picture, self.wording, masking, training)
        collate = CollateMaskedCaptions(text.tokenizer.pad_token_id)
        return Dataset(
            data.dataset, Entries(entries), prepare, collate, name, labelled=not unlabelled
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

    def metrics(self, num_classes: int | None) -> PretrainingMetrics:
        return PretrainingMetrics()


class PretrainingMetrics(TorchMetrics):
    """In percent: ``matching``, how often a true pair, or an image with the batch's next text, is
    recognised as such; ``words``, how many masked words are found; ``contrast``, how many images
    and texts are nearest to their partner in the batch (easier the smaller it is)."""

    def __init__(self) -> None:
        super().__init__(matching=MeanMetric(), words=MeanMetric(), contrast=MeanMetric())

    def update(self, output: Mapping[str, Any], batch: Batch) -> None:
        network, pairs = output["network"], output["pairs"]
        mask, ids = batch["inputs"]["attention_mask"], batch["ids"]
        following = torch.arange(1, len(ids) + 1, device=ids.device) % len(ids)
        true = network.match(pairs.text, mask, pairs.image).argmax(1) == 1
        other = ids != ids[following]
        false = network.match(pairs.text[following], mask[following], pairs.image).argmax(1) == 0
        self._add("matching", torch.cat([true, false[other]]))
        masked = batch["masked_labels"] != IGNORED
        words = network.text_encoder.words(pairs.masked[masked]).argmax(-1)
        self._add("words", words == batch["masked_labels"][masked])
        similar = network.image_features(pairs.image) @ network.text_features(pairs.text).T
        nearest = torch.cat([similar.argmax(1), similar.argmax(0)])
        self._add("contrast", ids[nearest] == ids.repeat(2))

    def _add(self, name: str, right: Tensor) -> None:
        if len(right):
            self.parts[name].update(right.float())

    def compute(self) -> dict[str, float]:
        """The figures so far, without those of which there was nothing to judge."""
        figures = {name: 100 * float(share.compute()) for name, share in self.parts.items()}
        return {name: value for name, value in figures.items() if math.isfinite(value)}


class Masking:
    """A text → (its tokens, the tokens with some hidden, the hidden ones or else -100), as BERT was
    trained: of those to predict 80 % become the mask token, 10 % another token, 10 % stay.

    Args:
        share: of the words that are to be predicted.
    """

    def __init__(self, tokenizer: Any, max_tokens: int, share: float) -> None:
        from transformers import DataCollatorForLanguageModeling

        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)

    def __call__(self, text: str) -> tuple[list[int], list[int], list[int]]:
        ids = self.tokenizer(text, truncation=True, max_length=self.max_tokens)["input_ids"]
        masked, labels = self.collator.torch_mask_tokens(torch.tensor([ids]))
        return ids, masked[0].tolist(), labels[0].tolist()


@dataclass
class PrepareMaskedCaption(PreparePair):
    """A sample of an image with one of its captions: in training one by chance, else the first."""

    masking: Masking
    training: bool

    def __call__(self, raw: Captioned, where: str) -> Batch:
        image, mirrored = self.picture(raw.image, where)
        caption = random.choice(raw.captions) if self.training else raw.captions[0]
        text = self.wording(swap_sides(caption) if mirrored else caption)
        ids, masked, labels = self.masking(text)
        return {
            "image": image, "ids": ids, "masked": masked, "labels": labels, "number": raw.number
        }  # fmt: skip


@dataclass
class CollateMaskedCaptions:
    """A batch as `pelacli.models.albef.objectives` takes it."""

    padding: int

    def __call__(self, items: list[Batch]) -> Batch:
        ids = [item["ids"] for item in items]
        mask = _padded([[1] * len(row) for row in ids], 0)
        texts = {"input_ids": _padded(ids, self.padding), "attention_mask": mask}
        return {
            "inputs": pair_inputs(items, texts),
            "masked_ids": _padded([item["masked"] for item in items], self.padding),
            "masked_labels": _padded([item["labels"] for item in items], IGNORED),
            "ids": stack(items, "number"),
        }


def _padded(rows: Sequence[Sequence[int]], padding: int) -> Tensor:
    """Rows of token numbers of several lengths → [B, T]."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=padding)


def _checked_input(inputs: Inputs, data: Data) -> PairInput:
    pair = pair_input(inputs, data)
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
