"""Print what the steps made: a table for people, one JSON document for scripts. No torch.

Keys of the documents may be added, never renamed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pelacli.manifest.evaluations import Timed
    from pelacli.measure.held_back import Distance
    from pelacli.planning.dry_run import DryRun
    from pelacli.steps.decompose import Decomposed
    from pelacli.steps.eval import Evaluated
    from pelacli.steps.export import Exported
    from pelacli.steps.importing import Imported
    from pelacli.steps.pipeline import Ran
    from pelacli.steps.training import Outcome
    from pelacli.steps.verify import Verified

from pelacli import console
from pelacli.cli import terminal
from pelacli.errors import DropError
from pelacli.manifest.document import Manifest
from pelacli.report import costs, tables
from pelacli.report.subject import megabytes
from pelacli.report.tables import Row, Style, human
from pelacli.steps import step_figures

_LINE = 78  # characters that a line may have, for terminals of 80 columns


def print_decomposed(result: Decomposed | DryRun, json: bool) -> None:
    """``decompose``: the table per kind of layer, and the whole in a line."""
    if json:
        console.print_json(decomposed_document(result))
        return
    manifest = result.manifest
    if result.search is not None:
        print_curve(result.search.metric, result.search.curve)
    rows = costs.human_rows({manifest.source.model: manifest}, "kind")
    terminal.print_table(rows, costs.DISPENSABLE)
    terminal.print_text(_summary(result))
    seconds = f"{result.seconds:.1f} s"
    terminal.print_text(
        f"nothing written (--dry-run), {seconds}"
        if result.path is None
        else f"written to {result.path}, {seconds}"
    )


def _summary(result: Decomposed | DryRun) -> str:
    """The whole in a few lines, none of which a terminal of 80 columns must break."""
    manifest = result.manifest
    before, after = manifest.params.before, manifest.params.after
    lines = [f"{before:,} → {after:,} parameters (ratio {after / before:.4f})"]
    if len(manifest.source.model) + len(lines[0]) < _LINE:
        lines[0] = f"{manifest.source.model}: {lines[0]}"
    else:
        lines.insert(0, f"{manifest.source.model}:")
    facts = []
    if manifest.flops is not None:
        flops = manifest.flops
        text = f"{human(flops.before)} → {human(flops.after)} FLOPs"
        facts.append(text + (f" (ratio {flops.after / flops.before:.4f})" if flops.before else ""))
    if result.plan.energy is not None:
        facts.append(f"energy kept {100 * result.plan.energy:.2f}%")
    if facts:
        lines.append(", ".join(facts))
    if result.search is not None:
        lines.append(f"drop of {result.search.metric} {result.search.drop:.2f}")
    distance = None if result.fit is None else result.fit.distance
    if distance is not None:
        lines.append(_held_back(distance))
    return "\n".join(lines)


def _held_back(distance: Distance) -> str:
    line = f"on {distance.samples} held-back samples: relative error {distance.relative_error:.3g}"
    if distance.kl is not None:
        line += f", divergence {distance.kl:.3g} nats a token"
    if distance.perplexity is not None:
        line += f", perplexity {distance.perplexity:.2f} (dense {distance.dense_perplexity:.2f})"
    return line


def decomposed_document(result: Decomposed | DryRun) -> dict[str, Any]:
    """The document of ``decompose --json``."""
    manifest = result.manifest
    flops = manifest.flops
    document = {
        "artefact": None if result.path is None else str(result.path),
        "model": manifest.source.model,
        "policy": manifest.policy,
        "scope": manifest.scope,
        "unit": manifest.unit,
        "requested": manifest.ratio,
        "calibrated": result.about.calibrated,
        "samples": result.about.samples,
        "tokens": result.about.sample_tokens,
        "sensitivity": result.about.sensitivity,
        "params": manifest.params.model_dump(),
        "flops": None if flops is None else flops.model_dump(),
        "ratio": manifest.params.after / manifest.params.before,
        "flops_ratio": flops.after / flops.before if flops and flops.before else None,
        "energy": result.plan.energy,
        "seconds": result.seconds,
        "layers": _layer_documents(manifest),
    }
    if result.fit is not None:
        document |= result.fit.document()
    if result.latency is not None:
        document["latency_ms"] = result.latency.document()
    return document if result.search is None else document | result.search.document()


def _layer_documents(manifest: Manifest) -> list[dict[str, Any]]:
    return [layer.model_dump(mode="json") for layer in manifest.layers]


def print_curve(metric: str, curve: Sequence[dict[str, Any]]) -> None:
    """The ratios that a quality budget tried: the dense model, then in the order of trying."""
    rows = [
        {
            "ratio": row["asked"] or "dense",
            "parameters": human(row["params"]),
            "FLOPs": human(row["flops"]),
            "energy kept": f"{100 * row['energy']:.4f}%",
            "damage": human(row["damage"]),
            metric: f"{row['score']:.2f}",
            "drop": f"{row['drop']:.2f}",
            "seconds": f"{row['seconds']:.1f}",
            "accepted": "yes" if row["accepted"] else "no",
        }
        for row in curve
    ]
    terminal.print_table(rows)


def print_tried(error: DropError, json: bool) -> None:
    """``decompose``: what was tried for a quality budget that can't be met."""
    if json:
        console.print_json({"artefact": None, **error.tried})
    else:
        print_curve(error.tried["metric"], error.tried["curve"])


def print_trained(result: Outcome, json: bool) -> None:
    """``pretrain`` and ``finetune``."""
    head = {"artefact": str(result.path), "steps": result.steps}
    if json:
        gain = result.gain.document() if result.gain else {}
        console.print_json(head | {"metrics": result.metrics, "seconds": result.seconds} | gain)
    else:
        terminal.print_table([{**head, **result.metrics, "seconds": round(result.seconds, 1)}])


def print_evaluated(results: Sequence[Evaluated], style: Style) -> None:
    """``eval``: models side by side, each after its baseline; as JSON a list, also of one."""
    if style == "json":
        console.print_json([evaluated_document(result) for result in results])
    elif style == "csv":
        terminal.print_text(tables.to_csv(_evaluated_rows(results)), end="")
    elif style == "markdown":
        terminal.print_text(tables.to_markdown(_side_by_side(results)))
    else:
        terminal.print_table(_side_by_side(results))


def _evaluated_rows(results: Sequence[Evaluated]) -> list[Row]:
    """A row per model with exact figures, each after its baseline, for CSV."""
    rows: dict[str, Row] = {}
    for result in results:
        if result.baseline is not None:
            rows.setdefault(result.baseline["artefact"], _exact_row(result.baseline))
        own = _exact_row(vars(result))
        if result.baseline is not None:
            own |= {"baseline": result.baseline["artefact"], "drop": result.drop}
            own |= result.agreement or {}
        rows[result.artefact] = own
    return list(rows.values())


def _exact_row(figures: Mapping[str, Any]) -> Row:
    sizes = {"model" if k == "artefact" else k: figures[k]
             for k in ("artefact", "params", "bytes", "flops")}  # fmt: skip
    return {**sizes, **figures["metrics"], "latency_ms": figures["latency_ms"]}


def _side_by_side(results: Sequence[Evaluated]) -> list[Row]:
    """A row per figure, a column per model."""
    models: dict[str, dict[str, str]] = {}  # model → figure → value
    for result in results:
        if result.baseline is not None:
            dense = _sizes_and_metrics(result.baseline, result.timed)
            models.setdefault(result.baseline["artefact"], {}).update(dense)
        own = _sizes_and_metrics(vars(result), result.timed)
        models[result.artefact] = own | _comparison(result)
    names = dict.fromkeys(name for figures in models.values() for name in figures)
    return [
        {"": name, **{model: figures.get(name) for model, figures in models.items()}}
        for name in names
    ]


def evaluated_document(result: Evaluated) -> dict[str, Any]:
    """An entry of ``eval --json``, and the evaluation in ``run --json``."""
    keys = ["artefact", "params", "bytes", "flops", "metrics", "latency_ms"]
    if result.baseline is not None:
        keys += ["baseline", "drop", "drop_of", "agreement"]
    timed = None if result.timed is None else result.timed.model_dump()
    return {**{key: getattr(result, key) for key in keys}, "timed": timed}


def print_run(result: Ran, json: bool) -> None:
    """``run``: the steps, and the models side by side."""
    evaluated = result.evaluated
    if json:
        document = None if evaluated is None else evaluated_document(evaluated)
        steps = [step.document() for step in result.steps]
        console.print_json({"steps": steps, "eval": document})
        return
    for step in result.steps:
        state = "done already" if step.skipped else f"{step.seconds:.1f} s"
        terminal.print_text(f"{step.step:<10} {state:<14} {step.artefact}")
        if measured := step_figures.line(step.record):
            terminal.print_text(f"{'':<10} {measured}")
    if evaluated is not None:
        print_evaluated([evaluated], "table")


# Names of the figures of agreement, for people.
_AGREEMENT = {
    "cosine": "cosine to dense",
    "relative_error": "relative error to dense",
    "same_class": "same class as dense, %",
}


def _sizes_and_metrics(figures: Mapping[str, Any], timed: Timed | None) -> dict[str, str]:
    """A model's own figures for people, by name.

    Args:
        timed: what its latency holds for.
    """
    shown = {"size": megabytes(figures["bytes"]), "parameters": human(figures["params"])}
    shown |= {"FLOPs": human(figures["flops"])}
    shown |= {name: f"{value:.4g}" for name, value in figures["metrics"].items()}
    if figures["latency_ms"] is not None:
        of = "" if timed is None else f" of {timed.batch_size}"
        shown[f"latency, ms per batch{of}"] = f"{figures['latency_ms']:.2f}"
    return shown


def _comparison(result: Evaluated) -> dict[str, str]:
    """How a model compares with its baseline, by name."""
    shown = {} if result.drop is None else {f"drop of {result.drop_of}": f"{result.drop:.2f}"}
    agreement = result.agreement or {}
    return shown | {_AGREEMENT.get(name, name): f"{agreement[name]:.4g}" for name in agreement}


def print_verified(results: Sequence[Verified], json: bool) -> None:
    """``verify``: a line for each artefact, and below it one for each file that is not as it was
    written."""
    if json:
        console.print_json([_verified_document(result) for result in results])
        return
    for result in results:
        state = "damaged"
        if result.whole:
            state = f"whole, {result.files} files" if result.recorded else "no damage to be seen"
        terminal.print_text(f"{result.artefact}: {state}")
        if result.digest is not None:
            terminal.print_text(f"  digest {result.digest}")
        for damage in result.damages:
            terminal.print_text(f"  {damage.file}: {damage.what}")
        for note in result.notes:
            terminal.print_text(f"  note: {note}")


def _verified_document(result: Verified) -> dict[str, Any]:
    keys = ("artefact", "whole", "recorded", "files", "weights", "digest", "notes")
    damages = [{"file": damage.file, "what": damage.what} for damage in result.damages]
    return {key: getattr(result, key) for key in keys} | {"damages": damages}


def print_exported(result: Exported, json: bool) -> None:
    """``export``: what was written, and how far it is from the artefact."""
    if json:
        console.print_json(result.document())
        return
    shapes = "; ".join(
        ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in batch["inputs"].items())
        for batch in result.batches
    )
    terminal.print_text(
        f"largest relative difference {result.difference:.1e} (at most {result.bound:.1e}) on "
        f"{shapes}"
    )
    terminal.print_text(
        f"written to {result.path}: {result.to}, {result.precision}, {human(result.size)}B, "
        f"{result.seconds:.1f} s"
    )


def print_imported(result: Imported, json: bool) -> None:
    """``import``: the table per kind of layer."""
    manifest = result.manifest
    if json:
        document = {
            "artefact": str(result.path),
            "checkpoint": str(result.checkpoint),
            "model": manifest.source.model,
            "params": manifest.params.model_dump(),
            "layers": _layer_documents(manifest),
        }
        console.print_json(document)
        return
    terminal.print_table(costs.human_rows({manifest.source.model: manifest}, "kind"))
    terminal.print_text(f"written to {result.path}")
