"""The manifest of a model that changed: built around other layers, given another head, trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from pelacli.artefact.description import cost, describe
from pelacli.lowrank import find
from pelacli.lowrank.linear import LowRankLinear
from pelacli.manifest.document import Count, LayerRecord, Manifest
from pelacli.measure.flops import layer_flops
from pelacli.models.opened import OpenModel
from pelacli.ranks import forms
from pelacli.ranks.forms import Form


def relocated(opened: OpenModel, manifest: Manifest, before: Mapping[str, nn.Module]) -> Manifest:
    """The manifest of a model that was built around another's layers, as a segmenter around a
    compressed backbone.

    The old layers keep their figures under the names that they have now. The new model's own layers
    join, as dense ones or as copies. Where no layer moved, the manifest is returned as it is.

    Args:
        opened: the model as it is now.
        manifest: of the model before.
        before: that model's linear maps by name (`pelacli.lowrank.find.linear_modules`).
    """
    now = find.linear_modules(opened.module)
    name_of = {id(module): name for name, module in now.items()}
    rows = {name_of.get(id(before.get(row.name)), row.name): row for row in manifest.layers}
    stayed = all(name == row.name for name, row in rows.items())
    # A head that came or went has moved no layer, and yet it is in no row.
    if opened.library == manifest.library and stayed and set(now) == set(before):
        return manifest
    return _with_layers_of(opened, manifest, rows)


def current(opened: OpenModel, manifest: Manifest | None = None) -> Manifest:
    """The manifest of a module as it is now.

    Whoever has the module in hand may have given it another head, or put a layer, low-rank or
    dense, in the place of another. Layers that stayed keep their rows.

    Args:
        manifest: of the module before; None where there is none yet.
    """
    if manifest is None:
        return _with_layers_of(opened, describe(opened, [], None), {})
    now = _forms(opened.module)
    rows = {row.name: row for row in manifest.layers}
    if now.keys() == rows.keys() and all(now[name].fits(row) for name, row in rows.items()):
        return recounted(opened, manifest)
    stayed = {
        name: row
        for name, row in rows.items()
        if name in now and now[name].fits(row) and row.shape == now[name].shape
    }
    updated = _with_layers_of(opened, manifest, stayed)
    for row in updated.layers:
        if row.rank is None and row.name in stayed:
            row.reason = stayed[row.name].reason
    return updated


def recounted(opened: OpenModel, manifest: Manifest) -> Manifest:
    """The manifest after training: the same layers, and the totals of the module as it is now.

    Only the head can have changed, to another number of classes; what the factorisation saved is
    the same.
    """
    layers = {la.name: la for la in find.find_layers(opened.module, head=opened.head)}
    rows = []
    for row in manifest.layers:
        layer = layers.get(row.name)
        if row.rank is None and layer is not None and layer.shape != row.shape:
            row = _resized(row, layer.shape)
        rows.append(row)
    saved = sum(row.params.before - row.params.after for row in rows)
    added_flops = sum(
        new.flops.before - old.flops.before
        for new, old in zip(rows, manifest.layers, strict=True)
        if new.flops is not None and old.flops is not None
    )
    flops = manifest.flops
    if flops is not None:
        flops = Count(before=flops.before + added_flops, after=flops.after + added_flops)
    params = Count(before=opened.params + saved, after=opened.params)
    return manifest.model_copy(update={"layers": rows, "params": params, "flops": flops})


@dataclass(frozen=True)
class _Form:
    """What can be seen of a linear map in a module; ``rank`` is None where it is dense."""

    shape: tuple[int, int]
    rank: int | None
    kind: str
    form: Form | None = None

    def fits(self, row: LayerRecord) -> bool:
        """Whether a row is about a layer of this form. A dense one may have another shape, as a
        head has that got another number of classes: `recounted` sees to that."""
        if row.rank is None or self.rank is None:
            return row.rank is self.rank and row.kind == self.kind
        return (row.shape, row.rank, row.form) == (self.shape, self.rank, self.form)


def _forms(module: nn.Module) -> dict[str, _Form]:
    """Every linear map of a module by name, dense and low-rank."""
    low_rank = find.low_rank_layers(module)
    return {
        layer.name: _Form(layer.shape, None, layer.kind)
        for layer in find.find_layers(module)
        if layer.name.rpartition(".")[0] not in low_rank
    } | {
        name: _Form((layer.out_features, layer.in_features), layer.rank, "", layer.form)
        for name, layer in low_rank.items()
    }


def _with_layers_of(
    opened: OpenModel, manifest: Manifest, rows: Mapping[str, LayerRecord]
) -> Manifest:
    """The manifest with the layers that the module has now.

    Args:
        rows: what is known of low-rank layers, by the names that they have now.
    """
    layers = find.find_layers(opened.module, head=opened.head)
    counted = cost(opened, layers)
    kept, low_rank = [], find.low_rank_layers(opened.module)
    for layer in describe(opened, layers, counted).layers:
        parent, _, part = layer.name.rpartition(".")
        if parent not in low_rank:
            kept.append(layer)
        elif part == "down":
            tokens = counted.tokens.get(layer.name) if counted is not None else None
            row = rows.get(parent) or _unknown(low_rank[parent], parent)
            kept.append(_renamed(row, parent, tokens))
    saved = [(row.params, row.flops) for row in kept if row.rank is not None]
    params = opened.params + sum(p.before - p.after for p, _ in saved)
    flops = None
    if counted is not None:
        saved_flops = sum(f.before - f.after for _, f in saved if f is not None)
        flops = Count(before=counted.total + saved_flops, after=counted.total)
    return manifest.model_copy(
        update={
            "library": opened.library,
            "layers": kept,
            "params": Count(before=params, after=opened.params),
            "flops": flops,
        }
    )


def _unknown(layer: LowRankLinear, name: str) -> LayerRecord:
    """A row for a low-rank layer that has none: the task made it by copying another (a decoder of
    fusion layers), or it came from another model. How much energy it keeps is not known."""
    out, in_, rank = layer.out_features, layer.in_features, layer.rank
    params = Count(before=out * in_, after=forms.weights((out, in_), rank, layer.form))
    return LayerRecord(name=name, shape=(out, in_), rank=rank, form=layer.form, params=params)


def _renamed(row: LayerRecord, name: str, tokens: int | None) -> LayerRecord:
    """A low-rank layer's row under its new name, at the tokens that it is applied to there."""
    flops = None
    if tokens is not None:
        dense = layer_flops(row.shape, tokens, None)
        low = layer_flops(row.shape, tokens, row.rank, row.form)
        flops = Count(before=dense, after=low)
    return row.model_copy(update={"name": name, "flops": flops})


def _resized(row: LayerRecord, shape: tuple[int, int]) -> LayerRecord:
    """A dense layer's row at another shape, applied to as many tokens."""
    params = shape[0] * shape[1]
    flops = None
    if row.flops is not None:
        count = row.flops.before // row.params.before * params
        flops = Count(before=count, after=count)
    return row.model_copy(
        update={"shape": shape, "params": Count(before=params, after=params), "flops": flops}
    )
