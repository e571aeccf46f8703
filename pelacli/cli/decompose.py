"""``pela decompose``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pelacli.cli.options import Json, Output, Set


def decompose(
    model: Annotated[
        str,
        typer.Argument(
            help="timm name or alias, hub id, local directory, safetensors file (with --arch), "
            "artefact, or a recipe (.toml). With --dry-run also stored spectra."
        ),
    ],
    ratio: Annotated[
        str | None,
        typer.Option(help="Parameters after / before, a decimal or a fraction: 0.5, 2/3."),
    ] = None,
    unit: Annotated[
        str | None, typer.Option(help="What the ratio counts: params or flops (of one sample).")
    ] = None,
    scope: Annotated[
        str | None, typer.Option(help="Whose it counts: model, or layers (the paper's 1/c).")
    ] = None,
    energy: Annotated[
        float | None,
        typer.Option(help="Instead: as small as keeps this share of all layers' energy together."),
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option(
            help="Instead: as small as loses at most so many points of the main metric, untrained, "
            "on --data. Without labels: of the agreement with the dense model, in percent of "
            "samples of the same class, or 100 × cosine where there are no classes. Exit 3 if "
            "no factorised model is good enough."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option(help="Dataset that --max-drop measures on.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data.")] = None,
    task: Annotated[
        str | None, typer.Option(help="Task of --max-drop: unlabelled for data without labels.")
    ] = None,
    policy: Annotated[
        str | None, typer.Option(help="energy (global), uniform (the paper's), threshold.")
    ] = None,
    threshold: Annotated[
        float | None, typer.Option(help="Share of energy each layer keeps (policy threshold).")
    ] = None,
    calibrate: Annotated[
        str | None,
        typer.Option(help="Unlabelled samples: image folder, text file, dataset, or 'train'."),
    ] = None,
    samples: Annotated[int | None, typer.Option(help="How many samples to calibrate on.")] = None,
    correct: Annotated[
        bool | None,
        typer.Option("--correct/--no-correct", help="Sequential correction on the samples."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(help="Only layers whose name matches (regular expression).")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Not layers whose name matches (regular expression).")
    ] = None,
    pin: Annotated[
        list[str] | None,
        typer.Option(metavar="REGEX=RANK", help="Fix ranks: a number, 'dense' or 'full'."),
    ] = None,
    min_rank: Annotated[int | None, typer.Option(help="Smallest rank.")] = None,
    max_rank: Annotated[int | None, typer.Option(help="Largest rank.")] = None,
    multiple: Annotated[
        int | None,
        typer.Option(
            help="Ranks are multiples of this. Unset: 8 in large layers under policy energy."
        ),
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Use the ranks of this plan (JSON), edited by hand or not.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan, make no artefact.")
    ] = False,
    spectra: Annotated[
        Path | None,
        typer.Option(help="Also write the spectra to this file, to plan from without the model."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="pretrained, random, or the path of a safetensors file.")
    ] = None,
    arch: Annotated[
        str | None, typer.Option(help="Architecture of a bare safetensors file.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of sampling and of random weights.")
    ] = None,
    output: Output = None,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Factorise a model into a smaller one that loads where the old one loaded."""
    from pelacli.cli import output as cli_output
    from pelacli.cli import requests
    from pelacli.errors import DropError
    from pelacli.planning import dry_run as planning_dry_run
    from pelacli.system import processes

    processes.refuse_launched("decompose")
    top: dict[str, Any] = {"weights": weights, "arch": arch, "seed": seed}
    section = {
        "ratio": ratio,
        "unit": unit,
        "scope": scope,
        "energy": energy,
        "max_drop": max_drop,
        "data": data and {"dataset": data},
        "split": split,
        "task": task,
        "policy": policy,
        "threshold": threshold,
        "calibrate": calibrate,
        "samples": samples,
        "correct": correct,
        "include": include,
        "exclude": exclude,
        "pin": requests.pins(pin),
        "min_rank": min_rank,
        "max_rank": max_rank,
        "multiple": multiple,
        "plan": plan,
    }
    if stored := planning_dry_run.spectra_file(model, dry_run):
        top["spectra"] = spectra
        cli_output.print_decomposed(planning_dry_run.run(stored, top, section, set_ or []), json)
        return
    step = requests.decompose(model, top, section, set_ or [], output)
    from pelacli.steps import decompose as steps_decompose

    try:
        result = steps_decompose.run(step, dry_run=dry_run, spectra_file=spectra)
    except DropError as error:
        cli_output.print_tried(error, json)
        raise
    cli_output.print_decomposed(result, json)
