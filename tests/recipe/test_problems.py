"""A mistake in a recipe is one line: its place, what is wrong, and the remedy."""

from __future__ import annotations

import pytest
from recipe_text import DATA, TOP, read, refused

UNKNOWN = {
    "near": (
        TOP + '[decompose]\nratio = 0.5\n\npolcy = "uniform"\n',
        "x.toml:6: decompose.polcy: unknown key; did you mean 'policy'?",
    ),
    "at the top": (
        "# a recipe\n" + TOP + "sede = 1\n",
        "x.toml:4: sede: unknown key; did you mean 'seed'?",
    ),
    "section": (
        DATA + "[pretian]\nepochs = 1\n",
        "x.toml:5: pretian: unknown key; did you mean 'pretrain'?",
    ),
    "subsection": (
        DATA + "[data.agument]\nmixup = 1\n",
        "x.toml:5: data.agument: unknown key; did you mean 'augment'?",
    ),
    "dotted": (
        TOP + "decompose.min_rnk = 3\n",
        "x.toml:3: decompose.min_rnk: unknown key; did you mean 'min_rank'?",
    ),
    "inline table": (
        TOP + '\ndata = { dataset = "digits", augment = { mixpu = 1.0 } }\n',
        "x.toml:4: data.augment.mixpu: unknown key; did you mean 'mixup'?",
    ),
    "quoted": (
        TOP + '[decompose]\n"a.b" = 3\n',
        "x.toml:4: decompose.'a.b': unknown key; known keys: ratio, unit, latency, scope, energy, "
        "max_drop, data, split, task, task_args, policy, threshold, calibrate, samples, correct, "
        "blockwise, include, exclude, pin, min_rank, max_rank, multiple, form, plan",
    ),
    "of another section": (
        DATA + "hflip = 0.0\n",
        "x.toml:5: data.hflip: unknown key; it belongs to [data.augment]",
    ),
    "of the nearest sections": (
        TOP + "lr = 0.1\n",
        "x.toml:3: lr: unknown key; it belongs to [teacher] or [pretrain] or [finetune]",
    ),
    "of a section's own subsection": (
        TOP + "[finetune.data]\ndataset = 'a'\nhflip = 0.0\n",
        "x.toml:5: finetune.data.hflip: unknown key; it belongs to [finetune.data.augment]",
    ),
    "of the section nearest the top": (
        TOP + "dataset = 'digits'\n",
        "x.toml:3: dataset: unknown key; it belongs to [data]",
    ),
    "of the top": (
        DATA + "seed = 1\n",
        "x.toml:5: data.seed: unknown key; it belongs to the top, above all sections",
    ),
    "instead of a needed one": (
        'modle = "a"\noutput = "b"\n',
        "x.toml:1: modle: unknown key; did you mean 'model'? (and 1 more)",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_an_unknown_key_is_answered_with_a_known_one_or_its_section(case: str) -> None:
    text, line = UNKNOWN[case]
    assert refused(text) == line


TYPES = [
    ('seed = "5"', "seed", "expected a whole number, not the text '5'; write it without quotes"),
    ("seed = 5.0", "seed", "expected a whole number, not the number 5.0"),
    ("seed = true", "seed", "expected a whole number, not true"),
    ("seed = 1979-05-27", "seed", "expected a whole number, not the date 1979-05-27"),
    ("seed = [1]", "seed", "expected a whole number, not a list"),
    ("task = {}", "task", "expected text, not a table"),
    (
        "task = 7",
        "task",
        "expected text, not the number 7; write it in quotes, in a shell '\"7\"'",
    ),
    ('data = "digits"', "data",
     "expected a section, not the text 'digits'; write its name in brackets, and its keys below"),
    ("model_args = 1", "model_args", "expected a table, not the number 1"),
    ("model_args = { a = { b = 1 } }", "model_args.a",
     "expected a number, text, true or false, or a list of these"),
    ("model_args = { a = [1, nan] }", "model_args.a", "expected a finite number"),
    ('eval.latency = "true"', "eval.latency",
     "expected true or false, not the text 'true'; write it without quotes"),
    ('eval.max_drop = "1"', "eval.max_drop",
     "expected a number, not the text '1'; write it without quotes"),
    ('eval.max_drop = "a"', "eval.max_drop", "expected a number, not the text 'a'"),
    ("eval.max_drop = nan", "eval.max_drop", "expected a finite number"),
    ("finetune.lr = inf", "finetune.lr", "expected a finite number"),
    ("data.augment.ratio = [0.5, inf]", "data.augment.ratio[1]", "expected a finite number"),
    ('decompose.exclude = "head"', "decompose.exclude",
     "expected a list, not the text 'head'; write [\"head\"]"),
    ("decompose.exclude = [3]", "decompose.exclude[0]",
     "expected text, not the number 3; write it in quotes, in a shell '\"3\"'"),
    ("decompose.plan = 3", "decompose.plan", "expected a path, not the number 3"),
    ('decompose.plan = ""', "decompose.plan", "is empty"),
    ("decompose.ratio = true", "decompose.ratio",
     "'true' is no ratio; give a decimal or a fraction: 0.5, 2/3"),
    ("decompose.ratio = 1.5", "decompose.ratio",
     "1.5 is out of range; a ratio is above 0 and at most 1"),
    ('decompose.policy = "energi"', "decompose.policy",
     "'energi' is none of energy, uniform, threshold; did you mean 'energy'?"),
    ("decompose.policy = 3", "decompose.policy", "3 is none of energy, uniform, threshold"),
    ('decompose.calibrate = ""', "decompose.calibrate", "is empty"),
    ("decompose.samples = 0", "decompose.samples", "0 is out of range; at least 1"),
    ("decompose.threshold = 0", "decompose.threshold", "0 is out of range; above 0"),
    ("decompose.threshold = 1.5", "decompose.threshold", "1.5 is out of range; at most 1"),
    ('decompose.include = ["a", "("]', "decompose.include[1]",
     "'(' is no regular expression (missing ), unterminated subpattern at position 0)"),
    ("decompose.pin = { '(' = 3 }", "decompose.pin.'('",
     "'(' is no regular expression (missing ), unterminated subpattern at position 0)"),
    ("decompose.pin = { 'a.b' = 'half' }", "decompose.pin.'a.b'",
     "'half' is no rank; give a whole number, 'dense' or 'full'"),
    ("decompose.pin = { a = -1 }", "decompose.pin.a",
     "-1 is no rank; give a whole number, 'dense' or 'full'"),
    ("decompose.pin = { a = true }", "decompose.pin.a",
     "True is no rank; give a whole number, 'dense' or 'full'"),
    ('device = "cuda:1"', "device", "'cuda:1' is no kind of device; give 'auto', 'cpu', 'cuda' or "
     "'mps' (which GPU: CUDA_VISIBLE_DEVICES)"),
    ("data.augment.scale = 1", "data.augment.scale", "expected two numbers, as [0.5, 1.0]"),
    ("data.augment.scale = [1]", "data.augment.scale", "expected two numbers, as [0.5, 1.0]"),
    ("data.augment.scale = [0, 1]", "data.augment.scale[0]", "0 is out of range; above 0"),
    ('data.augment.ratio = [1, "a"]', "data.augment.ratio[1]",
     "expected a number, not the text 'a'"),
    ("data.augment.ratio = [2, 1]", "data.augment.ratio",
     "[2.0, 1.0] is no range; the smaller number comes first"),
    ("data.augment.smoothing = 1", "data.augment.smoothing", "1 is out of range; below 1"),
    ("data.augment.hflip = true", "data.augment.hflip", "expected a number, not true"),
    ("finetune.betas = [0.9, 1.0]", "finetune.betas[1]", "1.0 is out of range; below 1"),
    ("pretrain.taps = ['[']", "pretrain.taps[0]",
     "'[' is no regular expression (unterminated character set at position 0)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "key", "problem"), TYPES)
def test_a_wrong_value_is_named_with_its_line_and_what_was_expected(
    text: str, key: str, problem: str
) -> None:
    # a section that needs data has it, so that only one thing is wrong
    own = "" if text.startswith("data = ") else 'data.dataset = "digits"\n'
    before = TOP + own + "# a comment\n\n"
    assert refused(before + text + "\n") == f"x.toml:{before.count(chr(10)) + 1}: {key}: {problem}"


def test_a_missing_key_is_placed_by_its_section() -> None:
    assert refused('output = "b"\n') == (
        'x.toml: model: is missing; add model = "…": '
        "timm name or alias, hub id, directory, file, artefact"
    )
    assert refused(TOP + "\n[data]\nworkers = 1\n") == (
        'x.toml:4: data.dataset: is missing; add dataset = "…": '
        "digits, a folder, hfds/NAME, torch/NAME, wds/DIRECTORY, or a text file"
    )


def test_several_mistakes_are_counted() -> None:
    text = TOP + "[decompose]\nsamples = 0\nmin_rank = 'a'\npolcy = 1\n"
    line = "x.toml:6: decompose.polcy: unknown key; did you mean 'policy'? (and 2 more)"
    assert refused(text) == line


TOGETHER = {
    "threshold without its share": (
        TOP + '[decompose]\n\npolicy = "threshold"\n',
        "x.toml:5: decompose.policy: 'threshold' needs threshold too, the share of energy to keep",
    ),
    "share without the policy": (
        TOP + "[decompose]\nthreshold = 0.9\n",
        "x.toml:4: decompose.threshold: needs policy = 'threshold' too",
    ),
    "ranks": (
        TOP + "[decompose]\nmin_rank = 3\nmax_rank = 2\n",
        "x.toml:5: decompose.max_rank: max_rank 2 is below min_rank 3; change one",
    ),
    "rates": (
        DATA + "[finetune]\nepochs = 1\nlr = 1e-7\n",
        "x.toml:7: finetune.lr: min_lr 1e-06 is above lr 1e-07; lower it",
    ),
    "no loss": (
        DATA + "[pretrain]\nlabels = false\n[pretrain.loss]\nfeature = 0.0\n",
        "x.toml:7: pretrain.loss: no loss is left to train on; give one a weight above 0",
    ),
    "taps without the feature loss": (
        DATA + "[pretrain]\ntaps_over = 0.5\n[pretrain.loss]\nfeature = 0.0\n",
        "x.toml:6: pretrain.taps_over: is about loss.feature, which is 0; give that a weight",
    ),
    "teacher": (
        TOP + "[eval]\n[teacher]\n",
        "x.toml:4: teacher: needs data; add [data] or [teacher.data]",
    ),
    "pretrain": (
        TOP + "[eval.data]\ndataset='a'\n[pretrain]\n",
        "x.toml:5: pretrain: needs data; add [data] or [pretrain.data]",
    ),
    "finetune": (
        TOP + "[finetune]\n",
        "x.toml:3: finetune: needs data; add [data] or [finetune.data]",
    ),
    "calibration": (
        TOP + '[decompose]\ncalibrate = "train"\n',
        "x.toml:4: decompose.calibrate: 'train' is the recipe's own data; add [data]",
    ),
    "drop and ratio": (
        DATA + "[decompose]\nratio = 0.5\nmax_drop = 1.0\n",
        "x.toml:7: decompose.max_drop: max_drop and ratio both say how small; give one",
    ),
    "drop and threshold": (
        DATA + "[decompose]\nmax_drop = 1.0\npolicy = 'threshold'\nthreshold = 0.9\n",
        "x.toml:6: decompose.max_drop: max_drop and threshold both say how small; give one",
    ),
    "drop and energy": (
        DATA + "[decompose]\nmax_drop = 1.0\nenergy = 0.9\n",
        "x.toml:6: decompose.max_drop: max_drop and energy both say how small; give one",
    ),
    "drop and plan": (
        DATA + "[decompose]\nmax_drop = 1.0\nplan = 'p.json'\n",
        "x.toml:6: decompose.max_drop: max_drop and plan both say how small; give one",
    ),
    "energy and ratio": (
        TOP + "[decompose]\nenergy = 0.9\nratio = 0.5\n",
        "x.toml:4: decompose.energy: energy and ratio both say how small; give one",
    ),
    "energy and policy": (
        TOP + "[decompose]\nenergy = 0.9\npolicy = 'uniform'\n",
        "x.toml:4: decompose.energy: belongs to policy 'energy', not to 'uniform'",
    ),
    "drop without data": (
        TOP + "[decompose]\nmax_drop = 1.0\n",
        "x.toml:4: decompose.max_drop: needs samples to measure on; give --data, or [data] or "
        "[decompose.data]",
    ),
    "data without drop": (
        TOP + "[decompose]\n[decompose.data]\ndataset = 'a'\n",
        "x.toml:4: decompose.data: is what max_drop measures on; give that too",
    ),
    "gate": (
        TOP + "[eval]\nmax_drop = 1\n",
        "x.toml:4: eval.max_drop: needs data to measure on; add [data] or [eval.data]",
    ),
}


@pytest.mark.parametrize("case", TOGETHER)
def test_keys_that_do_not_go_together_are_refused_at_the_one_to_change(case: str) -> None:
    text, line = TOGETHER[case]
    assert refused(text) == line


@pytest.mark.parametrize(
    "text",
    [
        TOP + "[finetune.data]\ndataset = 'a'\n",
        TOP + "[finetune.data]\ndataset = 'a'\n[eval]\nmax_drop = 1\n",
        TOP + "[decompose]\ncalibrate = 'photos'\n[eval]\n",
        DATA + "[teacher]\n[pretrain]\n[finetune]\n[decompose]\ncalibrate = 'train'\n",
        TOP + "[decompose]\nthreshold = 0.9\npolicy = 'energy'\n",
        TOP + "[decompose]\nmax_drop = 0\n[decompose.data]\ndataset = 'a'\n",
        DATA + "[decompose]\nmax_drop = 1.0\npolicy = 'uniform'\nunit = 'flops'\nsplit = 'a'\n",
        TOP + "[decompose]\nenergy = 1.0\nunit = 'flops'\n",
        DATA + "[finetune]\nlr = 0.0\nsched = 'none'\n",
        DATA + "[pretrain.loss]\nfeature = 0.0\n",
        DATA + "[pretrain]\nlabels = false\n[pretrain.loss]\ntask = 0.0\n",
    ],
)
def test_keys_that_do_go_together_are_read(text: str) -> None:
    assert read(text).model == "vit_base"
