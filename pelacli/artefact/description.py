"""The manifest of a model: what each layer is and costs, before and after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import nn

from pelacli.console import warn
from pelacli.lowrank import find
from pelacli.lowrank.layer import Layer
from pelacli.lowrank.linear import LowRankLinear
from pelacli.manifest import document
from pelacli.manifest.document import Count, LayerRecord, Manifest
from pelacli.measure import flops
from pelacli.measure.flops import Cost, layer_flops
from pelacli.models import examples, prediction
from pelacli.models.opened import OpenModel
from pelacli.planning import applied
from pelacli.ranks.plan import Plan
from pelacli.ranks.spectrum import Spectrum
from pelacli.version import __version__


def cost(opened: OpenModel, layers: Sequence[Layer]) -> Cost | None:
    """FLOPs of one sample through the dense model; None where it can't be run on a plain sample."""
    try:
        return flops.count(
            opened.module, layers, lambda m: prediction.predict(m, examples.example(opened))
        )
    except Exception as error:  # any model may want inputs that we can't guess
        line = str(error).splitlines()[0] if str(error) else type(error).__name__
        warn(f"{opened.ref}: FLOPs unknown: it can't be run on a plain sample ({line[:120]})")
        return None


def settled(layers: Sequence[Layer], spent: Cost | None) -> list[Layer]:
    """The layers, where those whose weight the model does more with than apply it stay dense:
    factors would be multiplied out each time."""
    reads = {} if spent is None else spent.reads
    return [
        replace(layer, reason=f"its weight is read ({reads[layer.name]})")
        if layer.reason is None and layer.name in reads
        else layer
        for layer in layers
    ]


def describe(
    opened: OpenModel, layers: Sequence[Layer], spent: Cost | None, plan: Plan | None = None
) -> Manifest:
    """The manifest of a dense model, or of what ``plan`` makes of it.

    Args:
        opened: the model while it is still dense.
        layers: all its linear maps.
        spent: what `cost` found.
    """
    rows = []
    for layer in layers:
        tokens = spent.tokens.get(layer.name) if spent is not None else None
        spends = None if tokens is None else layer_flops(layer.shape, tokens, None)
        rows.append(
            LayerRecord(
                name=layer.name,
                shape=layer.shape,
                kind=layer.kind,
                reason=layer.reason,
                params=Count(before=layer.params, after=layer.params),
                flops=None if spends is None else Count(before=spends, after=spends),
            )
        )
    dense = Manifest(
        format=document.FORMAT,
        pela=__version__,
        source=opened.source,
        library=opened.library,
        params=Count(before=opened.params, after=opened.params),
        flops=None if spent is None else Count(before=spent.total, after=spent.total),
        layers=rows,
    )
    return dense if plan is None else applied.applied(dense, plan)


def measured(spectra: Sequence[Spectrum], spent: Cost | None) -> list[Spectrum]:
    """The spectra with the tokens per sample that were counted; those of moments leave out
    padding, and FLOPs of one sample don't."""
    if spent is None:
        return list(spectra)
    return [replace(s, tokens=float(spent.tokens.get(s.name, 0))) for s in spectra]


def moved(opened: OpenModel, record: Manifest, before: Mapping[str, nn.Module]) -> Manifest:
    """The record of a model that was built around another's layers, as a segmenter around a
    compressed backbone: they keep their figures under the names that they have now, and the new
    model's own layers join, as dense ones or as copies. Where nothing moved, the record as it is.

    Args:
        opened: the model as it is now.
        record: of the model before.
        before: `lowrank.places` of that.
    """
    places = find.linear_modules(opened.module)
    now = {id(module): name for name, module in places.items()}
    rows = {now.get(id(before.get(row.name)), row.name): row for row in record.layers}
    stayed = all(name == row.name for name, row in rows.items())
    # A head that came or went has moved nothing, and is in no row all the same.
    if opened.library == record.library and stayed and set(places) == set(before):
        return record
    return _redescribed(opened, record, rows)


def current(opened: OpenModel, record: Manifest | None = None) -> Manifest:
    """The record of a module as it is now: whoever has it in hand may have given it another head,
    or have put a layer, low-rank or dense, in the place of another. What stayed keeps its row.

    Args:
        record: of the module before; None where there is none yet.
    """
    if record is None:
        return _redescribed(opened, describe(opened, [], None), {})
    now = _forms(opened.module)
    rows = {row.name: row for row in record.layers}
    if now.keys() == rows.keys() and all(_fits(row, *now[row.name]) for row in record.layers):
        return recount(opened, record)
    stayed = {
        name: row
        for name, row in rows.items()
        if name in now and _fits(row, *now[name]) and row.shape == now[name][0]
    }
    found = _redescribed(opened, record, stayed)
    for row in found.layers:
        if row.rank is None and row.name in stayed:
            row.reason = stayed[row.name].reason
    return found


def _forms(module: nn.Module) -> dict[str, tuple[tuple[int, int], int | None, str]]:
    """Name → (shape, rank, kind) of every linear map; the rank is None where it is dense."""
    low = find.low_rank_layers(module)
    return {
        layer.name: (layer.shape, None, layer.kind)
        for layer in find.find_layers(module)
        if layer.name.rpartition(".")[0] not in low
    } | {
        name: ((layer.out_features, layer.in_features), layer.rank, "")
        for name, layer in low.items()
    }


def _fits(row: LayerRecord, shape: tuple[int, int], rank: int | None, kind: str) -> bool:
    """Whether a row is about a layer of this form. A dense one may have another shape, as a head
    has that got another number of classes: `recount` sees to that."""
    if row.rank is None or rank is None:
        return row.rank is rank and row.kind == kind
    return (row.shape, row.rank) == (shape, rank)


def _redescribed(opened: OpenModel, record: Manifest, rows: Mapping[str, LayerRecord]) -> Manifest:
    """The record with the layers that the module has now.

    Args:
        rows: what is known of low-rank layers, by the names that they have now.
    """
    layers = find.find_layers(opened.module, head=opened.head)
    spent = cost(opened, layers)
    kept, low = [], find.low_rank_layers(opened.module)
    for layer in describe(opened, layers, spent).layers:
        parent, _, part = layer.name.rpartition(".")
        if parent not in low:
            kept.append(layer)
        elif part == "down":
            tokens = spent.tokens.get(layer.name) if spent is not None else None
            row = rows.get(parent) or _copied(low[parent], parent)
            kept.append(_renamed(row, parent, tokens))
    saved = [(r.params, r.flops) for r in kept if r.rank is not None]
    params = opened.params + sum(p.before - p.after for p, _ in saved)
    flops_saved = sum(f.before - f.after for _, f in saved if f is not None)
    return record.model_copy(
        update={
            "library": opened.library,
            "layers": kept,
            "params": Count(before=params, after=opened.params),
            "flops": None
            if spent is None
            else Count(before=spent.total + flops_saved, after=spent.total),
        }
    )


def _copied(layer: LowRankLinear, name: str) -> LayerRecord:
    """A row for a low-rank layer that has none: the task made it by copying another (a decoder of
    fusion layers), or it came from another model. Of what it keeps nothing is known."""
    out, in_, rank = layer.out_features, layer.in_features, layer.rank
    params = Count(before=out * in_, after=rank * (out + in_))
    return LayerRecord(name=name, shape=(out, in_), rank=rank, params=params)


def _renamed(row: LayerRecord, name: str, tokens: int | None) -> LayerRecord:
    """A low-rank layer's row under its new name, at the tokens it is applied to there."""
    found = None
    if tokens is not None:
        dense, low = (layer_flops(row.shape, tokens, rank) for rank in (None, row.rank))
        found = Count(before=dense, after=low)
    return row.model_copy(update={"name": name, "flops": found})


def recount(opened: OpenModel, record: Manifest) -> Manifest:
    """The manifest after training: the same layers, and the totals of the module as it is now.

    Only the head can have changed (another number of classes); what the factorisation saved is
    the same.
    """
    layers = {la.name: la for la in find.find_layers(opened.module, head=opened.head)}
    rows = []
    for row in record.layers:
        layer = layers.get(row.name)
        if row.rank is None and layer is not None and layer.shape != row.shape:
            per_param = None if row.flops is None else row.flops.before // row.params.before
            row = row.model_copy(
                update={
                    "shape": layer.shape,
                    "params": Count(before=layer.params, after=layer.params),
                    "flops": None
                    if per_param is None
                    else Count(before=per_param * layer.params, after=per_param * layer.params),
                }
            )
        rows.append(row)
    saved = sum(row.params.before - row.params.after for row in rows)
    changed = sum(
        new.flops.before - old.flops.before
        for new, old in zip(rows, record.layers, strict=True)
        if new.flops is not None and old.flops is not None
    )
    return record.model_copy(
        update={
            "layers": rows,
            "params": Count(before=opened.params + saved, after=opened.params),
            "flops": None
            if record.flops is None
            else Count(before=record.flops.before + changed, after=record.flops.after + changed),
        }
    )


def obstacles(module: nn.Module, layers: Sequence[Layer]) -> dict[str, int]:
    """Parameters that no plan can touch, by owner: what stands in the way of a small budget."""
    free = {id(layer.module.weight) for layer in layers if layer.reason is None}
    found: dict[str, int] = {}
    for name, parameter in module.named_parameters():
        if id(parameter) not in free:
            owner = name.rpartition(".")[0] or name
            found[owner] = found.get(owner, 0) + parameter.numel()
    return found
