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
    typer.Option(help="Parameters after / before, a decimal or a fraction: 0.5, 2/3."),
]
Unit = Annotated[
    str | None,
    typer.Option(
        help="What the ratio counts: params, flops (of one sample) or latency (time on --device)."
    ),
]
BatchSize = Annotated[
    int | None, typer.Option(min=1, help="Of --unit latency: samples of a forward pass; unset: 8.")
]
Precision = Annotated[
    str | None,
    typer.Option(help="Of --unit latency: fp32, bf16 or fp16; unset: as weights are stored."),
]
Compile = Annotated[
    bool | None, typer.Option("--compile", help="Of --unit latency: with torch.compile.")
]
Scope = Annotated[
    str | None, typer.Option(help="Whose it counts: model, or layers (the paper's 1/c).")
]
Energy = Annotated[
    float | None,
    typer.Option(help="Instead: as small as keeps this share of all layers' energy together."),
]
MaxDrop = Annotated[
    float | None,
    typer.Option(
        help="Instead: as small as loses at most so many points of the main metric, untrained, "
        "on --data. Without labels: of the agreement with the dense model, in percent of "
        "samples of the same class, or 100 × cosine where there are no classes. Exit 3 if "
        "no factorised model is good enough."
    ),
]
Data = Annotated[str | None, typer.Option(help="Dataset that --max-drop measures on.")]
Split = Annotated[str | None, typer.Option(help="Split of --data.")]
Task = Annotated[
    str | None, typer.Option(help="Task of --max-drop: unlabelled for data without labels.")
]
Policy = Annotated[
    str | None, typer.Option(help="energy (global), uniform (the paper's), threshold.")
]
Threshold = Annotated[
    float | None, typer.Option(help="Share of energy each layer keeps (policy threshold).")
]
Calibrate = Annotated[
    str | None,
    typer.Option(help="Unlabelled samples: image folder, text file, dataset, or 'train'."),
]
Samples = Annotated[int | None, typer.Option(help="How many samples to calibrate on.")]
Correct = Annotated[
    bool | None,
    typer.Option("--correct/--no-correct", help="Sequential correction on the samples."),
]
Blockwise = Annotated[
    bool | None,
    typer.Option(
        "--blockwise/--no-blockwise",
        help="Calibrate block by block, with states on disk; a killed run goes on. Unset: where "
        "memory is short.",
    ),
]
Include = Annotated[
    list[str] | None, typer.Option(help="Only layers whose name matches (regular expression).")
]
Exclude = Annotated[
    list[str] | None, typer.Option(help="Not layers whose name matches (regular expression).")
]
Pin = Annotated[
    list[str] | None,
    typer.Option(metavar="REGEX=RANK", help="Fix ranks: a number, 'dense' or 'full'."),
]
MinRank = Annotated[int | None, typer.Option(help="Smallest rank.")]
MaxRank = Annotated[int | None, typer.Option(help="Largest rank.")]
Multiple = Annotated[
    int | None,
    typer.Option(help="Ranks are multiples of this. Unset: 8 in large layers under policy energy."),
]
Form = Annotated[
    str | None,
    typer.Option(
        help="Of the low-rank layers: factors (the paper's), pivots, which store less at the same "
        "rank, or auto: policy energy takes the cheaper one at each rank, others factors."
    ),
]
Plan = Annotated[
    Path | None, typer.Option(help="Use the ranks of this plan (JSON), edited by hand or not.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the plan, make no artefact.")]
Spectra = Annotated[
    Path | None,
    typer.Option(help="Also write the spectra to this file, to plan from without the model."),
]
Weights = Annotated[
    str | None, typer.Option(help="pretrained, random, or the path of a safetensors file.")
]
Arch = Annotated[str | None, typer.Option(help="Architecture of a bare safetensors file.")]
Device = Annotated[
    str | None,
    typer.Option(help="Where to compute: auto (a GPU where there is one), cpu or cuda."),
]
Seed = Annotated[int | None, typer.Option(help="Seed of sampling and of random weights.")]
