"""Language modelling on plain texts in blocks: by the next token, or by masked ones, whichever the
model was made for.

Which tokens are masked is drawn sample by sample from the loader's seeded generators, so that
teacher and student, and all models of an evaluation, see the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torchmetrics import MeanMetric

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.console import info
from pelacli.data.dataset import Dataset
from pelacli.data.formats.chat import Chat
from pelacli.data.formats.text import Texts, open_texts
from pelacli.data.formats.text_columns import Columns
from pelacli.data.loader import Batch
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models import heads, prediction
from pelacli.models.inputs import TextInput
from pelacli.tasks.base import Base
from pelacli.tasks.common.metrics import TorchMetrics

_BLOCK = 512  # tokens, where the model can read more
_IGNORED = -100  # the label of a token that is not to be predicted, torch's own
_TEXTS_PER_CALL = 1000  # of the tokenizer


class Task(Base):
    MAIN: ClassVar[str | None] = "accuracy"
    JUDGES_LABEL_FREE: ClassVar[bool] = True

    block: int | None = Field(
        None, ge=8, description=f"tokens per sample; the model's longest if unset, up to {_BLOCK}"
    )
    mask: float = Field(0.15, gt=0, lt=1, description="share of tokens to predict, if masked")
    text: str | None = Field(None, description="column of the text")

    def open(
        self,
        data: Data,
        split: str,
        *,
        inputs: Inputs,
        training: bool = False,
        unlabelled: bool = False,
    ) -> Dataset:
        tokens = Tokens.of(inputs, data.dataset)
        assert isinstance(inputs, TextInput)
        if inputs.answers and inputs.causal is None and not unlabelled:
            raise RequestError(
                f"{data.dataset}: the model writes a text in answer to another, and language "
                "modelling judges how a text goes on; compare it with its dense model instead "
                "(--task unlabelled --against MODEL)"
            )
        if self.block is not None and self.block > inputs.max_length:
            raise RequestError(
                f"task_args.block: {self.block} tokens are more than the {inputs.max_length} that "
                "the model reads"
            )
        column = None if self.text is None else Columns((self.text,))
        chat = Chat(tokens.tokenizer)
        texts = open_texts(data.dataset, split, column, unlabelled=True, chat=chat)
        size = self.block or min(_BLOCK, inputs.max_length)
        blocks = _Blocks.of(texts, tokens.tokenizer, size)
        tokens.check_known(blocks.ids)
        make: Any = _plain
        if not unlabelled:
            make = _next if _causal(inputs) else _Masked.of(tokens.tokenizer, self.mask)
        collate = partial(_collate, tokens.padding)
        return Dataset(data.dataset, blocks, make, collate, texts.split, labelled=not unlabelled)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """A fresh output for tokens where the model has none, tied to its embeddings."""
        inputs = opened.inputs
        if not isinstance(inputs, TextInput) or inputs.causal is not None:
            return opened
        fitted = heads.with_head(opened, "CausalLM" if _causal(inputs) else "MaskedLM", seed)
        info(f"a fresh head: {type(fitted.module).__name__}")
        return fitted

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        """Logits [B, N, vocabulary]."""
        output = prediction.predict(module, batch["inputs"])
        if output.ndim != 3:
            raise RequestError(
                f"{type(module).__name__} has no output for tokens; language modelling wants a "
                "checkpoint with one (…ForCausalLM, …ForMaskedLM)"
            )
        return output

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        """Mean cross-entropy of the tokens to predict, in nats."""
        losses, _ = _judged(output, batch)
        return losses.sum() / max(1, len(losses))

    def metrics(self, num_classes: int | None) -> TokenMetrics:
        return TokenMetrics()


def _causal(inputs: TextInput) -> bool:
    return inputs.tokenizer.mask_token is None if inputs.causal is None else inputs.causal


def _judged(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(cross-entropy, whether the likeliest token is the right one) of each token to predict."""
    if "labels" not in batch:
        raise RequestError("the batch has no tokens to predict: it was opened without labels")
    counted = batch["labels"] != _IGNORED
    logits, labels = output[counted].float(), batch["labels"][counted]
    return F.cross_entropy(logits, labels, reduction="none"), logits.argmax(-1) == labels


class TokenMetrics(TorchMetrics):
    """``accuracy``: percent of tokens that are the model's first choice; ``loss``: mean
    cross-entropy in nats; ``perplexity``: its exponential."""

    def __init__(self) -> None:
        super().__init__(accuracy=MeanMetric(), loss=MeanMetric())

    def update(self, output: Tensor, batch: Batch) -> None:
        losses, right = _judged(output, batch)
        self.parts["loss"].update(losses)
        self.parts["accuracy"].update(right.float())

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        loss = float(self.parts["loss"].compute())
        perplexity = math.exp(loss) if loss < 700 else math.inf
        accuracy = 100 * float(self.parts["accuracy"].compute())
        return {"accuracy": accuracy, "loss": loss, "perplexity": perplexity}


# Blocks ------------------------------------------------------------------------------------------


@dataclass
class _Blocks:
    """All texts as one string of tokens, cut into pieces with the tokens around each that the
    tokenizer puts around a text. In memory: four bytes a token.

    Attributes:
        ids: the tokens of all texts, with a separator after each.
        width: tokens of a piece, without those around it.
        around: tokens before and after a piece.
    """

    ids: np.ndarray[Any, np.dtype[np.int32]]
    width: int
    around: tuple[list[int], list[int]]

    @classmethod
    def of(cls, texts: Texts, tokenizer: Any, block: int) -> _Blocks:
        """Tokenise texts for pieces of ``block`` tokens, including those around a piece."""
        empty = list(tokenizer("")["input_ids"])  # what the tokenizer puts around a text
        half = 1 if len(empty) == 1 and empty[0] != tokenizer.eos_token_id else len(empty) // 2
        around = empty[:half], empty[half:]
        mark = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        separator = [] if mark is None else [mark]
        chunks = []
        for first in range(0, len(texts), _TEXTS_PER_CALL):
            last = min(first + _TEXTS_PER_CALL, len(texts))
            part = [_joined(texts[i][0]) for i in range(first, last)]
            encoded = tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
            tokens = [token for text in encoded for token in (*text, *separator)]
            chunks.append(np.array(tokens, dtype=np.int32))
        ids = np.concatenate(chunks)
        if not len(ids):
            raise RequestError(f"{texts.table.origin}: its texts have no tokens; give other texts")
        return cls(ids, block - len(empty), around)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.width)

    def __getitem__(self, index: int) -> Tensor:
        piece = self.ids[index * self.width : (index + 1) * self.width]
        return torch.tensor([*self.around[0], *piece.tolist(), *self.around[1]])


def _joined(text: str | tuple[str, str]) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _plain(ids: Tensor, where: str) -> Batch:
    return {"inputs": ids}


def _next(ids: Tensor, where: str) -> Batch:
    """Each token's label is the one after it."""
    return {"inputs": ids, "labels": torch.cat([ids[1:], ids.new_tensor([_IGNORED])])}


@dataclass
class _Masked:
    """A share of the tokens is to be predicted, as BERT was trained: 80 % of these become the mask
    token, 10 % another token, 10 % stay. They are the labels."""

    collator: Any
    special: Tensor

    @classmethod
    def of(cls, tokenizer: Any, share: float) -> _Masked:
        from transformers import DataCollatorForLanguageModeling

        if tokenizer.mask_token is None:
            raise RequestError("the model predicts masked tokens, and its tokenizer has no mask")
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
        return cls(collator, torch.tensor(sorted(tokenizer.all_special_ids)))

    def __call__(self, ids: Tensor, where: str) -> Batch:
        fixed = torch.isin(ids, self.special)
        hidden, labels = self.collator.torch_mask_tokens(ids.clone()[None], fixed[None])
        return {"inputs": hidden[0], "labels": labels[0]}


def _collate(padding: int, items: list[Batch]) -> Batch:
    """Pad to the longest."""

    def padded(key: str, value: int) -> Tensor:
        rows = [item[key] for item in items]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)

    ones = [torch.ones_like(item["inputs"]) for item in items]
    mask = nn.utils.rnn.pad_sequence(ones, batch_first=True)
    batch: Batch = {"inputs": {"input_ids": padded("inputs", padding), "attention_mask": mask}}
    if "labels" in items[0]:
        batch["labels"] = padded("labels", _IGNORED)
    return batch
