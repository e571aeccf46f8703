"""Sentence embedding: healed without labels, and judged by pairs of sentences with a score.

The embedding is what `pelacli.models.prediction.predict` gives of an encoder: its tokens, pooled as
sentence-transformers' files beside the model say.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

if TYPE_CHECKING:
    from pelacli.models.inputs import Inputs
    from pelacli.models.opened import OpenModel
    from pelacli.recipe.data import Data

from pelacli.data.dataset import Dataset, Make, labels_of
from pelacli.data.formats.chat import Chat
from pelacli.data.formats.similarity import open_pairs
from pelacli.data.formats.text_columns import Columns
from pelacli.data.loader import Batch
from pelacli.data.tokens import Tokens
from pelacli.errors import RequestError
from pelacli.models import heads, prediction
from pelacli.tasks.base import Base
from pelacli.tasks.common.metrics import Correlations


class Task(Base):
    MAIN: ClassVar[str | None] = "spearman"
    JUDGES_LABEL_FREE: ClassVar[bool] = True

    similarity: str | None = Field(
        None, description="file of two sentences and a score to judge by, in place of data.val"
    )
    text: list[str] | None = Field(None, description="columns of the two sentences, or of one")
    label: str | None = Field(None, description="column of the score")
    scale: float = Field(1.0, gt=0, description="the highest score, for form = 'cosine'")
    form: Literal["cosent", "cosine"] = Field(
        "cosent", description="learn the order of the scores (cosent) or the scores (cosine)"
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
        judged = self.similarity is not None and split != data.train
        spec = str(self.similarity) if judged else data.dataset
        tokens = Tokens.of(inputs, spec)
        if judged and not Path(spec).expanduser().exists() and not spec.startswith("hfds/"):
            raise RequestError(f"task_args.similarity: {spec}: no such file")
        columns = Columns(None if self.text is None else tuple(self.text), self.label)
        chat = Chat(tokens.tokenizer)
        texts = open_pairs(spec, split, columns, unlabelled=unlabelled, chat=chat)
        if judged and texts.labels is None and not unlabelled:
            raise RequestError(f"{spec}: has no pairs of sentences with a score")
        labelled = texts.labels is not None
        # Another file judges, so that the data has splits.
        name = "train" if self.similarity is not None and not judged else texts.split
        make = Make(_unchanged, labelled)
        return Dataset(spec, texts, make, partial(_collate, tokens), name, None, labelled)

    def fit(self, opened: OpenModel, dataset: Dataset, classes: int | None, seed: int) -> OpenModel:
        """The encoder alone, without the head that the checkpoint has."""
        if not opened.head:
            return opened
        return heads.with_head(opened, "", seed)

    def forward(self, module: nn.Module, batch: Batch) -> Tensor:
        """Embeddings [B, C]; of B pairs [2B, C], all the first sentences before the second ones."""
        output = prediction.predict(module, batch["inputs"])
        if output.ndim != 2:
            raise RequestError(
                "sentence embedding wants an encoder, and this model gives an output for each "
                "token; open the encoder alone"
            )
        return output

    def loss(self, output: Tensor, batch: Batch) -> Tensor:
        similar, scores = _compared(output, batch)
        if self.form == "cosent":
            return cosent(similar, scores)
        targets = scores / self.scale
        if float(targets.abs().max()) > 1:
            raise RequestError(
                f"a score of {float(scores.abs().max()):g} is no cosine; set task_args.scale to "
                "the highest score"
            )
        return F.mse_loss(similar, targets)

    def metrics(self, num_classes: int | None) -> SimilarityMetrics:
        return SimilarityMetrics()


def cosent(similar: Tensor, scores: Tensor, scale: float = 20.0) -> Tensor:
    """``log(1 + Σ exp(λ (cos_i − cos_j)))`` over all i, j with score_i < score_j: pairs of
    sentences in the wrong order cost (CoSENT, Su 2022, as sentence-transformers has it).

    Args:
        similar: cosines [B]; scores: [B] on any scale.
        scale: λ.
    """
    wrong = scale * (similar[:, None] - similar[None, :])[scores[:, None] < scores[None, :]]
    return torch.logsumexp(torch.cat([wrong.new_zeros(1), wrong]), 0)


def _compared(output: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """(cosines of the pairs [B], their scores [B])."""
    if "labels" not in batch:
        raise RequestError("the sentences have no scores, which the task's own loss needs")
    first, second = output.float().chunk(2)
    return F.cosine_similarity(first, second), batch["labels"].float()


class SimilarityMetrics(Correlations):
    """``spearman`` and ``pearson``: the correlations of cosines and scores, times 100."""

    def update(self, output: Tensor, batch: Batch) -> None:
        self.add(*_compared(output, batch))


def _unchanged(raw: Any, where: str) -> Any:
    return raw


def _collate(tokens: Tokens, items: list[Batch]) -> Batch:
    """A batch of sentences; of pairs, all the first sentences and then all the second ones."""
    raw = [item["inputs"] for item in items]
    if not isinstance(raw[0], str):
        raw = [first for first, _ in raw] + [second for _, second in raw]
    return {"inputs": tokens(raw), **labels_of(items)}
