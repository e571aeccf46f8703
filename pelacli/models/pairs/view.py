"""What a model offers that sees an image and reads a text, whichever library it comes from.

Tasks work on a `PairModel`, the view of a module that `families.view_of` gives. A family is one
class derived from it: transformers' are in `pairs.hf`, and the adapter of a model of pela's own has
a function ``pairs(module) -> PairModel``. A view holds nothing but the module, so it costs nothing
to make.

Words: B images or texts, P image positions, T text positions, D width, E width of the space in
which images and texts are compared. ``inputs`` are a batch of pairs as the model takes them:
``pixel_values`` [B, C, H, W], ``input_ids`` and ``attention_mask`` [B, T]; where the model writes
answers, ``decoder_input_ids`` and ``decoder_attention_mask`` [B, A] too.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models.pairs import losses

Batch = Mapping[str, Any]
Inputs = Mapping[str, Tensor]


@dataclass(frozen=True)
class Encoded:
    """Images or texts, each encoded by itself.

    Attributes:
        features: [B, E] unit vectors; None where the model does not compare.
        states: what `PairModel.match` reads of them, [B, P or T, …]; None where it doesn't match.
        mask: [B, T] of texts, 1 where there is a token.
    """

    features: Tensor | None = None
    states: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(next(t for t in (self.features, self.states) if t is not None))

    def __getitem__(self, rows: Any) -> Encoded:
        """Some of them: a slice, or row numbers [n]."""
        return Encoded(*(None if t is None else t[rows] for t in self._parts()))

    def to(self, device: torch.device | str) -> Encoded:
        return Encoded(*(None if t is None else t.to(device) for t in self._parts()))

    def _parts(self) -> Iterator[Tensor | None]:
        return (getattr(self, field.name) for field in fields(self))

    @staticmethod
    def joined(parts: Sequence[Encoded]) -> Encoded:
        """Several after each other; texts of different lengths are padded with zeros."""
        columns = zip(*(part._parts() for part in parts), strict=True)
        return Encoded(*(_stacked(list(column)) for column in columns))


class PairModel:
    """The view of one module. What a family can do it overrides; the rest is refused.

    Attributes:
        compares: images and texts have features, and their products say how alike they are.
        matches: an image and a text together have a score.
        answers: how it answers a question: by one of "classes", in "words", or None.
    """

    compares = False
    matches = False
    answers: str | None = None

    def __init__(self, module: nn.Module) -> None:
        self.module: Any = module

    # The whole ---------------------------------------------------------------------------------

    def output(self, inputs: Inputs) -> Tensor:
        """The main output [B, …] of a batch of pairs: what calibration, agreement and
        `models.predict` look at. All layers that a task may use should be felt in it."""
        raise self._cannot("run on pairs")

    def fit(
        self,
        task: str,
        *,
        classes: Sequence[str] | int | None = None,
        image_size: int | None = None,
    ) -> nn.Module:
        """The module for a task ("retrieval", "vqa", "entailment", "grounding"): the same where it
        has all that the task needs, else another one around its layers, which are not copied.

        Args:
            classes: names of the classes, or their number, where the task has classes; a fresh
                head is made where they differ from those that the model has.
            image_size: pixels a side, where the model must be told; None: its own.

        Raises:
            RequestError: the model can't do the task.
        """
        raise self._cannot(task)

    def training(self, settings: Mapping[str, Any]) -> AbstractContextManager[Any]:
        """Parts that are for training alone (momentum copies), attached while active.

        Args:
            settings: ``alpha``, ``momentum``, ``queue`` and ``ramp`` (in pairs), as ALBEF has them.
                A family without momentum ignores them.
        """
        return nullcontext()

    # Comparing and matching ---------------------------------------------------------------------

    def encode_images(self, pixel_values: Tensor) -> Encoded:
        raise self._cannot("encode images by themselves")

    def encode_texts(self, inputs: Inputs) -> Encoded:
        """Of ``input_ids`` and ``attention_mask``; other inputs are left alone."""
        raise self._cannot("encode texts by themselves")

    def similarity(self, images: Tensor, texts: Tensor) -> Tensor:
        """Logits [I, T] of features [I, E] and [T, E], at the model's own temperature."""
        raise self._cannot("compare images and texts")

    def match(self, images: Encoded, texts: Encoded) -> Tensor:
        """Logits [B, 2] of (no match, match) of image b and text b; the score is their
        difference."""
        raise self._cannot("match an image and a text")

    def retrieval_losses(
        self, images: Encoded, texts: Encoded, matched: Tensor | None, batch: Batch
    ) -> dict[str, Tensor]:
        """ "contrast" and "matching", as far as the model compares and matches.

        Args:
            images, texts: B pairs.
            matched: `match` of them, [B, 2].
            batch: ``ids`` [B], the same number for all that show the same image.
        """
        ids: Tensor = batch["ids"]
        same = ids[:, None] == ids[None, :]
        results, to_text = {}, None
        if images.features is not None and texts.features is not None:
            results["contrast"] = self.contrast(images.features, texts.features, ids)
            to_text = self.similarity(images.features, texts.features).detach()
        if matched is not None:
            results["matching"] = losses.matching(
                matched, lambda i, t: self.match(images[i], texts[t]), to_text, same
            )
        return results

    def contrast(self, images: Tensor, texts: Tensor, ids: Tensor) -> Tensor:
        """The contrastive loss of features [B, E], against those of all processes."""
        all_images, all_texts = losses.gathered(images), losses.gathered(texts)
        same = ids[:, None] == losses.gathered(ids)[None, :]
        to_text = self.similarity(images, all_texts)
        to_image = self.similarity(all_images, texts).T
        return (losses.soft(to_text, same) + losses.soft(to_image, same)) / 2

    def attention_maps(self, layer: int) -> AbstractContextManager[list[Tensor]]:
        """While active, collects the cross-attention of a text layer in `match`: one tensor
        [B, heads, T, 1 + n·n] per call, in the graph; the image's class token comes first.

        Raises:
            RequestError: the layer has none; the message says which have.
        """
        raise self._cannot("say where in the image a text is")

    # Questions and classes ----------------------------------------------------------------------

    @property
    def classes(self) -> list[str]:
        """Names of its classes, where it answers by classes."""
        raise self._cannot("answer by classes")

    def classify(self, inputs: Inputs) -> Tensor:
        """Logits [B, classes] of pairs."""
        raise self._cannot("classify pairs")

    def class_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of ``labels`` [B]."""
        return F.cross_entropy(logits.float(), batch["labels"])

    def read(self, inputs: Inputs) -> tuple[Tensor, Tensor]:
        """Questions under their images: fused states [B, T, D] and their mask [B, T]."""
        raise self._cannot("answer in words")

    def decode(self, ids: Tensor, mask: Tensor, states: Tensor, states_mask: Tensor) -> Tensor:
        """Logits [N, A, V] of each next word of answers [N, A], which begin with the start token,
        under questions [N, T, D]."""
        raise self._cannot("answer in words")

    def answer_loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Cross-entropy of answers, summed over words, times their weights, per question.

        Args:
            logits: [N, A, V], `decode` of the answers of the batch.
            batch: ``answer_ids`` and ``answer_mask`` [N, A] from the start to the end token,
                ``answer_of`` [N], the question of each, ``answer_weights`` [N].
        """
        total = losses.words(logits, batch["answer_ids"], batch["answer_mask"])
        weighted: Tensor = (total * batch["answer_weights"]).sum()
        return weighted / len(batch["inputs"]["pixel_values"])

    # --------------------------------------------------------------------------------------------

    def _own_size(self, image_size: int | None) -> None:
        if image_size is not None:
            raise RequestError(
                f"{type(self.module).__name__}: takes images of its own size only; leave "
                "data.image_size out"
            )

    def _cannot(self, what: str) -> RequestError:
        return RequestError(f"{type(self.module).__name__}: this kind of model can't {what}")


def _stacked(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    if not tensors:
        return None
    if tensors[0].ndim > 1 and tensors[0].shape[1:2] != (0,):
        longest = max(part.shape[1] for part in tensors)
        tensors = [_padded(part, longest) for part in tensors]
    return torch.cat(tensors)


def _padded(part: Tensor, length: int) -> Tensor:
    if part.shape[1] == length:
        return part
    shape = (part.shape[0], length - part.shape[1], *part.shape[2:])
    return torch.cat([part, part.new_zeros(shape)], 1)
