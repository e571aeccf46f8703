"""Tables: a manifest's figures per layer, per kind and as a whole, and rows in any format.

Rows are plain dicts, column → value. `report_rows` gives exact figures, which JSON and CSV keep;
Markdown and the terminal show them in human units.
"""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from rich.table import Table

from pelacli.manifest.document import Count, LayerRecord, Manifest

Level = Literal["layer", "kind", "whole"]
Row = dict[str, Any]

UNKNOWN = "–"


def report_rows(models: Mapping[str, Manifest], by: Level = "layer") -> list[Row]:
    """The exact figures of models, one row per layer, per kind of layer, or per model.

    Args:
        models: label → manifest; the label stands in the column "model".

    Returns:
        rows with equal keys. Parameters and FLOPs are integers, energy a share from 0 to 1, and
        None is what is unknown or does not apply (the rank of a dense layer).
    """
    make = {"layer": _layer_rows, "kind": _kind_rows, "whole": _whole_rows}[by]
    return [{"model": label, **row} for label, m in models.items() for row in make(m)]


def kind_of(name: str) -> str:
    """A layer's name with its numbers replaced: ``blocks.3.mlp.fc1`` → ``blocks.*.mlp.fc1``."""
    return re.sub(r"(?<![^.])\d+(?![^.])", "*", name)


def to_json(models: Mapping[str, Manifest]) -> list[Row]:
    """The document of ``pela report --json``: exact figures, None where unknown."""
    return [
        {
            "model": label,
            "params": m.params.model_dump(),
            "flops": None if m.flops is None else m.flops.model_dump(),
            "layers": [layer.model_dump(mode="json") for layer in m.layers],
            "kinds": _kind_rows(m),
        }
        for label, m in models.items()
    ]


def to_csv(models: Mapping[str, Manifest], by: Level = "layer") -> str:
    """`report_rows` as CSV, with a header."""
    return rows_csv(report_rows(models, by))


def to_markdown(models: Mapping[str, Manifest], by: Level = "kind") -> str:
    """A Markdown table in human units."""
    return rows_markdown(_human_rows(models, by))


def to_table(models: Mapping[str, Manifest], by: Level = "kind") -> Table:
    """A table for the terminal in human units."""
    return rows_table(_human_rows(models, by))


def kinds_markdown(manifest: Manifest) -> str:
    """One model's Markdown table per kind of layer."""
    return to_markdown({manifest.source.model: manifest})


def rows_csv(rows: Sequence[Row]) -> str:
    """Any rows as CSV, with a header; values as they are, None as nothing."""
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def rows_markdown(rows: Sequence[Row]) -> str:
    """Any rows as a Markdown table; columns of numbers are aligned to the right."""
    columns = {c: [show(row.get(c)) for row in rows] for c in _columns(rows)}
    lines = [
        list(columns),
        ["---:" if _numeric(cells) else "---" for cells in columns.values()],
        *zip(*columns.values(), strict=True),
    ]
    return "\n".join(f"| {' | '.join(_escape(cell) for cell in line)} |" for line in lines)


_NAME_WIDTH = 20  # characters


def rows_table(rows: Sequence[Row], title: str | None = None) -> Table:
    """Any rows as a table for the terminal; columns of numbers are aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text  # names may hold brackets, which are no markup

    table = Table(title=None if title is None else Text(title), box=SIMPLE_HEAD, pad_edge=False)
    columns = {c: [show(row.get(c)) for row in rows] for c in _columns(rows)}
    for column, cells in columns.items():
        # On a narrow terminal a cell goes on in the next line; nothing is ever cut off. Numbers and
        # short names keep their width as long as there is any to share out.
        longest = max((len(word) for cell in cells for word in cell.split()), default=1)
        table.add_column(
            Text(column),
            justify="right" if _numeric(cells) else "left",
            overflow="fold",
            min_width=min(longest, _NAME_WIDTH),
        )
    for line in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell) for cell in line))
    return table


def show(value: Any) -> str:
    """A value for human eyes: 12,345; 0.1235; yes; – for what is unknown."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNKNOWN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def human(number: int | float | None) -> str:
    """A number to three digits with its prefix: 86.6 M, 35.1 G, 1.00 k; small ones as they are."""
    if number is None:
        return UNKNOWN
    size, prefixes = float(number), ["", "k", "M", "G", "T", "P", "E"]
    while float(f"{abs(size):.3g}") >= 1000 and len(prefixes) > 1:
        size, prefixes = size / 1000, prefixes[1:]
    if not prefixes[0]:
        return f"{size:.4g}"
    return f"{f'{size:#.3g}'.rstrip('.')} {prefixes[0]}"


def _layer_rows(m: Manifest) -> list[Row]:
    return [
        {
            "layer": layer.name,
            "out": layer.shape[0],
            "in": layer.shape[1],
            "rank": layer.rank,
            "reason": layer.reason,
            "energy": layer.energy,
            **_counts(layer.params, layer.flops),
        }
        for layer in m.layers
    ]


def _kind_rows(m: Manifest) -> list[Row]:
    kinds: dict[str, list[LayerRecord]] = {}
    for layer in m.layers:
        kinds.setdefault(kind_of(layer.name), []).append(layer)
    rows = []
    for kind, layers in kinds.items():
        ranks = [layer.rank for layer in layers if layer.rank is not None]
        energies = [layer.energy for layer in layers if layer.energy is not None]
        reasons = {layer.reason for layer in layers if layer.rank is None}
        shape = layers[0].shape if len({layer.shape for layer in layers}) == 1 else (None, None)
        rows.append(
            {
                "kind": kind,
                "out": shape[0],
                "in": shape[1],
                "layers": len(layers),
                "factorised": len(ranks),
                "rank_min": min(ranks, default=None),
                "rank_max": max(ranks, default=None),
                "reason": reasons.pop() if len(reasons) == 1 else None,
                "energy": sum(energies) / len(energies) if energies else None,
                **_counts(_total(la.params for la in layers), _total(la.flops for la in layers)),
            }
        )
    return rows


def _whole_rows(m: Manifest) -> list[Row]:
    return [
        {
            "layers": len(m.layers),
            "factorised": sum(layer.rank is not None for layer in m.layers),
            "energy": m.energy,
            **_counts(m.params, m.flops),
            "ratio": _ratio(m.params),
            "flops_ratio": _ratio(m.flops),
        }
    ]


def _human_rows(models: Mapping[str, Manifest], by: Level) -> list[Row]:
    rows = []
    for label, m in models.items():
        name = {"model": label} if len(models) > 1 or by == "whole" else {}
        shown = [_human(row, by) for row in report_rows({label: m}, by)]
        if by != "whole":
            blank = dict.fromkeys(shown[0] if shown else [by], "")
            rest, rest_flops = _rest(m)
            shown.append(blank | {by: "other", **_changes(rest, rest_flops)})
            shown.append(
                blank | {by: "total", "energy": _energy(m.energy)} | _changes(m.params, m.flops)
            )
        rows += [{**name, **row} for row in shown]
    return rows


def _human(row: Row, by: Level) -> Row:
    counts = {
        "params": Count(before=row["params_before"], after=row["params_after"]),
        "flops": None
        if row["flops_before"] is None
        else Count(before=row["flops_before"], after=row["flops_after"]),
    }
    changes = _changes(counts["params"], counts["flops"])
    energy = {"energy": _energy(row["energy"])}
    if by == "whole":
        return {
            "layers": f"{row['factorised']} of {row['layers']} factorised",
            **energy,
            **changes,
            "ratio": _percent(row["ratio"]),
            "FLOPs ratio": _percent(row["flops_ratio"]),
        }
    shape = "various" if row["out"] is None else f"{row['out']}×{row['in']}"
    if by == "layer":
        rank = _dense(row["reason"]) if row["rank"] is None else str(row["rank"])
        return {"layer": row["layer"], "shape": shape, "rank": rank, **energy, **changes}
    low, high = row["rank_min"], row["rank_max"]
    dense = row["layers"] - row["factorised"]
    rank = _dense(row["reason"]) if low is None else str(low) if low == high else f"{low}–{high}"
    if low is not None and dense:
        rank += f", {dense} dense"
    return {
        "kind": row["kind"],
        "layers": str(row["layers"]),
        "shape": shape,
        "rank": rank,
        **energy,
        **changes,
    }


def _energy(share: float | None) -> str:
    """Kept energy in percent, to two digits: what is lost is what matters, and it is little."""
    return UNKNOWN if share is None else f"{100 * share:.2f}%"


def _dense(reason: str | None) -> str:
    return f"dense ({reason})" if reason else "dense"


def _rest(m: Manifest) -> tuple[Count, Count | None]:
    """What is in no linear layer: embeddings, norms, biases; attention products, convolutions."""
    params, flops = _total(la.params for la in m.layers), _total(la.flops for la in m.layers)
    assert params is not None
    rest = Count(before=m.params.before - params.before, after=m.params.after - params.after)
    if flops is None or m.flops is None:
        return rest, None
    return rest, Count(before=m.flops.before - flops.before, after=m.flops.after - flops.after)


def _total(counts: Iterable[Count | None]) -> Count | None:
    """The sum; None where a part is unknown."""
    before = after = 0
    for count in counts:
        if count is None:
            return None
        before, after = before + count.before, after + count.after
    return Count(before=before, after=after)


def _counts(params: Count | None, flops: Count | None) -> Row:
    return {
        f"{name}_{when}": None if count is None else getattr(count, when)
        for name, count in (("params", params), ("flops", flops))
        for when in ("before", "after")
    }


def _changes(params: Count | None, flops: Count | None) -> Row:
    return {"params": _change(params), "FLOPs": _change(flops)}


def _change(count: Count | None) -> str:
    if count is None:
        return UNKNOWN
    before, after = human(count.before), human(count.after)
    return before if count.before == count.after else f"{before} → {after}"


def _ratio(count: Count | None) -> float | None:
    return None if count is None or not count.before else count.after / count.before


def _percent(share: float | None) -> str:
    return UNKNOWN if share is None else f"{100 * share:.1f}%"


def _columns(rows: Sequence[Row]) -> list[str]:
    """All columns in the order in which they first appear."""
    return list(dict.fromkeys(column for row in rows for column in row))


def _numeric(cells: Iterable[str]) -> bool:
    return all(re.match(r"[-+]?[.\d]|–?$", cell) for cell in cells)


def _escape(cell: str) -> str:
    return " ".join(cell.split()).replace("\\", "\\\\").replace("|", "\\|")
