"""``pela eval``, ``pela report`` and ``pela verify``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli.options import Format, Json, Set


def evaluate(
    artefacts: Annotated[
        list[str], typer.Argument(metavar="ARTEFACT…", help="Artefacts, models, or one recipe.")
    ],
    against: Annotated[
        str | None, typer.Option(help="Dense model or artefact to compare with.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="Fail (exit 3) if the main metric drops by more points than this."),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option("--data", help="Dataset; by default the artefact's own.")
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of the dataset.")] = None,
    task: Annotated[str | None, typer.Option(help="Task; by default the artefact's own.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per batch.")] = None,
    latency: Annotated[
        bool | None, typer.Option("--latency/--no-latency", help="Time the forward pass.")
    ] = None,
    format_: Format = None,
    weights: Annotated[
        str | None, typer.Option(help="Weights of plain models: pretrained, random or a path.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Architecture of a bare safetensors file.")
    ] = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure models: metrics, agreement with the dense one, latency; as a gate with --max-drop."""
    from pelacli.cli import output as cli_output
    from pelacli.cli import reports, requests

    style = reports.style_of(format_, json=json)
    flags = requests.EvalFlags(
        against=against,
        max_drop=max_drop,
        data=dataset,
        split=split,
        task=task,
        batch_size=batch_size,
        latency=latency,
        weights=weights,
        arch=arch,
    )
    evaluations = requests.evaluations(artefacts, flags, set_ or [])
    from pelacli.steps import eval as steps_eval

    results = [steps_eval.run(evaluation) for evaluation in evaluations]
    cli_output.print_evaluated(results, style)
    steps_eval.gate(results)


def report(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARTEFACT…", help="Artefacts or models; default: all in runs/."),
    ] = None,
    by: Annotated[
        str | None, typer.Option(help="Rows: layer, kind (the default) or whole.")
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="What other ratios would give, from stored spectra: 0.9..0.3, 0.9..0.3:7, or a "
            "list. Damage is the energy lost: after calibration the change of the standardised "
            "output, squared, per sample; else the squared error of the weights."
        ),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="Of the sweep's ratios: model or layers.")
    ] = None,
    policy: Annotated[str | None, typer.Option(help="Of the sweep: energy or uniform.")] = None,
    unit: Annotated[
        str | None, typer.Option(help="Of the sweep's ratios: params or flops.")
    ] = None,
    form: Annotated[
        str | None, typer.Option(help="Of the sweep's layers: auto, factors or pivots.")
    ] = None,
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Only the curves of training, of runs going on too."),
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Time each beside its dense original; JSON holds the costs too."
        ),
    ] = False,
    device: Annotated[
        str | None, typer.Option(help="Of --latency: auto (a GPU where there is one), cpu or cuda.")
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="Of --latency: one or several, by default 1,8,32.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of --latency: fp32, bf16 or fp16; by default as it is stored."),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="Of --latency: with torch.compile.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            "--html",
            metavar="FILE",
            help="Also write one HTML page with tables and plots, to open in a browser or send.",
        ),
    ] = None,
    format_: Format = None,
    arch: Annotated[
        str | None, typer.Option(help="Architecture of a bare safetensors file.")
    ] = None,
    json: Json = False,
) -> None:
    """Parameters, FLOPs, ranks, kept energy, curves and latency of artefacts and plain models."""
    from pelacli.cli import reports, requests, terminal, unused
    from pelacli.errors import RequestError
    from pelacli.steps import page
    from pelacli.steps import report as steps_report

    style = reports.style_of(format_, json=json)
    of_sweep = {"scope": scope, "policy": policy, "unit": unit, "form": form}
    if sweep is None:
        requests.refuse_without_sweep(of_sweep)
    kinds = {"--sweep": sweep is not None, "--curves": curves, "--latency": latency}
    asked = [name for name, given in kinds.items() if given]
    if len(asked) > 1:
        raise RequestError(f"{asked[0]} and {asked[1]} are two reports; give one")
    if html is not None:
        if curves:
            raise RequestError("--html holds the curves too; leave --curves out")
        page.check_target(html)
    kind = asked[0] if asked else None
    timing = requests.timing(
        latency, device=device, batch_sizes=batch_size, precision=precision, compile=compile
    )
    unused.refuse_in_report(models or [], kind, by, style, arch)
    level = reports.level_of(by or "kind")
    result = None
    if html is not None or not (sweep or curves):
        result = steps_report.run(models or [], arch=arch, timing=timing)
    if html is not None and result is not None:  # before who reads the tables may have gone
        page.write(result, html, sweep, of_sweep)
    if sweep is not None:
        reports.print_sweeps(steps_report.run_sweep(models or [], sweep, of_sweep), style)
    elif curves:
        reports.print_curves(steps_report.run_curves(models or []), style)
    elif result is not None and timing is not None:
        reports.print_speeds(result, style)
    elif result is not None:
        reports.print_report(result, level, style, with_curves=bool(models))
    if html is not None and style == "table":
        terminal.print_text(f"written to {html}")


def verify(
    artefacts: Annotated[
        list[str],
        typer.Argument(metavar="ARTEFACT…", help="Artefacts, or directories of artefacts."),
    ],
    json: Json = False,
) -> None:
    """Compare artefacts with what was written, file by file; exit 1 if one is damaged."""
    from pelacli.cli import output as cli_output
    from pelacli.steps import verify as steps_verify

    results = steps_verify.run(artefacts)
    cli_output.print_verified(results, json)
    steps_verify.refuse_damaged(results)
