"""Show what models cost: artefacts from their manifests, plain models by counting them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pelacli import console, manifest, rundir, tables
from pelacli.errors import RequestError
from pelacli.manifest import Manifest

_RUNS = Path("runs")


def run(refs: Sequence[str], *, by: str, style: str, arch: str | None = None) -> None:
    """Print the report.

    Args:
        refs: artefacts, run directories or models; none means every artefact below runs/.
        by: rows per "layer", "kind" or "whole".
        style: "table", "json", "csv" or "markdown".
    """
    if by not in ("layer", "kind", "whole"):
        raise RequestError(f"--by {by}: there is layer, kind and whole")
    level = cast(tables.Level, by)
    if style not in ("table", "json", "csv", "markdown"):
        raise RequestError(f"--format {style}: there is table, json, csv and markdown")
    found: dict[str, Manifest] = {}
    for ref in refs or _all():
        found |= _manifests(ref, arch)
    if style == "json":
        console.emit(tables.to_json(found))
    elif style == "csv":
        console.out().print(tables.to_csv(found, level), markup=False, highlight=False, end="")
    elif style == "markdown":
        console.out().print(tables.to_markdown(found, level), markup=False, highlight=False)
    elif level == "whole":
        console.out().print(tables.to_table(found, level))
    else:
        for label, record in found.items():  # a table each: a column of equal names is no help
            console.out().print(label, markup=False, highlight=False, style="bold")
            console.out().print(tables.to_table({label: record}, level))


def _all() -> list[str]:
    paths = rundir.artefacts(_RUNS)
    if not paths:
        raise RequestError(
            f"{_RUNS}/: there are no artefacts; name an artefact or a model, or make one: "
            "pela decompose MODEL --ratio 0.5"
        )
    return [str(path) for path in paths]


def _manifests(ref: str, arch: str | None) -> dict[str, Manifest]:
    path = Path(ref)
    if manifest.is_artefact(path):
        return {ref: manifest.read(path)}
    below = rundir.artefacts(path) if path.is_dir() else []
    if below:
        return {str(one): manifest.read(one) for one in below}
    # Only now torch is needed: a plain model has to be built to be counted.
    from pelacli import lowrank, models, record

    local = path.exists()
    opened = models.open(
        ref, weights="pretrained" if local else "random", arch=arch, meta=not local
    )
    layers = lowrank.find_layers(opened.module, head=opened.head)
    return {ref: record.describe(opened, layers, record.cost(opened, layers))}
