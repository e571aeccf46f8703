"""Print what the steps made: a table for people, one JSON document for scripts. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelacli.planning.replan import Replanned
    from pelacli.steps.decompose import Decomposed
    from pelacli.steps.eval import Evaluated
    from pelacli.steps.pipeline import Ran
    from pelacli.steps.training import Outcome

from pelacli import console
from pelacli.errors import DropError
from pelacli.manifest.document import Manifest
from pelacli.recipe.gallery import describe, recipes
from pelacli.report import tables


def print_recipes(json: bool) -> None:
    """The recipes with their first lines."""
    rows = [{"name": name, "about": describe(file)} for name, file in recipes().items()]
    if json:
        console.print_json(rows)
        return
    from pelacli.report import tables

    console.stdout().print(tables.rows_table(rows))


def print_decomposed(done: Decomposed | Replanned, json: bool) -> None:
    """The table per kind of layer and the whole; or the document of `decomposed`."""
    if json:
        console.print_json(decomposed(done))
        return
    record = done.manifest
    if done.walk is not None:
        print_walk(done.walk.metric, done.walk.curve)
    console.stdout().print(tables.to_table({record.source.model: record}, "kind"))
    before, after = record.params.before, record.params.after
    line = f"{record.source.model}: {before:,} → {after:,} parameters (ratio {after / before:.4f})"
    if record.flops is not None:
        flops = record.flops
        line += f", {tables.human(flops.before)} → {tables.human(flops.after)} FLOPs"
        line += f" (ratio {flops.after / flops.before:.4f})" if flops.before else ""
    if done.walk is not None:
        line += f", drop of {done.walk.metric} {done.walk.drop:.2f}"
    line += f", energy kept {done.plan.energy:.4f}, {done.seconds:.1f} s"
    console.stdout().print(line, highlight=False)
    console.stdout().print(
        "nothing written (--dry-run)" if done.path is None else f"written to {done.path}",
        highlight=False,
    )


def decomposed(done: Decomposed | Replanned) -> dict[str, Any]:
    """``decompose --json``; keys may be added, never renamed."""
    record = done.manifest
    flops = record.flops
    document = {
        "artefact": None if done.path is None else str(done.path),
        "model": record.source.model,
        "policy": record.policy,
        "scope": record.scope,
        "unit": record.unit,
        "requested": record.ratio,
        "calibrated": done.calibrated,
        "params": record.params.model_dump(),
        "flops": None if record.flops is None else record.flops.model_dump(),
        "ratio": record.params.after / record.params.before,
        "flops_ratio": flops.after / flops.before if flops and flops.before else None,
        "energy": done.plan.energy,
        "seconds": done.seconds,
        "layers": layers(record),
    }
    return document if done.walk is None else document | done.walk.document()


def print_walk(metric: str, curve: Sequence[dict[str, Any]]) -> None:
    """The curve that a quality budget walked, dense model first, then in the order of trying."""
    rows = [
        {
            "ratio": row["asked"] or "dense",
            "parameters": tables.human(row["params"]),
            "FLOPs": tables.human(row["flops"]),
            "energy kept": f"{100 * row['energy']:.4f}%",
            "damage": tables.human(row["damage"]),
            metric: f"{row['score']:.2f}",
            "drop": f"{row['drop']:.2f}",
            "seconds": f"{row['seconds']:.1f}",
            "accepted": "yes" if row["accepted"] else "no",
        }
        for row in curve
    ]
    console.stdout().print(tables.rows_table(rows))


def print_tried(error: DropError, json: bool) -> None:
    """What was tried for a quality budget that can't be met."""
    if json:
        console.print_json({"artefact": None, **error.tried})
    else:
        print_walk(error.tried["metric"], error.tried["curve"])


def layers(record: Manifest) -> list[dict[str, Any]]:
    """The list of layers of every JSON document."""
    keys = {"name", "kind", "shape", "rank", "reason", "energy", "params", "flops"}
    return [layer.model_dump(mode="json", include=keys) for layer in record.layers]


def print_trained(done: Outcome, json: bool) -> None:
    """``pretrain`` and ``finetune``."""
    if json:
        console.print_json(
            {
                "artefact": str(done.path),
                "steps": done.steps,
                "metrics": done.metrics,
                "seconds": done.seconds,
            }
        )
        return
    row = {
        "artefact": str(done.path),
        "steps": done.steps,
        **done.metrics,
        "seconds": round(done.seconds, 1),
    }
    console.stdout().print(tables.rows_table([row]))


def print_evaluated(results: Sequence[Evaluated], json: bool) -> None:
    """``eval``: models side by side, the dense one first; one model's document, or a list."""
    if json:
        documents = [evaluated(result) for result in results]
        console.print_json(documents[0] if len(documents) == 1 else documents)
        return
    columns: dict[str, dict[str, str]] = {}
    for result in results:
        base = result.baseline
        if base is not None:
            columns.setdefault(base["artefact"], _figures(base))
        columns[result.artefact] = _figures(vars(result), result)
    figures = dict.fromkeys(name for column in columns.values() for name in column)
    rows = [
        {"": name, **{model: column.get(name) for model, column in columns.items()}}
        for name in figures
    ]
    console.stdout().print(tables.rows_table(rows))


def evaluated(result: Evaluated) -> dict[str, Any]:
    """``eval --json``; keys may be added, never renamed."""
    document: dict[str, Any] = {
        "artefact": result.artefact,
        "params": result.params,
        "flops": result.flops,
        "metrics": result.metrics,
        "latency_ms": result.latency_ms,
    }
    if result.baseline is not None:
        document |= {
            "baseline": result.baseline,
            "drop": result.drop,
            "agreement": result.agreement,
        }
    return document


def print_run(done: Ran, json: bool) -> None:
    """``run``: the steps, and the models side by side."""
    result = done.evaluated
    if json:
        console.print_json(
            {"steps": done.steps, "eval": None if result is None else evaluated(result)}
        )
        return
    if result is None:
        console.stdout().print(tables.rows_table(done.steps))
        return
    for step in done.steps:
        state = "done already" if step["skipped"] else f"{step['seconds']:.1f} s"
        console.stdout().print(
            f"{step['step']:<10} {state:<14} {step['artefact']}", highlight=False
        )
    print_evaluated([result], json=False)


_AGREEMENT = {
    "cosine": "cosine to dense",
    "relative_error": "relative error to dense",
    "same_class": "same class as dense, %",
}


def _figures(figures: dict[str, Any], result: Evaluated | None = None) -> dict[str, str]:
    """A model's figures for people, by name."""
    found = {
        "parameters": tables.human(figures["params"]),
        "FLOPs": tables.human(figures["flops"]),
        **{name: f"{value:.4g}" for name, value in figures["metrics"].items()},
    }
    if figures["latency_ms"] is not None:
        found["latency, ms per batch"] = f"{figures['latency_ms']:.2f}"
    if result is not None and result.drop is not None:
        found[f"drop of {result.main}"] = f"{result.drop:.2f}"
    if result is not None:
        for name, value in (result.agreement or {}).items():
            found[_AGREEMENT.get(name, name)] = f"{value:.4g}"
    return found
