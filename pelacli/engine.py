"""Layers (and moments) → decompositions → plan → factors: the calls that steps and API share."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.factorize import Decomposition, Moments, absorb_mean, decompose
from pelacli.lowrank import Layer
from pelacli.ranks import Plan, Spectrum

Pin = int | Literal["dense", "full"]


def decompositions(
    layers: Sequence[Layer],
    moments: Mapping[str, Moments],
    *,
    full: bool = False,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Decomposition]:
    """Spectrum and basis of every layer.

    Only the components below break-even are kept, since a plan uses no others (a pin may:
    ``full`` keeps all): so the bases take no more memory than the weights.
    """
    found = {}
    for layer in layers:
        out, in_ = layer.shape
        keep = None if full else (out * in_ - 1) // (out + in_) + 1
        cut = decompose(layer.weight, moments.get(layer.name), keep=keep)
        dtype = layer.weight.dtype
        found[layer.name] = Decomposition(
            cut.energies, cut.narrow.to(dtype), cut.wide.to(dtype), cut.transposed
        )
        advance()
    return found


def spectra(
    layers: Sequence[Layer],
    cuts: Mapping[str, Decomposition],
    moments: Mapping[str, Moments],
) -> list[Spectrum]:
    """What the rank engine sees. A calibrated layer's energies are damage per sample."""
    return [
        Spectrum(
            name=layer.name,
            shape=layer.shape,
            energies=cuts[layer.name].energies.numpy(),
            tokens=moments[layer.name].tokens if layer.name in moments else 1.0,
        )
        for layer in layers
    ]


def pins_by_name(layers: Sequence[Layer], pins: Mapping[str, Pin]) -> dict[str, Pin]:
    """Regular expression → rank, resolved to layer → rank; the last match wins.

    Raises:
        RequestError: an expression matches no layer that can be factorised.
    """
    found: dict[str, Pin] = {}
    for pattern, rank in pins.items():
        names = [layer.name for layer in layers if re.search(pattern, layer.name)]
        if not names:
            raise RequestError(f"pin {pattern!r}: matches no layer that is factorised")
        found |= dict.fromkeys(names, rank)
    return found


def factors(
    layers: Sequence[Layer],
    cuts: Mapping[str, Decomposition],
    moments: Mapping[str, Moments],
    plan: Plan,
) -> dict[str, tuple[Tensor, Tensor, Tensor | None]]:
    """(down, up, bias) of every layer that the plan factorises."""
    chosen = plan.ranks()
    found = {}
    for layer in layers:
        if layer.name not in chosen:
            continue
        down, up = cuts[layer.name].factors(chosen[layer.name])
        mean = moments[layer.name].mean if layer.name in moments else None
        bias = absorb_mean(layer.weight, layer.bias, down, up, mean)
        found[layer.name] = (down, up, bias)
    return found


def check_patterns(module: nn.Module, patterns: Sequence[str], flag: str) -> None:
    """An expression that matches no module is a slip of the pen, not a wish.

    Raises:
        RequestError: naming the expression.
    """
    names = [name for name, _ in module.named_modules() if name]
    for pattern in patterns:
        if not any(re.search(pattern, name) for name in names):
            raise RequestError(
                f"{flag} {pattern!r}: matches no module of the model; "
                f"names look like {names[len(names) // 2]}"
            )


def fixed_params(module: nn.Module, layers: Sequence[Layer]) -> int:
    """Parameters that no plan changes: everything but the weights of the given layers."""
    total = sum(p.numel() for p in module.parameters())
    return total - sum(layer.params for layer in layers)
