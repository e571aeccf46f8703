"""How far a compressed model is from the dense one, on calibration samples that nothing was fitted
to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.factorize.batches import samples_in
from pelacli.factorize.blockwise import in_sections
from pelacli.factorize.sections import Sections
from pelacli.factorize.sensitivity import CHUNK, Head
from pelacli.lowrank.calls import evaluating
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.padding import padding_mask, unpadded
from pelacli.lowrank.replace import Parts, replaced
from pelacli.measure.agreement import Difference, divergence_of
from pelacli.measure.layer_errors import LayerOutputs, Take
from pelacli.system.shelf import Shelf

_NONE = -100  # no label; torch's own


@dataclass(frozen=True)
class Distance:
    """What a compressed model has lost on held-back samples.

    Attributes:
        samples: how many there were.
        relative_error: Σ‖y − y′‖² over Σ‖y − ȳ‖² of the outputs: the share of the dense outputs'
            variance that is lost. 0 is the dense model; at 1 the mean output would do as well.
        kl: of a language model: mean over the tokens of the divergence of its distribution from the
            dense one, in nats.
        perplexity, dense_perplexity: of a causal language model and of the dense one: exp of the
            mean cross-entropy of the next token.
        layers: layer → the relative error of its outputs on some of the samples' tokens; see
            `pelacli.measure.layer_errors`.
    """

    samples: int
    relative_error: float
    kl: float | None = None
    perplexity: float | None = None
    dense_perplexity: float | None = None
    layers: Mapping[str, float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def decisive(self) -> float:
        """What decides between two models: the divergence where there is one, else the error."""
        return self.relative_error if self.kl is None else self.kl

    def closer_than(self, other: Distance) -> bool:
        """Whether this model is nearer to the dense one. One that gives NaN never is."""
        return not math.isnan(self.decisive) and not self.decisive >= other.decisive

    def document(self) -> dict[str, float]:
        """As JSON has it; only what there is of the whole model."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        del known["layers"]
        return known


class HeldBack:
    """Calibration samples that no layer is fitted to, and what the dense model makes of them.

    Args:
        module: the dense model.
        batches: what ``predict`` takes. Few: what the dense model makes of them is kept.
        predict: (module, batch) → the model's main output [B, ..., D].
        head: of a language model; None of any other.
        causal: whether the logits at a token are those of the next one.
        blockwise: the model's sections and a shelf for their states, where all samples go through
            one section after the other.
        layers: those whose errors are wanted too.
    """

    def __init__(
        self,
        module: nn.Module,
        batches: Sequence[Any],
        predict: Callable[[nn.Module, Any], Tensor],
        head: Head | None = None,
        *,
        causal: bool = False,
        blockwise: tuple[Sections, Shelf] | None = None,
        layers: Sequence[Layer] = (),
    ) -> None:
        self._module, self._batches, self._predict = module, batches, predict
        self._head, self._causal = head, causal
        self._blockwise = blockwise
        self._samples = sum(map(samples_in, batches))
        self._layers = LayerOutputs(layers, len(batches)) if layers else None
        self._dense: list[Tensor] = []

    def passes(self) -> int:
        """How often a batch has to go through the model, or through a section of it, until the next
        `distance` is known."""
        once = len(self._batches) * (len(self._blockwise[0]) if self._blockwise else 1)
        return once if self._dense else 2 * once

    @torch.no_grad()
    def distance(
        self, factors: Mapping[str, Parts], advance: Callable[[], object] = lambda: None
    ) -> Distance:
        """Of the model with these factors; it is dense before and after.

        Args:
            advance: is called after each of `passes`.
        """
        if not self._dense:
            keep = None if self._layers is None else self._layers.keep
            self._dense = list(self._states({}, keep, advance))
        difference, tokens = Difference(), _TokenSums()
        comparison = None if self._layers is None else self._layers.comparison()
        with evaluating(self._module):
            add = None if comparison is None else comparison.add
            ours_states = self._states(factors, add, advance)
            states = zip(self._batches, self._dense, ours_states, strict=True)
            for batch, dense, ours in states:
                labels = self._labels(batch)
                for start in range(0, len(ours), CHUNK):
                    part = slice(start, start + CHUNK)
                    z = self._outputs(dense[part])
                    with self._at_the_end(factors):
                        y = self._outputs(ours[part])
                    difference.add(y, z)
                    if self._head is not None:
                        tokens.add(y, z, None if labels is None else labels[part])
        layers = {} if comparison is None else comparison.errors()
        return Distance(self._samples, difference.share_lost, **tokens.figures(), layers=layers)

    def _states(
        self, factors: Mapping[str, Parts], take: Take | None, advance: Callable[[], object]
    ) -> Iterator[Tensor]:
        """Outputs [B, ..., D] of each batch, or a language model's states [tokens, width].

        Args:
            take: is given what the layers give.
            advance: as of `distance`.
        """
        given = self._given(factors, take, advance)
        for batch, states in zip(self._batches, given, strict=True):
            known = unpadded(states, padding_mask(batch))
            yield known if self._head is None else known.flatten(0, -2)

    def _given(
        self, factors: Mapping[str, Parts], take: Take | None, advance: Callable[[], object]
    ) -> Iterator[Tensor]:
        """What the model with these factors gives of each batch."""

        def watching(
            number: int, layers: Sequence[Layer] | None = None
        ) -> AbstractContextManager[None]:
            if self._layers is None or take is None:
                return nullcontext()
            batch = self._batches[number]
            return self._layers.watching(self._module, number, batch, take, layers)

        if self._blockwise is not None:
            yield from in_sections(*self._blockwise, self._batches, factors, watching, advance)
            return
        for number, batch in enumerate(self._batches):
            with (
                torch.no_grad(),
                evaluating(self._module),
                replaced(self._module, factors),
                watching(number),
            ):
                if self._head is None:
                    states = self._predict(self._module, batch)
                else:
                    states = self._head.hidden(batch)
            advance()
            yield states

    def _at_the_end(self, factors: Mapping[str, Parts]) -> AbstractContextManager[None]:
        if self._blockwise is None:
            return replaced(self._module, factors)
        sections = self._blockwise[0]
        return sections.at_work(len(sections) - 1, factors)

    def _outputs(self, states: Tensor) -> Tensor:
        return states if self._head is None else self._head.logits(states)

    def _labels(self, batch: Any) -> Tensor | None:
        """The token after each, [tokens]; `_NONE` of the last of a text. None where the model does
        not say the next token."""
        if not self._causal:
            return None
        ids, mask = batch["input_ids"], padding_mask(batch)
        after = torch.full_like(ids, _NONE)
        after[:, :-1] = ids[:, 1:]
        if mask is not None:
            after[:, :-1][mask[:, 1:] == 0] = _NONE
        return unpadded(after[..., None], mask).flatten()


class _TokenSums:
    """Running sums over tokens of a language model's distributions, in double precision."""

    def __init__(self) -> None:
        self.tokens = self.labelled = 0
        self.kl = self.loss = self.dense_loss = 0.0

    def add(self, logits: Tensor, dense_logits: Tensor, labels: Tensor | None) -> None:
        """Logits [tokens, vocabulary] of both models, labels [tokens]."""
        ours, theirs = (t.float().log_softmax(-1) for t in (logits, dense_logits))
        self.tokens += len(ours)
        self.kl += divergence_of(ours, theirs)
        if labels is not None:
            self.labelled += int((labels != _NONE).sum())
            self.loss += float(F.nll_loss(ours, labels, ignore_index=_NONE, reduction="sum"))
            self.dense_loss += float(
                F.nll_loss(theirs, labels, ignore_index=_NONE, reduction="sum")
            )

    def figures(self) -> dict[str, float]:
        """Those of `Distance` that there are."""
        figures = {}
        if self.tokens:
            figures["kl"] = self.kl / self.tokens
        if self.labelled:
            figures["perplexity"] = _exp(self.loss / self.labelled)
            figures["dense_perplexity"] = _exp(self.dense_loss / self.labelled)
        return figures


def _exp(loss: float) -> float:
    return math.exp(loss) if loss < 700 else math.inf
