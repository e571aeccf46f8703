"""One layer refitted: what it should give as a regression on the inputs that it gets, and cut.

The sums are added up batch by batch, so that nothing as large as the inputs of all batches is made
beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from pelacli.factorize.factors import decompose
from pelacli.factorize.moments import Moments, narrow_in
from pelacli.factorize.symmetric import add_gram, mirrored, safe_scale, scaled, times
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.replace import Factors
from pelacli.system import processes

# Sums of squares in float32 are right to less than so much of themselves for each input; no
# variance below that is one.
_ROUNDING = 10 * torch.finfo(torch.float32).eps


class Regression:
    """Sums over the batches, of which a layer's factors are made.

    A mean counts where the layer has a bias to take it up. What it is, is known when all batches
    are there; so the products are about the first batch's, and are moved at the end.
    """

    def __init__(self, layer: Layer, known: Moments) -> None:
        """Args: known: the layer's moments in the dense model."""
        self._layer, self.known = layer, known
        self._weight = layer.weight.detach()
        self._narrow, self._centred = narrow_in(layer.shape), layer.bias is not None
        out, in_ = layer.shape
        self._near = _Product(in_)  # of the compressed inputs x̂ with themselves
        # Of a with x̂: a is the dense input where in < out, else the target.
        self._cross = _Product(in_)
        self._count = 0.0
        self._input, self._other, self._target = (
            self._weight.new_zeros(width, dtype=torch.float64)
            for width in (in_, in_ if self._narrow else out, out)
        )
        self._centres: tuple[Tensor, Tensor] | None = None  # of x̂ and of a

    @torch.no_grad()
    def add(
        self, dense: Tensor, compressed: Tensor, weights: Tensor, target: Callable[[], Tensor]
    ) -> None:
        """Add a batch, without padding.

        Args:
            dense, compressed: inputs of the two streams, [tokens, in].
            weights: how strongly the model's output depends on each token, [tokens].
            target: makes the output that the layer should have, without bias, [tokens, out].
        """
        self._count += float(weights.sum(dtype=torch.float64))
        wanted = None if self._narrow and not self._centred else target()
        other = dense if self._narrow else wanted
        assert other is not None
        if self._centred:
            assert wanted is not None
            self._target += weights @ wanted
            if self._centres is None:
                self._centres = _mean(compressed, weights), _mean(other, weights)
            compressed, other = compressed - self._centres[0], other - self._centres[1]
            self._input += weights @ compressed
            self._other += weights @ other
        del wanted
        self._near.add(compressed, compressed, weights)
        self._cross.add(other, compressed, weights)

    @torch.no_grad()
    def factors(self, rank: int, ridge: float) -> Factors:
        """The regression of the target on the compressed inputs, cut at the rank in their metric.

        The sums are given up for it. Under a launcher every process must call it, and all come to
        the same.

        Args:
            ridge: share of the inputs' mean variance that holds the regression to the old weight.
        """
        layer, weight = self._layer, self._weight
        count = processes.total(self._count)
        mean, other, target = (
            processes.total(total) / count for total in (self._input, self._other, self._target)
        )
        covariance, cross = self._near.mean(count), self._cross.mean(count)
        rounding = _ROUNDING * float(covariance.diagonal().sum())
        if self._centred:
            covariance.addr_(mean, mean, alpha=-1)
            cross.addr_(other, mean, alpha=-1)
            assert self._centres is not None
            mean += self._centres[0]
        covariance.diagonal().clamp_(min=0.0)  # inputs that never change leave rounding errors
        level = float(covariance.diagonal().mean())
        # The ridge holds to the old weight, so it stands on both sides of the normal equations.
        hold = max(ridge * level, rounding, torch.finfo(torch.float32).tiny)
        if self._narrow:
            # The weight that gives y from x̂ is W T, where T gives x from x̂: then the gradients'
            # moment as seen through it is Tᵀ (Wᵀ G W) T, with no need of G itself.
            cross.diagonal().add_(hold)
            T = _solved(cross, covariance, hold)
            new = times(weight, T)
            far = None if self.known.far is None else T.T @ self.known.far @ T
            moments = replace(self.known, near=covariance, far=far, near_level=level)
            del T
        else:
            new = _solved(cross.add_(weight, alpha=hold), covariance, hold)
            moments = replace(self.known, far=new @ covariance @ new.T, far_level=level)
        del covariance, cross  # a wide layer's matrices are what memory goes into
        down, up = decompose(new, moments, keep=rank).factors(rank)
        bias = layer.bias
        if bias is not None:  # it makes the mean output that of the target
            bias = (bias.double() + target - up @ (down @ mean)).to(bias.dtype)
        return down.to(weight.dtype), up.to(weight.dtype), bias


def _solved(right: Tensor, covariance: Tensor, hold: float) -> Tensor:
    """right (covariance + hold·1)⁻¹, [rows, in]."""
    variances = covariance.diagonal().clone()
    covariance.diagonal().add_(hold)  # in place and taken away again: a copy takes memory
    root = torch.linalg.cholesky(covariance)
    covariance.diagonal().copy_(variances)
    half = torch.linalg.solve_triangular(root.T, right, upper=True, left=False)
    solution: Tensor = torch.linalg.solve_triangular(root, half, upper=False, left=False)
    return solution


def _mean(rows: Tensor, weights: Tensor) -> Tensor:
    """The weighted mean of the rows, the same in all processes: of all that they give."""
    total = processes.total((weights @ rows).double())
    count = processes.total(float(weights.sum(dtype=torch.float64)))
    return (total / (count or 1.0)).float()


class _Product:
    """Σ w a bᵀ over tokens, [width of a, width of b]: batch by batch, in float32."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._total: Tensor | None = None
        self._scale = 1.0  # of the total
        self._scales = (float("inf"), float("inf"))
        self._symmetric = True

    def add(self, a: Tensor, b: Tensor, weights: Tensor) -> None:
        """Args: a, b: [tokens, width]; a is b for all batches or for none."""
        old, (of_a, of_b) = self._scale, self._scales
        # Squares are finite in the scale of the largest batch so far.
        self._scales = of_a, of_b = min(of_a, safe_scale(a)), min(of_b, safe_scale(b))
        self._scale = of_a * of_b
        if self._total is None:
            self._total = a.new_zeros(a.shape[1], self._width)
        elif self._scale != old:
            self._total.mul_(self._scale / old)
        self._symmetric = a is b
        weighted, b = scaled(a, of_a) * weights[:, None], scaled(b, of_b)
        if self._symmetric:
            add_gram(self._total, weighted, b)
        else:
            self._total.addmm_(weighted.T, b)

    def mean(self, count: float) -> Tensor:
        """The sum over all processes, by so many tokens' weight, in float64. It gives up its own.

        Every process must call it.
        """
        assert self._total is not None
        total = mirrored(self._total) if self._symmetric else self._total
        self._total = None
        return processes.total(total.double() / self._scale).div_(count)
