"""Language modelling on plain texts in blocks: the next token, or masked ones, as the model does.

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
    from pelacli.recipe.schema import Data

from pelacli.console import info
from pelacli.data.dataset import Dataset
from pelacli.data.formats.text import Columns, Texts, open_texts
from pelacli.data.loader import Batch
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models import heads, prediction
from pelacli.models.inputs import TextInput
from pelacli.tasks.base import Base

_BLOCK = 512  # tokens, where the model can read more
_NONE = -100  # the label of a token that is not to be predicted, torch's own
_AT_ONCE = 1000  # texts per call of the tokenizer


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
        if self.block is not None and self.block > inputs.max_length:
            raise RequestError(
                f"task_args.block: {self.block} tokens are more than the {inputs.max_length} that "
                "the model reads"
            )
        column = None if self.text is None else Columns((self.text,))
        texts = open_texts(data.dataset, split, column, unlabelled=True)
        size = self.block or min(_BLOCK, inputs.max_length)
        blocks = _Blocks.of(texts, tokens.tokenizer, size)
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

    def metrics(self, num_classes: int | None) -> Figures:
        return Figures()


def _causal(inputs: TextInput) -> bool:
    return inputs.tokenizer.mask_token is None if inputs.causal is None else inputs.causal


def _judged(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(cross-entropy, whether the likeliest token is the right one) of each token to predict."""
    if "labels" not in batch:
        raise RequestError("the batch has no tokens to predict: it was opened without labels")
    wanted = batch["labels"]
    counted = wanted != _NONE
    logits, wanted = output[counted].float(), wanted[counted]
    return F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted


class Figures:
    """``accuracy``: percent of tokens that are the model's first choice; ``loss``: mean
    cross-entropy in nats; ``perplexity``: its exponential."""

    def __init__(self) -> None:
        self.right, self.loss = MeanMetric(), MeanMetric()

    def to(self, device: torch.device) -> Figures:
        self.right.to(device)
        self.loss.to(device)
        return self

    def update(self, output: Tensor, batch: Batch) -> None:
        losses, right = _judged(output, batch)
        self.loss.update(losses)
        self.right.update(right.float())

    def compute(self) -> dict[str, float]:
        """The figures so far."""
        loss = float(self.loss.compute())
        perplexity = math.exp(loss) if loss < 700 else math.inf
        return {
            "accuracy": 100 * float(self.right.compute()),
            "loss": loss,
            "perplexity": perplexity,
        }


# Blocks ------------------------------------------------------------------------------------------


@dataclass
class _Blocks:
    """All texts as one string of tokens, cut into pieces that begin and end as the model's own
    texts do. In memory: four bytes a token."""

    ids: np.ndarray[Any, np.dtype[np.int32]]
    width: int  # of a piece, without its ends
    ends: tuple[list[int], list[int]]

    @classmethod
    def of(cls, texts: Texts, tokenizer: Any, block: int) -> _Blocks:
        """Tokenise; texts are parted by the end-of-text token."""
        empty = list(tokenizer("")["input_ids"])  # what the tokenizer puts around a text
        half = 1 if len(empty) == 1 and empty[0] != tokenizer.eos_token_id else len(empty) // 2
        ends = empty[:half], empty[half:]
        part = tokenizer.eos_token_id if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        between = [] if part is None else [part]
        found: list[int] = []
        chunks = []
        for first in range(0, len(texts), _AT_ONCE):
            some = [_joined(texts[i][0]) for i in range(first, min(first + _AT_ONCE, len(texts)))]
            encoded = tokenizer(some, add_special_tokens=False, verbose=False)["input_ids"]
            found = [token for one in encoded for token in (*one, *between)]
            chunks.append(np.array(found, dtype=np.int32))
        return cls(np.concatenate(chunks), block - len(empty), ends)

    def __len__(self) -> int:
        return -(-len(self.ids) // self.width)

    def __getitem__(self, index: int) -> Tensor:
        piece = self.ids[index * self.width : (index + 1) * self.width]
        return torch.tensor([*self.ends[0], *piece.tolist(), *self.ends[1]])


def _joined(text: str | tuple[str, str]) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _plain(ids: Tensor, where: str) -> Batch:
    return {"inputs": ids}


def _next(ids: Tensor, where: str) -> Batch:
    """Each token's label is the one after it."""
    return {"inputs": ids, "labels": torch.cat([ids[1:], ids.new_tensor([_NONE])])}


@dataclass
class _Masked:
    """Some tokens are hidden, and are the labels, as BERT was trained: of those to predict 80 %
    become the mask token, 10 % another token, 10 % stay."""

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
        batch["labels"] = padded("labels", _NONE)
    return batch
