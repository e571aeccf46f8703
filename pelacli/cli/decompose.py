"""``pela decompose``."""

from __future__ import annotations

from functools import partial
from typing import Any

from pelacli.cli import decompose_options as options
from pelacli.cli.options import Json

EXAMPLES = (
    "pela decompose vit_base --ratio 0.5 --calibrate my/images",
    "pela decompose bert_base --ratio 0.7 --calibrate my/sentences.txt -o small",
    "pela decompose vit_base --max-drop 0.5 --data my/dataset",
    "pela decompose vit_base --ratio 0.5 --dry-run",
)


def decompose(
    model: options.Model,
    ratio: options.Ratio = None,
    energy: options.Energy = None,
    max_drop: options.MaxDrop = None,
    scope: options.Scope = None,
    unit: options.Unit = None,
    calibrate: options.Calibrate = None,
    samples: options.Samples = None,
    correct: options.Correct = None,
    blockwise: options.Blockwise = None,
    output: options.Output = None,
    dry_run: options.DryRun = False,
    spectra: options.Spectra = None,
    set_: options.Set = None,
    policy: options.Policy = None,
    threshold: options.Threshold = None,
    include: options.Include = None,
    exclude: options.Exclude = None,
    pin: options.Pin = None,
    min_rank: options.MinRank = None,
    max_rank: options.MaxRank = None,
    multiple: options.Multiple = None,
    form: options.Form = None,
    plan: options.Plan = None,
    data: options.Data = None,
    split: options.Split = None,
    task: options.Task = None,
    batch_size: options.BatchSize = None,
    precision: options.Precision = None,
    compile: options.Compile = None,
    weights: options.Weights = None,
    arch: options.Arch = None,
    seed: options.Seed = None,
    device: options.Device = None,
    json: Json = False,
) -> None:
    """Make a model smaller: each linear layer becomes a product of two thin ones.

    The result is a directory, called an artefact, that loads where the model loaded.
    """
    from pelacli.cli import next_steps, requests, unused
    from pelacli.cli import output as cli_output
    from pelacli.errors import DropError
    from pelacli.planning import dry_run as planning_dry_run
    from pelacli.system import by_first, processes

    top: dict[str, Any] = {"weights": weights, "arch": arch, "seed": seed, "device": device}
    timing = requests.timing_keys(batch_size, precision, compile)
    section = {
        "ratio": ratio,
        "unit": unit,
        "latency": timing or None,
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
        "blockwise": blockwise,
        "include": include,
        "exclude": exclude,
        "pin": requests.pins(pin),
        "min_rank": min_rank,
        "max_rank": max_rank,
        "multiple": multiple,
        "form": form,
        "plan": plan,
    }
    if stored := planning_dry_run.spectra_file(model, dry_run):
        unused.refuse_in_plan_of_spectra(stored, output, spectra, set_ or [])
        cli_output.print_decomposed(planning_dry_run.run(stored, top, section, set_ or []), json)
        return
    step = requests.decompose(model, top, section, set_ or [], output)
    from pelacli.artefact import saving
    from pelacli.steps import decompose as steps_decompose

    try:
        if dry_run and output is not None:
            saving.check_output(output, step.source)
        work = partial(steps_decompose.run, step, dry_run=dry_run, spectra_file=spectra)
        shares = steps_decompose.shares_samples(step)
        result = work() if shares else by_first.done(work, step.device)
        processes.wait(step.device)
    except DropError as error:
        cli_output.print_tried(error, json)
        raise
    if result is not None:  # else it is the first process's to say
        cli_output.print_decomposed(result, json)
        if not dry_run:
            next_steps.after_decompose(model, step)
