"""What a layer's inputs and output-gradients are like."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass
class Moments:
    """What a layer's inputs and output-gradients are like. n = min(out, in).

    Attributes:
        mean: mean input, [in], for the layer's bias to take up the error's mean; None of a layer
            without a bias, which can't.
        near: second moment on the narrower side, [n, n]: C of the inputs (per token) where
            in < out, else G, the summed gradient moment per sample. None: identity. C is the
            covariance E[(x − μ)(x − μ)ᵀ] of a layer with a bias, and E[x xᵀ] of one without.
        far: the wider side's second moment seen through the weight, [n, n]: Wᵀ G W where
            in < out, else W C Wᵀ. None: identity seen through the weight.
        near_level, far_level: mean diagonal of the two moments on their own side (for damping).
        tokens: positions per sample.
        weights: of each token in ``mean`` and in the inputs' moment, by the output's sensitivity to
            it: number of the batch → [tokens], 1 on average. Empty: all tokens weigh the same.
    """

    mean: Tensor | None = None
    near: Tensor | None = None
    far: Tensor | None = None
    near_level: float = 1.0
    far_level: float = 1.0
    tokens: float = 1.0
    weights: Mapping[int, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device) -> Moments:
        """The same on a device; itself where it is there."""

        def moved(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.to(device)

        weights = {batch: weight.to(device) for batch, weight in self.weights.items()}
        return replace(
            self,
            mean=moved(self.mean),
            near=moved(self.near),
            far=moved(self.far),
            weights=weights,
        )


def narrow_in(shape: tuple[int, int]) -> bool:
    """Whether a layer of this shape (out, in) is decomposed on its input side.

    A square one is not: layers that write into a residual stream are square as a rule, and to
    correct those the gradients' moment G is needed itself and not only as Wᵀ G W.
    """
    return shape[1] < shape[0]
