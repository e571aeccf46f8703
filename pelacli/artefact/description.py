"""The manifest of a dense model: what each layer is and costs, and what no plan can change."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from pelacli.console import warn
from pelacli.lowrank.layer import Layer
from pelacli.manifest.document import FORMAT, Count, LayerRecord, Manifest
from pelacli.measure import flops
from pelacli.measure.flops import Cost, layer_flops
from pelacli.messages import one_line
from pelacli.models import examples, prediction
from pelacli.models.filling import zeros
from pelacli.models.opened import OpenModel
from pelacli.planning.outcome import planned_manifest
from pelacli.ranks import reasons
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.version import __version__

_LONGEST = 120  # characters of a model's own error in our message


def cost(opened: OpenModel, layers: Sequence[Layer]) -> Cost | None:
    """FLOPs of one sample through the dense model; None where it can't be run on a plain sample."""
    try:
        with contextlib.nullcontext() if opened.weights is None else zeros(opened.module):
            sample = examples.example(opened)
            if sample is None:
                return None
            return flops.count(opened.module, layers, lambda m: prediction.predict(m, sample))
    except Exception as error:  # any model may want inputs that we can't guess
        reason = one_line(error, _LONGEST)
        warn(f"{opened.ref}: FLOPs unknown: it can't be run on a plain sample ({reason})")
        return None


def with_read_weights_dense(layers: Sequence[Layer], cost: Cost | None) -> list[Layer]:
    """The layers, those dense whose weight the model reads for more than applying it: its factors
    would be multiplied out each time."""
    reads = {} if cost is None else cost.reads
    return [
        replace(layer, reason=reasons.weight_is_read(reads[layer.name]))
        if layer.reason is None and layer.name in reads
        else layer
        for layer in layers
    ]


def describe(
    opened: OpenModel, layers: Sequence[Layer], cost: Cost | None, plan: Plan | None = None
) -> Manifest:
    """The manifest of a dense model, or of what ``plan`` makes of it.

    Args:
        opened: the model while it is still dense.
        layers: all its linear maps.
        cost: FLOPs of one sample, where they are known.
    """
    dense = Manifest(
        format=FORMAT,
        pela=__version__,
        source=opened.source,
        library=opened.library,
        params=Count(before=opened.params, after=opened.params),
        flops=None if cost is None else Count(before=cost.total, after=cost.total),
        layers=dense_records(layers, cost),
    )
    return dense if plan is None else planned_manifest(dense, plan)


def at_counted_tokens(spectra: Sequence[Spectrum], cost: Cost | None) -> list[Spectrum]:
    """The spectra with the tokens of the sample that FLOPs were counted on. Calibration counts
    tokens too, but leaves out padding, which costs FLOPs all the same."""
    if cost is None:
        return list(spectra)
    return [replace(s, tokens=float(cost.tokens.get(s.name, 0))) for s in spectra]


def obstacles(module: nn.Module, layers: Sequence[Layer]) -> dict[str, int]:
    """Parameters that no plan can touch, by owner: what stands in the way of a small budget."""
    free = {id(layer.module.weight) for layer in layers if layer.reason is None}
    params_of: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) not in free:
            owner = name.rpartition(".")[0] or name
            params_of[owner] = params_of.get(owner, 0) + parameter.numel()
    return params_of


def dense_records(layers: Sequence[Layer], cost: Cost | None) -> list[LayerRecord]:
    """What a manifest says of each layer of a dense model."""
    return [_dense_record(layer, cost) for layer in layers]


def _dense_record(layer: Layer, cost: Cost | None) -> LayerRecord:
    tokens = cost.tokens.get(layer.name) if cost is not None else None
    count = None if tokens is None else layer_flops(layer.shape, tokens, None)
    return LayerRecord(
        name=layer.name,
        shape=layer.shape,
        kind=layer.kind,
        reason=layer.reason,
        params=Count(before=layer.params, after=layer.params),
        flops=None if count is None else Count(before=count, after=count),
    )
