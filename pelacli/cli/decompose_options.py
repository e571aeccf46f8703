"""The options of ``pela decompose``, each with its type and its line of help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Model = Annotated[
    str,
    typer.Argument(
        help="timm name or alias, hub id, local directory, safetensors file (with --arch), "
        "artefact, or a recipe (.toml). With --dry-run also stored spectra."
    ),
]
Ratio = Annotated[
    str | None,
    typer.Option(help="How small: parameters after / parameters before, as 0.5 or 2/3."),
]
Unit = Annotated[
    str | None,
    typer.Option(
        help="What the ratio counts: params (the default), flops (of one sample) or latency (the "
        "time of a forward pass on --device)."
    ),
]
BatchSize = Annotated[
    int | None,
    typer.Option(min=1, help="For --unit latency: samples in a forward pass; 8 by default."),
]
Precision = Annotated[
    str | None,
    typer.Option(
        help="For --unit latency: fp32, bf16 or fp16; by default as the weights are stored."
    ),
]
Compile = Annotated[
    bool | None,
    typer.Option("--compile", help="For --unit latency: time the model compiled by torch.compile."),
]
Scope = Annotated[
    str | None,
    typer.Option(
        help="What the ratio is of: model (the whole of it, the default), or layers (those that "
        "are factorised; the paper's 1/c)."
    ),
]
Energy = Annotated[
    float | None,
    typer.Option(
        help="Instead of --ratio: the smallest model that keeps this share, 0 to 1, of all layers' "
        "energy (the sum of their squared singular values)."
    ),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Instead of --ratio: the smallest model that loses at most this many points on "
        "--data, without any training. With labels these are points of the task's main metric. "
        "Without, of the agreement with the dense model: percent of samples that both give the "
        "same class, or 100 × the cosine of their outputs. Exit code 3 if no model is good enough."
    ),
]
Data = Annotated[str | None, typer.Option(help="For --max-drop: the dataset to measure on.")]
Split = Annotated[str | None, typer.Option(help="For --max-drop: the split of --data.")]
Task = Annotated[
    str | None,
    typer.Option(help="For --max-drop: the task to judge by; unlabelled needs no labels."),
]
Policy = Annotated[
    str | None,
    typer.Option(
        help="How ranks are chosen: energy (over all layers together, where they keep most; the "
        "default), uniform (the same for each kind of layer, the paper's) or threshold."
    ),
]
Threshold = Annotated[
    float | None,
    typer.Option(help="For --policy threshold: the share of energy that each layer keeps."),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        help="Samples, without labels, by which ranks and weights are chosen; a few hundred make "
        "the result far better. A folder of images, a text file, a dataset, or 'train' (the "
        "recipe's own)."
    ),
]
Samples = Annotated[
    int | None, typer.Option(help="For --calibrate: how many samples; 256 by default.")
]
Correct = Annotated[
    bool | None,
    typer.Option(
        "--correct/--no-correct",
        help="For --calibrate: fit each layer again to the inputs that the smaller model gives it "
        "(the default).",
    ),
]
Blockwise = Annotated[
    bool | None,
    typer.Option(
        "--blockwise/--no-blockwise",
        help="For --calibrate: take one block of the model after the other, for which less memory "
        "will do; a run that was killed goes on where it was. By default where memory is short.",
    ),
]
Include = Annotated[
    list[str] | None,
    typer.Option(help="Factorise only layers whose name matches this regular expression."),
]
Exclude = Annotated[
    list[str] | None,
    typer.Option(help="Leave layers dense whose name matches this regular expression."),
]
Pin = Annotated[
    list[str] | None,
    typer.Option(
        metavar="REGEX=RANK",
        help="The rank of layers whose name matches: a number, 'dense' or 'full'.",
    ),
]
MinRank = Annotated[int | None, typer.Option(help="The smallest rank that a layer may get.")]
MaxRank = Annotated[int | None, typer.Option(help="The largest rank that a layer may get.")]
Multiple = Annotated[
    int | None,
    typer.Option(
        help="Make ranks multiples of this; by default 8 in large layers with --policy energy."
    ),
]
Form = Annotated[
    str | None,
    typer.Option(
        help="How low-rank layers are stored: factors (two thin matrices, the paper's), pivots "
        "(the same product in fewer numbers), or auto (the default: what is cheaper for each "
        "layer; factors with other policies than energy)."
    ),
]
Plan = Annotated[
    Path | None,
    typer.Option(help="Use the ranks of this plan: what --dry-run --json prints, edited or not."),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan and write nothing.")]
Spectra = Annotated[
    Path | None,
    typer.Option(
        help="Also write all singular values to this file, from which decompose --dry-run and "
        "report --sweep plan without the model."
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        help="Where the weights come from: pretrained (the default), random, or a safetensors file."
    ),
]
Arch = Annotated[
    str | None, typer.Option(help="The architecture, where the model is a bare safetensors file.")
]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute: auto (a GPU where there is one), cpu or cuda."),
]
Seed = Annotated[
    int | None, typer.Option(help="Seed by which samples are drawn, and random weights.")
]
