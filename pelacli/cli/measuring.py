"""``pela eval``, ``pela report`` and ``pela verify``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from pelacli.cli import completion
from pelacli.cli.options import Format, Json, Set

EVAL_EXAMPLES = (
    "pela eval runs/small --against vit_base --data my/dataset",
    "pela eval runs/small --against vit_base --data my/images --task unlabelled",
    "pela eval runs/small --against vit_base --data my/dataset --max-drop 0.6",
)
REPORT_EXAMPLES = (
    "pela report",
    "pela report runs/small --by layer",
    "pela report runs/small --sweep 0.9..0.3",
    "pela report runs/small --latency",
    "pela report --html report.html",
)
VERIFY_EXAMPLES = ("pela verify runs/small", "pela verify runs --json")

_sweep = partial(typer.Option, rich_help_panel="For --sweep")
_timing = partial(typer.Option, rich_help_panel="For --latency")
_Arch = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="The architecture, if a model is a bare safetensors file."),
]


def evaluate(
    artefacts: Annotated[
        list[str],
        typer.Argument(metavar="MODEL", help="Artefacts, other models, or one recipe (.toml)."),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The model to compare with, usually the dense one."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            metavar="POINTS",
            help="Exit code 3 if a model loses more points than this against --against: of the "
            "main metric, or without labels of the agreement of both, which is the percentage of "
            "samples that both put in the same class, or 100 × the cosine of their outputs.",
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATASET",
            help="The data to measure on. By default what the artefact was made with.",
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option(metavar="SPLIT", help="The split of the data. By default validation."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="The task to judge by. By default the one that the artefact was made for, or that "
            "the model's output is for. unlabelled needs no labels.",
        ),
    ] = None,
    batch_size: Annotated[int | None, typer.Option(metavar="N", help="Samples per batch.")] = None,
    latency: Annotated[
        bool | None,
        typer.Option(
            "--latency/--no-latency",
            help="Time a forward pass too (the default), or leave that out.",
        ),
    ] = None,
    format_: Format = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Weights of models that are no artefacts: pretrained (the default), random, or a "
            "safetensors file.",
        ),
    ] = None,
    arch: _Arch = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Measure how good models are on your data, and how far from the dense model.

    With --max-drop a script can go by the exit code: 3 if a model has lost too much.
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
    from pelacli.steps import gate

    results = [steps_eval.run(evaluation) for evaluation in evaluations]
    cli_output.print_evaluated(results, style)
    next_steps.after_measuring([result.artefact for result in results])
    gate.check(results)


def report(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MODEL", help="Artefacts or other models. By default all artefacts in runs/."
        ),
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="ROWS",
            autocompletion=completion.one_of("kind", "layer", "whole"),
            help="One row for each kind of layer (kind, the default), each layer (layer) or each "
            "model (whole).",
        ),
    ] = None,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="RATIOS",
            help="What other ratios would give, planned without the model: 0.9..0.3, 0.9..0.3:7 "
            "(seven of them) or 0.9,0.7,0.5. The table says in which unit it predicts the damage.",
        ),
    ] = None,
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Only the curves of training, also while it still trains."),
    ] = False,
    latency: Annotated[
        bool,
        typer.Option(
            "--latency", help="Time each model here and now, in turns with its dense original."
        ),
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
    arch: _Arch = None,
    scope: Annotated[
        str | None,
        _sweep(
            metavar="SCOPE",
            autocompletion=completion.scopes,
            help="What the ratios are of: model or layers.",
        ),
    ] = None,
    policy: Annotated[
        str | None,
        _sweep(
            metavar="POLICY",
            autocompletion=completion.policies_by_ratio,
            help="How ranks are chosen: energy or uniform.",
        ),
    ] = None,
    unit: Annotated[
        str | None,
        _sweep(
            metavar="UNIT",
            autocompletion=completion.one_of("params", "flops"),
            help="What the ratios count: params or flops.",
        ),
    ] = None,
    form: Annotated[
        str | None,
        _sweep(
            metavar="FORM",
            autocompletion=completion.forms,
            help="How low-rank layers are stored: auto, factors or pivots.",
        ),
    ] = None,
    device: Annotated[
        str | None,
        _timing(
            metavar="DEVICE",
            autocompletion=completion.devices,
            help="auto (a GPU if there is one; the default), cpu or cuda.",
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        _timing(metavar="N,…", help="One size or several, 1,8,32 by default."),
    ] = None,
    precision: Annotated[
        str | None,
        _timing(
            metavar="PRECISION",
            autocompletion=completion.precisions,
            help="fp32, bf16 or fp16. By default as the weights are stored.",
        ),
    ] = None,
    compile: Annotated[
        bool, _timing("--compile", help="Time models compiled by torch.compile.")
    ] = False,
    json: Json = False,
) -> None:
    """Show what was done to models, and compare them: size, FLOPs, quality, ranks.

    It reads what artefacts have recorded. Other models are built and counted.
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
        typer.Argument(metavar="ARTEFACT", help="Artefacts, directories of artefacts, or hub ids."),
    ],
    json: Json = False,
) -> None:
    """Check that artefacts are as they were written, file by file.

    Exit code 1 if one is damaged.
    """
    from pelacli.cli import output as cli_output
    from pelacli.steps import verify as steps_verify

    results = steps_verify.run(artefacts)
    cli_output.print_verified(results, json)
    steps_verify.refuse_damaged(results)
