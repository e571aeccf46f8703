"""How alike two models are on the same samples, with no labels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.system import processes
from pelacli.system.devices import move_batch

_ROWS_AT_ONCE = 512
# What 1 of each figure is in points; the first that there is says how far two models agree.
POINTS = {"same_class": 1.0, "cosine": 100.0}


@torch.no_grad()
def agreement(
    model: nn.Module,
    dense: nn.Module,
    batches: Iterable[dict[str, Any]],
    predict: Callable[[nn.Module, Any], Tensor],
    *,
    classes: bool = False,
    divergence: bool = False,
    device: torch.device | str = "cpu",
) -> dict[str, float]:
    """Compare the main outputs of two models. Where they give a vector to each token of a text, a
    token is a sample here, and padding is none.

    Args:
        predict: (module, inputs) → output [B, ..., D].
        classes: whether the models have classes; see `chooses_classes`.
        divergence: whether the outputs are logits, of classes or of a vocabulary.

    Returns:
        ``cosine``: mean cosine of the outputs of one sample, where these are more than one number;
        ``relative_error``: Σ‖y − y′‖² over
        Σ‖y − ȳ‖², the share of the dense outputs' variance that is lost; with ``classes``,
        ``same_class``, where the dense model `chooses_classes`: percent of samples (of a map's
        pixels) with the same first choice; with ``divergence``, ``kl``, where the dense model
        `chooses_classes`: the mean over samples (tokens, pixels) of the divergence of the model's
        distribution from the dense one's, in nats. Empty where the outputs are of different kinds.
    """
    sums = _Sums()
    for batch in batches:
        inputs = move_batch(batch["inputs"], device)
        mask = padding_mask(inputs)
        ours, theirs = predict(model, inputs), predict(dense, inputs)
        sums.choices = chooses_classes(theirs, mask, classes)
        sums.diverges = divergence and chooses_classes(theirs, mask, True)
        rows, dense_rows = unpadded(ours, mask), unpadded(theirs, mask)
        if rows.shape != dense_rows.shape:
            sums.are_alike = False
            break  # and say so to the other processes
        # In parts: a vocabulary for every token of a batch is large in double precision.
        parts = (torch.split(t, _ROWS_AT_ONCE) for t in (rows, dense_rows))
        for part, dense_part in zip(*parts, strict=True):
            sums.add(part, dense_part)
    return sums.figures()


def in_points(figures: Mapping[str, float]) -> tuple[str, float] | None:
    """How far two models agree, in points: 100 where they do in all.

    Args:
        figures: as `agreement` gives them.

    Returns:
        (the figure's name, points): the percentage of samples in the same class, else 100 · cosine.
        None where there is neither.
    """
    return next(((name, POINTS[name] * figures[name]) for name in POINTS if name in figures), None)


def chooses_classes(output: Tensor, mask: Tensor | None, classes: bool) -> bool:
    """Whether the largest entry of a dense model's outputs is its choice of a class, so that two
    models can be asked for the same choice.

    It is for one vector of logits a sample, for a map of them, and for one vector a token of a
    text, which chooses a word. It is not for the queries of a detector, for embeddings, nor for a
    single number, which is always the largest.

    Args:
        output: of the dense model for a batch, [B, D], [B, D, height, width], [B, N, D] or else.
        mask: [B, N], where there are tokens; None for other inputs than text.
        classes: whether the model has classes. Logits of tokens need none: embeddings of texts
            have no axis of tokens left (`pelacli.models.prediction.predict`).
    """
    if mask is not None and output.shape[:-1] == mask.shape:
        return output.shape[-1] > 1
    return classes and output.ndim in (2, 4) and output.shape[1] > 1


class Difference:
    """How far the outputs of two models are apart: running sums over the samples of this process,
    in double precision.

    Attributes:
        samples, error: how many samples, and Σ‖y − z‖² over them.
        output, square: Σ z [D] and Σ‖z‖² of the dense model; None before the first samples.
    """

    def __init__(self) -> None:
        self.samples = self.error = 0.0
        self.output: Tensor | None = None
        self.square: Tensor | None = None

    def add(self, rows: Tensor, dense_rows: Tensor) -> None:
        """Outputs of both models, [B, ...]."""
        y, z = (t.flatten(1).double() for t in (rows, dense_rows))
        self.samples += len(y)
        self.error += float((y - z).square().sum())
        self.output = z.sum(0) if self.output is None else self.output + z.sum(0)
        square = z.square().sum()
        self.square = square if self.square is None else self.square + square

    def join(self, other: Difference) -> None:
        """Add the sums over other samples, on the same device."""
        self.samples += other.samples
        self.error += other.error
        if other.output is None or other.square is None:
            return
        self.output = other.output if self.output is None else self.output + other.output
        self.square = other.square if self.square is None else self.square + other.square

    def to_cpu(self) -> None:
        """Move the sums there."""
        self.output = None if self.output is None else self.output.cpu()
        self.square = None if self.square is None else self.square.cpu()

    @property
    def relative_error(self) -> float:
        """Σ‖y − z‖² over Σ‖z − z̄‖²; NaN where the dense outputs do not vary."""
        assert self.output is not None
        assert self.square is not None
        variance = float(self.square - self.output.square().sum() / self.samples)
        return self.error / variance if self.samples > 1 and variance > 0 else math.nan

    @property
    def share_lost(self) -> float:
        """The relative error; where the dense outputs do not vary, of their squares."""
        if not math.isnan(self.relative_error):
            return self.relative_error
        square = 0.0 if self.square is None else float(self.square)
        if square:
            return self.error / square
        return math.inf if self.error else 0.0


def divergence_of(log_probabilities: Tensor, dense_log_probabilities: Tensor) -> float:
    """Σ KL(dense ‖ model) over all distributions of two tensors of one shape, in nats, summed in
    double precision."""
    ours, theirs = log_probabilities, dense_log_probabilities
    return float((theirs.exp() * (theirs - ours)).sum(dtype=torch.float64))


class _Sums:
    """Running sums over the samples of this process, in double precision.

    Attributes:
        choices, diverges: whether the outputs choose classes, and whether their distributions are
            compared.
        are_alike: whether the outputs of both models are of one shape.
    """

    def __init__(self) -> None:
        self.cosine = self.same_choices = self.all_choices = self.divergence = 0.0
        self.distributions = 0
        self.has_directions = False  # a single number has none
        self.difference = Difference()
        self.choices = self.diverges = False
        self.are_alike = True

    def add(self, rows: Tensor, dense_rows: Tensor) -> None:
        """Outputs of both models, [B, ...]; logits [B, classes, ...] where they diverge."""
        if rows.device.type == "mps":  # which has no double precision
            rows, dense_rows = rows.cpu(), dense_rows.cpu()
        if self.choices:
            same = rows.argmax(1) == dense_rows.argmax(1)
            self.same_choices += int(same.sum())
            self.all_choices += same.numel()
        if self.diverges:
            # In single precision, models that hardly differ diverge by rounding alone.
            ours, theirs = (t.double().log_softmax(1) for t in (rows, dense_rows))
            self.divergence += divergence_of(ours, theirs)
            self.distributions += theirs[:, 0].numel()
        y, z = rows.flatten(1).double(), dense_rows.flatten(1).double()
        self.has_directions = y.shape[1] > 1
        self.cosine += float(F.cosine_similarity(y, z).sum())
        self.difference.add(y, z)

    def figures(self) -> dict[str, float]:
        """The figures over the samples of all processes, of which some may have none; empty where
        there were no samples, or the outputs are of different kinds."""
        gathered = [sums for sums in processes.all_gather(self._on_cpu()) if sums is not None]
        if not gathered or not all(sums.are_alike for sums in gathered):
            return {}
        first, *others = gathered
        for other in others:
            first.join(other)
        return first.own_figures()

    def join(self, other: _Sums) -> None:
        """Add those of another process, with samples."""
        self.cosine += other.cosine
        self.same_choices += other.same_choices
        self.all_choices += other.all_choices
        self.divergence += other.divergence
        self.distributions += other.distributions
        self.difference.join(other.difference)

    def own_figures(self) -> dict[str, float]:
        """The figures over the samples that were added."""
        figures = {"cosine": self.cosine / self.difference.samples} if self.has_directions else {}
        if not math.isnan(self.difference.relative_error):
            figures["relative_error"] = self.difference.relative_error
        if self.choices:
            figures["same_class"] = 100 * self.same_choices / self.all_choices
        if self.diverges:
            figures["kl"] = self.divergence / self.distributions
        return figures

    def _on_cpu(self) -> _Sums | None:
        """The sums, where every process can read them; None without samples."""
        if self.are_alike and self.difference.output is None:
            return None
        self.difference.to_cpu()
        return self
