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
        str | None, typer.Option(help="The model to compare with, usually the dense one.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(help="The most points of the main metric that may be lost against --against."),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data", help="The dataset; by default the one that the artefact was made with."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="The split of the dataset; by default its validation split.")
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="The task to judge by; by default the one that the artefact was made for."
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Samples per batch.")] = None,
    latency: Annotated[
        bool | None,
        typer.Option("--latency/--no-latency", help="Time a forward pass (the default), or don't."),
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
    """Measure models on data: the task's figures, agreement with the dense model, latency.

    With --max-drop it is a gate for scripts: exit code 3 if a model has lost too much.
    """
    from pelacli.cli import next_steps, reports, requests
    from pelacli.cli import output as cli_output

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
    next_steps.after_measuring([result.artefact for result in results])
    steps_eval.gate(results)


def report(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARTEFACT…", help="Artefacts or models; default: all in runs/."),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(help="A row for each kind of layer (the default), layer, or whole."),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            help="What other ratios would give, planned without the model: 0.9..0.3, 0.9..0.3:7 "
            "(seven of them) or a list. The table says in which unit it predicts the damage."
        ),
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="For --sweep: what the ratios are of, model or layers.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="For --sweep: how ranks are chosen, energy or uniform.")
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="For --sweep: what the ratios count, params or flops.")
    ] = None,
    form: Annotated[
        str | None,
        typer.Option(help="For --sweep: how layers are stored, auto, factors or pivots."),
    ] = None,
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Show only the curves of training, also of runs that go on."),
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Time each model in turns with its dense original, here and now."
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(help="For --latency: auto (a GPU where there is one), cpu or cuda."),
    ] = None,
    batch_size: Annotated[
        str | None, typer.Option(help="For --latency: one or several, by default 1,8,32.")
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="For --latency: fp32, bf16 or fp16; by default as it is stored."),
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="For --latency: compiled by torch.compile.")
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
    """Compare models: size, FLOPs, quality, latency, and the rank of each layer.

    It reads what is recorded in artefacts; plain models are built and counted.
    """
    from pelacli.cli import reports, requests, terminal, unused
    from pelacli.errors import RequestError
    from pelacli.steps import page
    from pelacli.steps import report as steps_report

    style = reports.style_of(format_, json=json)
    of_sweep = {"scope": scope, "policy": policy, "unit": unit, "form": form}
    if sweep is None:
        unused.refuse_without_sweep(of_sweep)
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
        typer.Argument(
            metavar="ARTEFACT…", help="Artefacts, directories of artefacts, or ids of the hub."
        ),
    ],
    json: Json = False,
) -> None:
    """Compare artefacts with what was written, file by file; exit 1 if one is damaged."""
    from pelacli.cli import output as cli_output
    from pelacli.steps import verify as steps_verify

    results = steps_verify.run(artefacts)
    cli_output.print_verified(results, json)
    steps_verify.refuse_damaged(results)
