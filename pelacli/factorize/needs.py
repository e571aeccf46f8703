"""What calibrated factorising needs of memory beside the model, from shapes and tokens alone.

Three stages come one after the other, and the largest counts: the backward pass of one batch; the
solving of the layers; the correction, in which all samples are in the model together, twice, or
block by block as many as take a gigabyte. The sums that moments are made of are there all the time.
How many copies of a layer's inputs and outputs there are is set by one language model's backward
pass, and counted and measured for the correction (docs/log/speed-and-memory.md): other kinds of
models may need more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize.batches import samples_in
from pelacli.factorize.sensitivity import CHUNK
from pelacli.factorize.spectra import workspace
from pelacli.lowrank.layer import Layer
from pelacli.system import memory

_FLOAT = 4  # bytes
# Copies of the inputs and outputs of all layers that a backward pass keeps, attention, norms and
# activations among them.
_PASS = 1.5
# Copies of the inputs and outputs of the widest layer that two streams and a regression hold.
_CORRECTION = 3.5
# What samples may take that are in a block together, where the correction goes block by block.
IN_FLIGHT = 1 << 30
# Copies in float64 of the inputs' moment, and of the weight, that a layer's regression holds.
_SQUARES, _WEIGHTS = 2.5, 4
_LOGITS = 5  # copies of the logits of some tokens, with their softmax and gradients


@dataclass(frozen=True)
class Needs:
    """Bytes that calibrated factorising takes beside the model.

    Attributes:
        kept: from calibration to the end: sums, and weights of the tokens.
        stages: the most that each of the stages takes.
        samples: how many samples layers are fitted to.
        per_sample: of the correction; 0 where more samples take no more.
        at_once: how many batches are in a block together, where the correction goes block by block.
    """

    kept: float
    stages: Mapping[str, float]
    samples: int
    per_sample: float
    at_once: int

    @property
    def peak(self) -> float:
        return self.kept + max(self.stages.values())

    def check(self, available: int, remedy: str = "") -> None:
        """Refuse what does not fit.

        Args:
            remedy: another one than fewer samples; empty: there is none.

        Raises:
            RequestError: it says how many samples do.
        """
        if self.peak <= available:
            return
        others = max(size for stage, size in self.stages.items() if stage != "correction")
        room = available - self.kept
        fixed = self.stages.get("correction", 0.0) - self.samples * self.per_sample
        fit = max(0, int((room - fixed) // self.per_sample)) if self.per_sample else 0
        remedies = [remedy] if remedy else []
        if room >= others:
            remedies += [f"calibrate on at most {fit} samples"] if fit else []
            remedies.append("leave the correction out")
        else:
            remedies += ["run it where more is free"]
            remedies.append("leave the samples out (plain factorising)")
        raise RequestError(
            f"calibration on {self.samples} samples needs about {memory.text(self.peak)} beside "
            f"the model, and {memory.text(available)} are free; " + ", or ".join(remedies)
        )


def calibrated(
    sections: Sequence[Sequence[Layer]],
    tokens: Mapping[str, int] | None,
    batches: Sequence[Any],
    *,
    correct: bool,
    vocabulary: int = 0,
    block: int = 0,
) -> Needs | None:
    """What calibration, solving and correction take.

    Args:
        sections: the layers that are factorised, in the parts that are calibrated one after the
            other: all of them at once, or block by block.
        tokens: positions of one sample that each layer is applied to, as FLOPs were counted on.
        batches: that layers are fitted to, as they go through the model.
        correct: whether layers are refitted.
        vocabulary: of a language model whose logits are made apart.
        block: bytes of the largest block of a model whose weights and factors stay on disk; 0 where
            they are in memory.

    Returns:
        None where positions are not known.
    """
    if not tokens or not batches:
        return None
    most = max(tokens.values(), default=0)

    def positions(layer: Layer, batch: Any) -> float:
        share = tokens.get(layer.name, 0)
        ids = batch.get("input_ids") if isinstance(batch, Mapping) else None
        if isinstance(ids, Tensor) and "pixel_values" not in batch:
            return ids.numel() * share / most  # as many as there are here, not in the plain sample
        return float(samples_in(batch) * share)

    def sizes(layers: Sequence[Layer], batch: Any) -> list[float]:
        return [positions(layer, batch) * sum(layer.shape) * _FLOAT for layer in layers]

    layers = [layer for section in sections for layer in section]
    samples = sum(map(samples_in, batches))
    squares = max(sum(2 * min(la.shape) ** 2 * _FLOAT for la in section) for section in sections)
    weights = sum(positions(layer, batch) * _FLOAT for layer in layers for batch in batches)
    stages = {
        "calibration": _PASS
        * max(sum(sizes(section, batch)) for section in sections for batch in batches)
        + _LOGITS * CHUNK * vocabulary * _FLOAT,
        # As many layers side by side as fit into twice the largest.
        "solving": max(
            max(workspace(layer.shape, True), 2 * layer.params * _FLOAT) for layer in layers
        ),
    }
    streams = [_CORRECTION * max(sizes(layers, batch)) for batch in batches]
    bound = max(IN_FLIGHT, *streams) if block or len(sections) > 1 else math.inf
    held = min(sum(streams), bound)
    if correct:
        factors = block or sum(layer.params for layer in layers) * _FLOAT
        stages["correction"] = held + factors + max(map(_regression, layers))
    per_sample = held / samples if correct and held < bound else 0.0
    at_once = max(1, int(IN_FLIGHT // max(streams)))
    return Needs(squares + weights + block, stages, samples, per_sample, at_once)


def _regression(layer: Layer) -> float:
    """Bytes of the matrices of a layer's regression: of its inputs' moment, and of its weight."""
    return 8 * (_SQUARES * layer.shape[1] ** 2 + _WEIGHTS * layer.params)


def vocabulary_of(module: nn.Module) -> int:
    """How many logits a language model gives each token; 0 where it has none."""
    output = getattr(module, "get_output_embeddings", lambda: None)()
    weight = getattr(output, "weight", None)
    return len(weight) if isinstance(weight, Tensor) else 0
