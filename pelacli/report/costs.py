"""What models cost, as rows: ranks, kept energy, parameters and FLOPs per layer, per kind of layer
and as a whole. Exact rows are for JSON and CSV, human ones for Markdown and the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from pelacli.manifest.document import Count, LayerRecord, Manifest
from pelacli.report.tables import UNKNOWN, Row, human, to_markdown

Level = Literal["layer", "kind", "whole"]

# Columns of `human_rows` that a narrow terminal can do without, the first one first.
DISPENSABLE = ("held-back error", "shape", "layers", "FLOPs", "FLOPs ratio", "energy")


def exact_rows(models: Mapping[str, Manifest], by: Level = "layer") -> list[Row]:
    """One row per layer, per kind of layer, or per model.

    Args:
        models: label → manifest; the label stands in the column "model".

    Returns:
        rows with equal keys. Parameters and FLOPs are integers, energy a share from 0 to 1, and
        None is what is unknown or does not apply (the rank of a dense layer).
    """
    make = {"layer": _layer_rows, "kind": _kind_rows, "whole": _whole_rows}[by]
    return [{"model": label, **row} for label, manifest in models.items() for row in make(manifest)]


def human_rows(models: Mapping[str, Manifest], by: Level = "kind") -> list[Row]:
    """The same in human units. Rows of layers or kinds end with a model's other costs and total.

    The column "model" is left out where there is only one, unless the rows are models.
    """
    make = {"layer": _human_layers, "kind": _human_kinds, "whole": _human_whole}[by]
    named = len(models) > 1 or by == "whole"
    return [
        {"model": label, **row} if named else row
        for label, manifest in models.items()
        for row in make(manifest)
    ]


def documents(models: Mapping[str, Manifest]) -> list[Row]:
    """The document of ``pela report --json``: exact figures, None where unknown."""
    return [
        {
            "model": label,
            "params": manifest.params.model_dump(),
            "flops": None if manifest.flops is None else manifest.flops.model_dump(),
            "layers": [layer.model_dump(mode="json") for layer in manifest.layers],
            "kinds": _kind_rows(manifest),
        }
        for label, manifest in models.items()
    ]


def kinds_markdown(manifest: Manifest) -> str:
    """One model's Markdown table per kind of layer."""
    return to_markdown(human_rows({manifest.source.name: manifest}, "kind"))


def kind_of(name: str) -> str:
    """A layer's name with its numbers replaced: ``blocks.3.mlp.fc1`` → ``blocks.*.mlp.fc1``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def _layer_rows(manifest: Manifest) -> list[Row]:
    return [
        {
            "layer": layer.name,
            "out": layer.shape[0],
            "in": layer.shape[1],
            "rank": layer.rank,
            "form": layer.form,
            "reason": layer.reason,
            "energy": layer.energy,
            **_counts(layer.params, layer.flops),
            "held_back_error": layer.held_back_error,
        }
        for layer in manifest.layers
    ]


def _kind_rows(manifest: Manifest) -> list[Row]:
    kinds: dict[str, list[LayerRecord]] = {}
    for layer in manifest.layers:
        kinds.setdefault(kind_of(layer.name), []).append(layer)
    return [_kind_row(kind, layers) for kind, layers in kinds.items()]


def _kind_row(kind: str, layers: list[LayerRecord]) -> Row:
    ranks = [layer.rank for layer in layers if layer.rank is not None]
    energies = [layer.energy for layer in layers if layer.energy is not None]
    reasons = {layer.reason for layer in layers if layer.rank is None}
    shapes = {layer.shape for layer in layers}
    out, in_ = shapes.pop() if len(shapes) == 1 else (None, None)
    return {
        "kind": kind,
        "out": out,
        "in": in_,
        "layers": len(layers),
        "factorised": len(ranks),
        "rank_min": min(ranks, default=None),
        "rank_max": max(ranks, default=None),
        "in_pivots": sum(layer.form == "pivots" for layer in layers),
        "reason": reasons.pop() if len(reasons) == 1 else None,
        "energy": sum(energies) / len(energies) if energies else None,
        **_counts(_sum(layer.params for layer in layers), _sum(layer.flops for layer in layers)),
    }


def _whole_rows(manifest: Manifest) -> list[Row]:
    return [
        {
            "layers": len(manifest.layers),
            "factorised": sum(layer.rank is not None for layer in manifest.layers),
            "energy": manifest.energy,
            **_counts(manifest.params, manifest.flops),
            "ratio": _ratio(manifest.params),
            "flops_ratio": _ratio(manifest.flops),
        }
    ]


def _human_layers(manifest: Manifest) -> list[Row]:
    with_error = manifest.has_held_back_errors
    rows = [
        {
            "layer": row["layer"],
            "shape": _shape(row),
            "rank": _rank(row),
            "energy": _energy(row["energy"]),
            **({"held-back error": _error(row["held_back_error"])} if with_error else {}),
            **_changes(row),
        }
        for row in _layer_rows(manifest)
    ]
    return _with_other_and_total(rows, "layer", manifest)


def _human_kinds(manifest: Manifest) -> list[Row]:
    rows = [
        {
            "kind": row["kind"],
            "layers": str(row["layers"]),
            "shape": _shape(row),
            "rank": _ranks(row),
            "energy": _energy(row["energy"]),
            **_changes(row),
        }
        for row in _kind_rows(manifest)
    ]
    return _with_other_and_total(rows, "kind", manifest)


def _human_whole(manifest: Manifest) -> list[Row]:
    return [
        {
            "layers": f"{row['factorised']} of {row['layers']} factorised",
            "energy": _energy(row["energy"]),
            **_changes(row),
            "ratio": _percent(row["ratio"]),
            "FLOPs ratio": _percent(row["flops_ratio"]),
        }
        for row in _whole_rows(manifest)
    ]


def _with_other_and_total(rows: list[Row], by: Level, manifest: Manifest) -> list[Row]:
    blank = dict.fromkeys(rows[0] if rows else [by], "")
    other = blank | {by: "other"} | _changes(_other_counts(manifest))
    total = blank | {by: "total", "energy": _energy(manifest.energy)}
    total |= _changes(_counts(manifest.params, manifest.flops))
    return [*rows, other, total]


def _other_counts(manifest: Manifest) -> Row:
    """What is in no linear layer: embeddings, norms, biases; attention products, convolutions."""
    params = _sum(layer.params for layer in manifest.layers)
    flops = _sum(layer.flops for layer in manifest.layers)
    return _counts(_difference(manifest.params, params), _difference(manifest.flops, flops))


def _difference(whole: Count | None, part: Count | None) -> Count | None:
    if whole is None or part is None:
        return None
    return Count(before=whole.before - part.before, after=whole.after - part.after)


def _sum(counts: Iterable[Count | None]) -> Count | None:
    """The sum; None where a part is unknown."""
    before = after = 0
    for count in counts:
        if count is None:
            return None
        before, after = before + count.before, after + count.after
    return Count(before=before, after=after)


def _counts(params: Count | None, flops: Count | None) -> Row:
    """The four columns of an exact row."""
    return {
        f"{name}_{when}": None if count is None else getattr(count, when)
        for name, count in (("params", params), ("flops", flops))
        for when in ("before", "after")
    }


def _changes(row: Row) -> Row:
    """The two columns of a human row, from the four of an exact one."""
    return {
        "params": _change(row["params_before"], row["params_after"]),
        "FLOPs": _change(row["flops_before"], row["flops_after"]),
    }


def _change(before: int | None, after: int | None) -> str:
    return human(before) if before == after else f"{human(before)} → {human(after)}"


def _shape(row: Row) -> str:
    return "various" if row["out"] is None else f"{row['out']}×{row['in']}"


def _rank(row: Row) -> str:
    if row["rank"] is None:
        return _dense(row["reason"])
    return f"{row['rank']} in pivots" if row["form"] == "pivots" else str(row["rank"])


def _ranks(row: Row) -> str:
    """The ranks of a kind of layer: "17–19, 2 dense", "17–19 in pivots"."""
    low, high, in_pivots = row["rank_min"], row["rank_max"], row["in_pivots"]
    if low is None:
        return _dense(row["reason"])
    dense = row["layers"] - row["factorised"]
    text = str(low) if low == high else f"{low}–{high}"
    if in_pivots:
        text += " in pivots" if in_pivots == row["factorised"] else f", {in_pivots} in pivots"
    return text + (f", {dense} dense" if dense else "")


def _dense(reason: str | None) -> str:
    return f"dense ({reason})" if reason else "dense"


def _energy(share: float | None) -> str:
    """Kept energy in percent, to two digits: what is lost is what matters, and it is little."""
    return UNKNOWN if share is None else f"{100 * share:.2f}%"


def _error(share: float | None) -> str:
    return UNKNOWN if share is None else f"{share:.3g}"


def _ratio(count: Count | None) -> float | None:
    return None if count is None or not count.before else count.after / count.before


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f}%"
