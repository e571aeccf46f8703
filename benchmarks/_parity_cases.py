"""What `parity.py` runs: groups of commands, each with the recipe that they read.

The commands of a group run in order in one directory, and later ones use what earlier ones wrote.
All paths are relative to that directory, so they are the same for every checkout.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import _parity_inputs as inputs


@dataclass(frozen=True)
class Case:
    """One call of the command line.

    Attributes:
        name: group/name.
        words: what follows ``python -m pelacli``.
        code: the exit code that it must end with.
        interrupt_at: glob of a file. As soon as it is there, the process gets SIGTERM. The step at
            which that happens is left to chance, so what this process wrote is not compared. The
            case that resumes the run is compared in full.
    """

    name: str
    words: tuple[str, ...]
    code: int = 0
    interrupt_at: str | None = None


@dataclass(frozen=True)
class Group:
    """Cases that run in order in one directory.

    Attributes:
        recipe: what ``recipe.toml`` holds.
        prepare: puts models and data into the directory; None where the recipe needs none.
    """

    cases: Sequence[Case]
    recipe: str
    prepare: Callable[[Path], None] | None = None

    def set_up(self, folder: Path) -> None:
        """Make the directory with all that the cases read."""
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text(self.recipe)
        if self.prepare is not None:
            self.prepare(folder)


VIT = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 4, embed_dim = 128, depth = 2, num_heads = 2 }
num_classes = 10
output = "run"
seed = 3

[data]
dataset = "digits"
batch_size = 16
augment = { scale = [0.7, 1.0], hflip = 0.0, mixup = 0.2, smoothing = 0.1 }

[decompose]
ratio = "1/2"

[pretrain]
steps = 3
lr = 1e-3
log_every = 1
taps_over = 0.5
loss = { task = 1.0, feature = 1.0, logits = 0.5, kl = 0.5, cosine = 0.5, perturbation = 0.1 }

[finetune]
steps = 3
lr = 1e-3
log_every = 1
accumulate = 2
drop_path = 0.1
ema = 0.9
clip_grad = 1.0
layer_decay = 0.8
factor_decay = "product"

[eval]
latency = false
"""

SWIN = """
model = "swin_tiny_patch4_window7_224"
weights = "random"
model_args = { img_size = 32, window_size = 4, embed_dim = 16, depths = [1, 2], num_heads = [1, 2] }
num_classes = 2
output = "run"

[data]
dataset = "photos"
batch_size = 8

[teacher]
steps = 3
lr = 1e-3

[decompose]
ratio = "1/2"

[pretrain]
steps = 3
lr = 1e-3
labels = false

[finetune]
steps = 3
lr = 1e-3
result = "best"

[eval]
latency = false
"""

BERT = """
model = "tiny-bert"
output = "run"
task = "text-classification"

[data]
dataset = "texts"
batch_size = 8

[decompose]
ratio = "2/3"
scope = "layers"

[pretrain]
steps = 3
lr = 1e-3
log_every = 1
loss = { task = 1.0, feature = 1.0, kl = 1.0, temperature = 2.0 }

[finetune]
steps = 3
lr = 1e-3
log_every = 1

[eval]
latency = false
"""

ALBEF = r"""
model = "tiny-albef"
weights = "random"
output = "run"
task = "vision-language"
task_args = { queue = 16, momentum = 0.9, mask = 0.4, ramp = 0.5 }

[data]
dataset = "pairs"
batch_size = 6

[decompose]
ratio = "1/2"
scope = "layers"

[pretrain]
steps = 3
lr = 1e-3
log_every = 1
taps = ['visual_encoder\.blocks\.\d+', 'text_encoder\.bert\.encoder\.layer\.\d+']
loss = { feature = 0.1, perturbation = 1.0 }

[eval]
latency = false
"""

GPT2 = """
model = "tiny-gpt2"
output = "run"
task = "language-modelling"
task_args = { block = 16 }

[data]
dataset = "prose"
batch_size = 8

[decompose]
ratio = "2/3"
scope = "layers"

[pretrain]
steps = 3
lr = 1e-3
log_every = 1
loss = { task = 0.5, feature = 0.1, kl = 1.0 }

[eval]
latency = false
"""

CALIBRATED = "--calibrate train --samples 24"
# So many steps that the run is not over when the signal comes. The recipe's log_every must be 1:
# the losses of a longer stretch would be means over the steps since the interruption.
LONG = "--set pretrain.steps=60 --set pretrain.save_every=5 --set pretrain.eval_every=100"


def factorised() -> dict[str, str]:
    """The three ways to factorise the recipe's model, plans from stored spectra, and reports."""
    return {
        "plain": "decompose recipe.toml --spectra stored.spectra -o plain --json",
        "no-correct": f"decompose recipe.toml {CALIBRATED} --no-correct -o no-correct --json",
        "corrected": f"decompose recipe.toml {CALIBRATED} --json",
        "replan": "decompose stored.spectra --ratio 0.4 --dry-run --json",
        "replan-energy": "decompose run/decompose --energy 0.9 --dry-run --json",
        "report": "report plain no-correct run --json",
        "sweep": "report stored.spectra run --sweep 0.9..0.3:5 --json",
        "layers-csv": "report run/decompose --by layer --format csv",
        "layers-markdown": "report run/decompose --by layer --format markdown",
    }


VIT_COMMANDS = {
    **factorised(),
    "dry-run": r"decompose recipe.toml --dry-run --pin blocks\.0\.mlp=9 --json",
    "uniform": "decompose recipe.toml --policy uniform -o uniform --json",
    "threshold": "decompose recipe.toml --threshold 0.4 -o threshold --json",
    "flops": "decompose test_vit --weights random --ratio 2/3 --unit flops -o flops --json",
    "pretrain": "pretrain recipe.toml --json",
    "finetune": "finetune recipe.toml --json",
    "eval": "eval recipe.toml --json",
    "curves": "report run --curves --json",
    "interrupted": f"pretrain recipe.toml {LONG} --json",
    "resumed": f"pretrain recipe.toml {LONG} --resume --json",
}
BERT_COMMANDS = {
    **factorised(),
    "max-drop": "decompose recipe.toml --max-drop 20 --data texts.txt --task unlabelled "
    "-o max-drop --json",
    "pretrain": "pretrain recipe.toml --json",
    "finetune": "finetune recipe.toml --json",
    "gate": "eval run --against run/decompose --max-drop -200 --no-latency --json",
}
RUN = {"run": "run recipe.toml --json"}
# The second time all steps are done already. Later cases factorise the teacher that it trained.
TWICE = {**RUN, "run-again": RUN["run"]}
REQUESTS = {
    "check": "recipes check recipe.toml --json",
    "show": "recipes show quickstart",
    "unknown-model": "decompose vit_bsae --ratio 0.5",
    "unknown-option": "decompose test_vit --ration 0.5",
    "no-budget": "decompose test_vit",
    "bad-ratio": "decompose test_vit --ratio 1.5",
    "bad-pin": "decompose test_vit --ratio 0.5 --pin blocks",
    "unknown-key": "pretrain recipe.toml --set pretrain.epoch=5",
    "wrong-kind": "pretrain recipe.toml --set pretrain.lr=fast",
    "missing-recipe": "run nowhere.toml",
    "missing-data": "decompose test_vit --weights random --ratio 0.5 --calibrate ./nowhere",
}


def named(group: str, commands: Mapping[str, str], **codes: int) -> list[Case]:
    """Cases from commands in one line each; the one called "interrupted" is, in its training.

    Args:
        codes: name → exit code, where it is not 0.
    """
    checkpoint = "run/pretrain.training/checkpoints/step-*/state.json"
    return [
        Case(
            f"{group}/{name}",
            tuple(words.split()),
            codes.get(name, 0),
            checkpoint if name == "interrupted" else None,
        )
        for name, words in commands.items()
    ]


REFUSED = {name: 2 for name in REQUESTS if name not in ("check", "show")}
# The groups that take longest come first, so that two workers end at about the same time.
GROUPS: dict[str, Group] = {
    "vit": Group(named("vit", VIT_COMMANDS, interrupted=1), VIT),
    "bert": Group(named("bert", BERT_COMMANDS, gate=3), BERT, inputs.bert),
    "swin": Group(named("swin", TWICE | factorised()), SWIN, inputs.photos),
    "albef": Group(named("albef", factorised() | RUN), ALBEF, inputs.albef),
    "gpt2": Group(named("gpt2", factorised() | RUN), GPT2, inputs.gpt2),
    "requests": Group(named("requests", REQUESTS, **REFUSED), VIT),
}
