"""The command line: parse, call one step, print. Imports nothing heavy until a command runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from pelacli.cli.options import Format, Json, Output, RecipeFile, Set, command

app = typer.Typer(
    name="pela",
    help="Make pretrained Transformers smaller and keep them as good.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
recipes_app = typer.Typer(
    help="List, show, copy and check recipes; print their schema.", no_args_is_help=True
)
app.add_typer(recipes_app, name="recipes")


def _version(value: bool) -> None:
    if value:
        from pelacli.version import __version__

        typer.echo(f"pela {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@command(app, "decompose")
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
    from pelacli.planning import replan
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
    if stored := replan.source(model, dry_run):
        top["spectra"] = spectra
        cli_output.print_decomposed(replan.run(stored, top, section, set_ or []), json)
        return
    step = requests.decompose(model, top, section, set_ or [], output)
    from pelacli.steps import decompose as steps_decompose

    try:
        done = steps_decompose.run(step, dry_run=dry_run, side=spectra)
    except DropError as error:
        cli_output.print_tried(error, json)
        raise
    cli_output.print_decomposed(done, json)


@command(app, "pretrain")
def pretrain(
    recipe: RecipeFile,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Heal a low-rank model under the frozen original."""
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    step = step_of(reading.load(recipe, set_ or []), "pretrain")
    from pelacli.steps import pretrain as steps_pretrain

    cli_output.print_trained(steps_pretrain.run(step, resume=resume), json)


@command(app, "finetune")
def finetune(
    recipe: RecipeFile,
    dense: Annotated[
        bool, typer.Option("--dense", help="Train the recipe's dense model, its [teacher] section.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the last checkpoint.")
    ] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Train a model on a task; with --dense, the dense model that a recipe asks for."""
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.recipe.step import step_of
    from pelacli.system import malloc

    malloc.large_pages()
    step = step_of(reading.load(recipe, set_ or []), "teacher" if dense else "finetune")
    from pelacli.steps import finetune as steps_finetune

    cli_output.print_trained(steps_finetune.run(step, resume=resume), json)


@command(app, "eval")
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
    from pelacli.cli import requests

    given = {
        "against": against,
        "max_drop": max_drop,
        "split": split,
        "task": task,
        "batch_size": batch_size,
        "latency": latency,
    }
    jobs = requests.evaluations(
        artefacts, given, dataset, {"weights": weights, "arch": arch}, set_ or []
    )
    from pelacli.steps import eval as steps_eval

    evaluated = [steps_eval.run(**job) for job in jobs]
    cli_output.print_evaluated(evaluated, json)
    steps_eval.gate(evaluated)


@command(app, "report")
def report(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="ARTEFACT…", help="Artefacts or models; default: all in runs/."),
    ] = None,
    by: Annotated[str, typer.Option(help="Rows: layer, kind or whole.")] = "kind",
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
    curves: Annotated[
        bool,
        typer.Option("--curves", help="Only the curves of training, of runs going on too."),
    ] = False,
    format_: Format = "table",
    arch: Annotated[
        str | None, typer.Option(help="Architecture of a bare safetensors file.")
    ] = None,
    json: Json = False,
) -> None:
    """Parameters, FLOPs, ranks, kept energy and curves of artefacts and plain models."""
    from pelacli.errors import RequestError
    from pelacli.steps import report as steps_report

    style = "json" if json else format_
    shared = {"scope": scope, "policy": policy, "unit": unit}
    if sweep is None:
        steps_report.needs_sweep(shared)
    if sweep is None and curves:
        steps_report.run_curves(models or [], style=style)
    elif sweep is None:
        steps_report.run(models or [], by=by, style=style, arch=arch)
    elif curves:
        raise RequestError("--sweep and --curves are two reports; give one")
    else:
        steps_report.run_sweep(models or [], sweep, shared, style=style)


@command(app, "run")
def run(
    recipe: RecipeFile,
    force: Annotated[bool, typer.Option("--force", help="Do every step again.")] = False,
    set_: Set = None,
    json: Json = False,
) -> None:
    """Run the steps of a recipe in order, skipping those that are done."""
    from pelacli.cli import output as cli_output
    from pelacli.recipe import reading
    from pelacli.steps import pipeline
    from pelacli.system import malloc

    malloc.large_pages()
    done = pipeline.run(reading.load(recipe, set_ or []), force=force)
    cli_output.print_run(done, json)
    pipeline.gate(done)


@command(recipes_app, "list")
def recipes_list(json: Json = False) -> None:
    """The recipes that come with pela."""
    from pelacli.cli import output as cli_output

    cli_output.print_recipes(json)


@command(recipes_app, "show")
def recipes_show(name: Annotated[str, typer.Argument(help="Name of a recipe.")]) -> None:
    """Print a recipe."""
    from pelacli.recipe import gallery

    typer.echo(gallery.read(name), nl=False)


@command(recipes_app, "copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="Name of a recipe.")],
    target: Annotated[Path, typer.Argument(help="File to write; must not exist.")] = Path("."),
) -> None:
    """Copy a recipe to edit it."""
    from pelacli.recipe import gallery

    typer.echo(gallery.copy(name, target))


@command(recipes_app, "check")
def recipes_check(recipe: RecipeFile, set_: Set = None, json: Json = False) -> None:
    """Validate a recipe and print it as resolved."""
    from pelacli import console
    from pelacli.recipe import reading, schema

    resolved = schema.resolved(reading.load(recipe, set_ or []))
    if json:
        console.print_json(resolved)
    else:
        typer.echo(f"{recipe}: ok")


@command(recipes_app, "schema")
def recipes_schema() -> None:
    """Print the JSON schema of recipes."""
    from pelacli import console
    from pelacli.recipe import schema

    console.print_json(schema.json_schema())


__all__: Sequence[str] = ["app"]
