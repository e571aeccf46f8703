"""KFAC-SVD and LEMS (Thoma et al., ICML 2026), from the paper's formulas.

KFAC-SVD: E[x xᵀ] of all tokens, and E[g gᵀ] of the gradients of the texts' own cross-entropy, of
the middle three quarters of each sequence, the norm of each token's gradient held between a tenth
and ten times their mean. Both are shrunk towards the identity, by 0.1 and by 0.3.

LEMS: the damage of a layer is taken to have the shape of its energy left out, and the size that is
measured at a tenth of its break-even rank, as the divergence of the whole model with this layer
alone cut. Earlier blocks weigh more, by two numbers that a search of ten trials chooses. The paper
plans by an ILP over these damages; here the planner does, which is exact too, and draws the trials
at random where the paper has Optuna. The divergences are those of two calibration batches.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.observation import ObservedLinear
from pelacli.factorize.passes import frozen
from pelacli.lowrank.calls import LinearCalls, evaluating
from pelacli.lowrank.layer import Layer
from pelacli.models.token_head import TokenHead
from pelacli.ranks.spectrum import Spectrum

_SHRINK_INPUT, _SHRINK_OUTPUT = 0.1, 0.3
_EDGE = 0.125  # of a sequence, at both ends
_LEAST, _MOST = 0.1, 10.0  # of the mean norm
TRIALS, ALPHA, GAMMA = 10, 3.0, 7.0
REFERENCE = 0.1  # of the break-even rank


@dataclass
class _Sums:
    """Σ x xᵀ and Σ g gᵀ of a layer, the wide one as seen through the weight."""

    weight: Tensor
    inputs: Tensor | float = 0.0
    gradients: Tensor | float = 0.0
    tokens: int = 0

    @property
    def _narrow_in(self) -> bool:
        return narrow_in((self.weight.shape[0], self.weight.shape[1]))

    def forward(self, x: Tensor, y: Tensor) -> None:
        """As `ObservedLinear` calls it: x [B, N, in], y [B, N, out] without bias."""
        v = (x if self._narrow_in else y).detach().flatten(0, -2)
        self.inputs = self.inputs + v.T @ v
        self.tokens += len(v)

    def backward(self, g: Tensor, gx: Tensor) -> None:
        """g [B, N, out], gx [B, N, in] = g W."""
        norms = g.norm(dim=-1, keepdim=True)
        edge = int(g.shape[1] * _EDGE)
        middle = slice(edge, g.shape[1] - edge)
        mean = norms[:, middle].mean(1, keepdim=True).clamp_min(1e-10)
        held = torch.minimum(torch.maximum(norms, _LEAST * mean), _MOST * mean)
        scale = torch.where(norms > 1e-10, held / norms.clamp_min(1e-10), 1.0)
        u = ((gx if self._narrow_in else g) * scale)[:, middle]
        u = u.flatten(0, -2)
        self.gradients = self.gradients + u.T @ u

    def moments(self, samples: int) -> Moments:
        """Both moments, shrunk."""
        weight = self.weight.double()
        inner = self._narrow_in
        inputs = torch.as_tensor(self.inputs).double() / self.tokens
        gradients = torch.as_tensor(self.gradients).double() / samples
        sides = [(inputs, _SHRINK_INPUT), (gradients, _SHRINK_OUTPUT)]
        (near, near_shrink), (far, far_shrink) = sides if inner else sides[::-1]
        eye = torch.eye(len(near), dtype=torch.float64)
        through = weight.T @ weight if inner else weight @ weight.T
        far_level = float(far.diagonal().sum() / through.diagonal().sum())
        return Moments(
            near=(1 - near_shrink) * near + near_shrink * near.diagonal().mean() * eye,
            far=(1 - far_shrink) * far + far_shrink * far_level * through,
            near_level=0.0,
            far_level=0.0,
            tokens=self.tokens / samples,
        )


def moments(
    module: nn.Module, layers: Sequence[Layer], batches: Sequence[Any], head: TokenHead
) -> dict[str, Moments]:
    """KFAC-SVD's moments of the layers.

    Args:
        batches: ``input_ids`` [B, N] without padding.
    """
    sums = {layer.name: _Sums(layer.weight) for layer in layers}

    def apply(layer: Layer, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = x if x.requires_grad else x.detach().requires_grad_()
        y: Tensor = ObservedLinear.apply(x, weight, bias, sums[layer.name])
        return y

    samples = 0
    with frozen(module), evaluating(module):
        for batch in batches:
            ids = batch["input_ids"]
            with LinearCalls(layers, apply):
                states = head.hidden(batch)
            logits = head.logits(states[:, :-1].flatten(0, 1)).float()
            loss = F.cross_entropy(logits, ids[:, 1:].flatten(), reduction="sum")
            torch.autograd.backward(loss)
            samples += len(ids)
    return {name: known.moments(samples) for name, known in sums.items()}


def scaled(
    spectra: Sequence[Spectrum], measure: Callable[[str, int], float]
) -> dict[str, np.ndarray[Any, Any]]:
    """LEMS: each layer's energies in the size of the divergence that they cost.

    Args:
        measure: (layer, rank) → the divergence of the model with this layer alone cut.
    """
    found = {}
    for spectrum in spectra:
        energies = np.asarray(spectrum.energies, np.float64)
        out, in_ = spectrum.shape
        rank = max(1, int(REFERENCE * out * in_ / (out + in_)))
        left_out = max(energies[rank:].sum(), 1e-6 * energies.sum())
        found[spectrum.name] = energies / left_out * measure(spectrum.name, rank)
    return found


def weighed(
    spectra: Sequence[Spectrum],
    scaled_energies: Mapping[str, np.ndarray[Any, Any]],
    depth: Mapping[str, int],
    alpha: float,
    gamma: float,
) -> list[Spectrum]:
    """LEMS: the earlier a block, the more its damage counts: 1 + γ·h, where h falls from 1 in the
    first block to 0 in the last as the sum of k^−α over the blocks that follow."""
    blocks = max(depth.values()) + 1
    sums = np.cumsum((np.arange(blocks) + 1.0)[::-1] ** -alpha)[::-1]
    share = (sums - sums[-1]) / max(sums[0] - sums[-1], 1e-12)
    return [
        replace(s, energies=scaled_energies[s.name] * (1 + gamma * share[depth[s.name]]))
        for s in spectra
    ]
