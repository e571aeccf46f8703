"""The options of ``pela decompose``, each with its type, its group and its line of help."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from pelacli.cli import completion
from pelacli.cli.options import SET_HELP


def _group(title: str) -> Callable[..., Any]:
    """What makes an option of the group with this title."""
    return partial(typer.Option, rich_help_panel=title)


_size = _group("How small")
_quality = _group("For --max-drop")
_timing = _group("For --unit latency")
_sampling = _group("Calibration")
_ranking = _group("Which layers, which ranks")
_model = _group("Model")
_result = _group("Result")

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A timm name, a short name such as vit_base, a hub id, a local directory, a "
        "safetensors file (with --arch), an artefact, or a recipe (.toml).",
    ),
]
Ratio = Annotated[
    str | None,
    _size(
        metavar="RATIO",
        help="Parameters after / parameters before: 0.5 and 2/3 are both fine.",
    ),
]
Energy = Annotated[
    float | None,
    _size(
        metavar="SHARE",
        help="Instead of --ratio: make the smallest model that keeps this share, 0 to 1, of all "
        "layers' energy (the sum of their squared singular values).",
    ),
]
MaxDrop = Annotated[
    float | None,
    _size(
        metavar="POINTS",
        help="Instead of --ratio: make the smallest model that loses at most this many points on "
        "--data, without training. With labels, points of the task's main metric. Without, "
        "points of agreement with the dense model: the percentage of samples that both put in the "
        "same class, or 100 × the cosine of their outputs. Exit code 3 if no model is good enough.",
    ),
]
Scope = Annotated[
    str | None,
    _size(
        metavar="SCOPE",
        autocompletion=completion.scopes,
        help="What the ratio is of: model (all of it, the default) or layers (only those that are "
        "factorised; the paper's 1/c).",
    ),
]
Unit = Annotated[
    str | None,
    _size(
        metavar="UNIT",
        autocompletion=completion.units,
        help="What the ratio counts: params (the default), flops (of one sample) or latency (the "
        "time of a forward pass on --device).",
    ),
]
Data = Annotated[
    str | None, _quality(metavar="DATASET", help="The dataset to measure the loss on.")
]
Split = Annotated[str | None, _quality(metavar="SPLIT", help="The split of --data.")]
Task = Annotated[
    str | None,
    _quality(metavar="TASK", help="The task to judge by. unlabelled needs no labels."),
]
BatchSize = Annotated[
    int | None, _timing(metavar="N", help="Samples in a forward pass, 8 by default.")
]
Precision = Annotated[
    str | None,
    _timing(
        metavar="PRECISION",
        autocompletion=completion.precisions,
        help="fp32, bf16 or fp16. By default as the weights are stored.",
    ),
]
Compile = Annotated[
    bool | None, _timing("--compile", help="Time the model compiled by torch.compile.")
]
Calibrate = Annotated[
    str | None,
    _sampling(
        metavar="DATASET",
        help="Samples, without labels, to choose ranks and weights by. A few hundred make the "
        "result far better. A folder of images, a text file, a dataset, or train (the recipe's "
        "own training data).",
    ),
]
Samples = Annotated[int | None, _sampling(metavar="N", help="How many samples, 256 by default.")]
Correct = Annotated[
    bool | None,
    _sampling(
        "--correct/--no-correct",
        help="Fit each layer again to the inputs that the smaller model gives it (the default).",
    ),
]
Blockwise = Annotated[
    bool | None,
    _sampling(
        "--blockwise/--no-blockwise",
        help="Take one block of the model after the other, which needs less memory. A run that "
        "was killed goes on where it was. By default only where memory is short.",
    ),
]
Policy = Annotated[
    str | None,
    _ranking(
        metavar="POLICY",
        autocompletion=completion.policies,
        help="How ranks are chosen: energy (one budget for all layers, spent where it keeps most; "
        "the default), uniform (the same for each kind of layer, the paper's) or threshold.",
    ),
]
Threshold = Annotated[
    float | None,
    _ranking(
        metavar="SHARE",
        help="For --policy threshold: the share of energy, 0 to 1, that each layer keeps.",
    ),
]
Include = Annotated[
    list[str] | None,
    _ranking(
        metavar="REGEX",
        help="Factorise only layers whose name matches this regular expression. Can be given "
        "more than once, as --exclude and --pin can.",
    ),
]
Exclude = Annotated[
    list[str] | None,
    _ranking(metavar="REGEX", help="Leave layers dense whose name matches."),
]
Pin = Annotated[
    list[str] | None,
    _ranking(
        metavar="REGEX=RANK",
        help="The rank of layers whose name matches: a number, dense or full.",
    ),
]
MinRank = Annotated[
    int | None, _ranking(metavar="RANK", help="The smallest rank that a layer may get.")
]
MaxRank = Annotated[
    int | None, _ranking(metavar="RANK", help="The largest rank that a layer may get.")
]
Multiple = Annotated[
    int | None,
    _ranking(
        metavar="N",
        help="Make ranks multiples of this. By default 8 in large layers under --policy energy.",
    ),
]
Form = Annotated[
    str | None,
    _ranking(
        metavar="FORM",
        autocompletion=completion.forms,
        help="How low-rank layers are stored: factors (two thin matrices, the paper's), pivots "
        "(the same product in fewer numbers), or auto (the default: the cheaper one for each "
        "layer; factors under other policies than energy).",
    ),
]
Plan = Annotated[
    Path | None,
    _ranking(
        metavar="FILE",
        help="Use the ranks of this plan: what --dry-run --json printed, edited or not.",
    ),
]
Weights = Annotated[
    str | None,
    _model(
        metavar="WEIGHTS",
        help="Where the weights come from: pretrained (the default), random, or a safetensors "
        "file.",
    ),
]
Arch = Annotated[
    str | None,
    _model(metavar="NAME", help="The architecture, if MODEL is a bare safetensors file."),
]
Seed = Annotated[
    int | None,
    _model(metavar="N", help="The seed for drawing samples and for random weights."),
]
Device = Annotated[
    str | None,
    _model(
        metavar="DEVICE",
        autocompletion=completion.devices,
        help="Where to compute: auto (a GPU if there is one; the default), cpu or cuda.",
    ),
]
Output = Annotated[
    Path | None,
    _result(
        "--output",
        "-o",
        metavar="DIR",
        help="The directory to write. By default one below runs/ that is named after MODEL and its "
        "size.",
    ),
]
DryRun = Annotated[bool, _result("--dry-run", help="Show the plan and write nothing.")]
Spectra = Annotated[
    Path | None,
    _result(
        metavar="FILE",
        help="Also write all singular values to this file. decompose --dry-run and report --sweep "
        "plan from it without the model.",
    ),
]
Set = Annotated[list[str] | None, _result("--set", metavar="KEY=VALUE", help=SET_HELP)]
