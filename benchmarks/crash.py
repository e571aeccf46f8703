"""Kill commands at moments of chance, and look at what is left: is every artefact whole, does the
command go on to the same weights, does nothing lie around? A push goes to the tests' hub on
loopback, where there has to be the old artefact or the new one, whole.

    python benchmarks/crash.py                  # some kills of each command
    python benchmarks/crash.py --kills 200      # the long form
    python benchmarks/crash.py --imports 20     # new processes, killed while they import

The model is a ViT of two blocks on scikit-learn's digits. The signals are SIGKILL, SIGTERM, SIGINT
and SIGHUP by chance, from a seed. After each one every artefact has to verify, and to be the old or
the new one; then the command runs again, undisturbed, and has to end with the weights of a run that
nobody disturbed. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path

import _hub
import _kills

RECIPE = """
model = "vit_tiny_patch16_224"
weights = "random"
model_args = { img_size = 16, patch_size = 8, embed_dim = 32, depth = 2, num_heads = 2 }
num_classes = 10
output = "run"
device = "cpu"

[data]
dataset = "digits"
batch_size = 64
augment = { none = true }

[decompose]
ratio = "0.6"
calibrate = "train"
samples = 64

[pretrain]
steps = 12
labels = false
lr = 1e-4
save_every = 2
log_every = 1

[finetune]
steps = 12
lr = 1e-3
save_every = 2
log_every = 1
"""
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        result: what it writes, in its folder.
        before: the last step of the recipe that is done before.
        replaces: whether it puts its result in the place of one that is there.
        hub: the folder with the repositories of the hub that it talks to; "" for none.
    """

    name: str
    command: tuple[str, ...]
    result: str
    before: str = ""
    replaces: bool = True
    hub: str = ""

    def serving(self, folder: Path) -> AbstractContextManager[Callable[[], None] | None]:
        """What has to be there while it runs in a folder; gives what its process calls first."""
        return _hub.serving(folder / self.hub) if self.hub else nullcontext()


_DECOMPOSE = ("decompose", "r.toml", "--json")
CASES = [
    Case("decompose", ("decompose", "plain.toml"), "run/decompose"),
    Case("decompose, calibrated", _DECOMPOSE, "run/decompose"),
    Case("decompose, block by block", (*_DECOMPOSE, "--blockwise"), "run/decompose"),
    Case("pretrain", ("pretrain", "r.toml", "--resume"), "run/pretrain", "decompose"),
    Case("finetune", ("finetune", "r.toml", "--resume"), "run/finetune", "pretrain"),
    Case("run", ("run", "r.toml"), "run/finetune"),
    Case("push", ("push", "run/decompose", "me/small"), "hub/me/small", "push", hub="hub"),
    Case(
        "export",
        ("export", "run/decompose", "--to", "dense", "-o", "dense"),
        "dense",
        "decompose",
        replaces=False,
    ),
]


@dataclass
class Tally:
    """What came of the kills of a case.

    Attributes:
        seconds: of a run that nobody disturbed.
        weights: digest of its result.
        problems: what was wrong, a line each.
    """

    seconds: float
    weights: str
    kills: int = 0
    on_the_way: int = 0
    signals: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--kills", type=int, default=35, help="in all")
    parser.add_argument("--imports", type=int, default=0, help="new processes that are killed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--case", action="append", help="only those whose name begins so")
    options = parser.parse_args()
    cases = [c for c in CASES if not options.case or c.name.startswith(tuple(options.case))]
    with tempfile.TemporaryDirectory(prefix="pela-crash-") as folder:
        root = Path(folder)
        tallies = try_cases(cases, options.kills, random.Random(options.seed), root)
        problems = [problem for tally in tallies.values() for problem in tally.problems]
        if options.imports:
            problems += kill_imports(options.imports, random.Random(options.seed), root)
    print_tallies(tallies)
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


def try_cases(cases: list[Case], kills: int, chance: random.Random, root: Path) -> dict[str, Tally]:
    """Kill each command in turn, at a moment of chance."""
    start = prepared(root)
    tallies = {case.name: undisturbed(case, start, root) for case in cases}
    for number in range(kills):
        case = cases[number % len(cases)]
        disturb(case, tallies[case.name], start, root / f"kill-{number}", chance)
    return tallies


def prepared(root: Path) -> dict[str, Path]:
    """Step → a folder in which the recipe is done up to this step; "" for none."""
    signals = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    folder = root / "start"
    folder.mkdir()
    (folder / "r.toml").write_text(RECIPE)
    (folder / "plain.toml").write_text(RECIPE.replace('calibrate = "train"\nsamples = 64\n', ""))
    done = {"": Path(shutil.copytree(folder, root / "start-"))}
    for step in ("decompose", "pretrain", "finetune"):
        in_this_process((step, "r.toml"), folder)
        done[step] = Path(shutil.copytree(folder, root / f"start-{step}"))
    for command in (CASES[0].command, CASES[-1].command):
        in_this_process(command, Path(shutil.copytree(folder, root / command[0])))
    # The repository has another artefact, which the push is to replace.
    done["push"] = Path(shutil.copytree(done["decompose"], root / "start-push"))
    shutil.copytree(root / "decompose/run/decompose", done["push"] / "hub/me/small")
    for number, handler in signals.items():
        signal.signal(number, handler)
    return done


def in_this_process(command: tuple[str, ...], folder: Path) -> None:
    """Run a command here, so that no child has to import what it needs."""
    from pelacli.__main__ import main as pela

    before, sys.argv = Path.cwd(), ["pela", *command]
    os.chdir(folder)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            pela()
    except SystemExit as end:
        if end.code:
            raise
    finally:
        os.chdir(before)


def run(
    command: tuple[str, ...], folder: Path, prepare: Callable[[], None] | None = None
) -> tuple[int, str]:
    """(exit code, what it said) of a command that nobody disturbs."""
    log = folder.with_suffix(".log")
    code = _kills.wait(_kills.start(command, folder, log, prepare))
    return code, log.read_text(errors="replace")


def undisturbed(case: Case, start: dict[str, Path], root: Path) -> Tally:
    """The case as it ends by itself."""
    folder = Path(shutil.copytree(_start(case, start), root / f"whole-{case.name}"))
    began = time.monotonic()
    with case.serving(folder) as prepare:
        code, text = run(case.command, folder, prepare)
    if code:
        raise SystemExit(f"{case.name}: {text}")
    return Tally(time.monotonic() - began, weights(folder / case.result))


def _start(case: Case, start: dict[str, Path]) -> Path:
    return start[case.before]


def weights(result: Path) -> str:
    """The digest of a result's weights; empty where there are none."""
    from pelacli.manifest import digests

    return digests.digest_files(digests.plain_weight_files(result)) if result.is_dir() else ""


def disturb(
    case: Case, tally: Tally, start: dict[str, Path], folder: Path, chance: random.Random
) -> None:
    """Kill the command once, look at what is left, and run it to its end."""
    shutil.copytree(_start(case, start), folder)
    number = chance.choice(SIGNALS)
    moment = chance.uniform(0, 1.1 * tally.seconds)
    log = folder.with_suffix(".killed.log")
    with case.serving(folder) as prepare:
        began = time.monotonic()
        code = _kills.end(_kills.start(case.command, folder, log, prepare), moment, number)
    tally.kills += 1
    tally.on_the_way += code != 0
    tally.signals[number.name] += 1
    what = f"{case.name}, {number.name} after {moment:.2f} s of {tally.seconds:.2f} s"
    if code == 0:  # the first run may have been slow, and later signals would all come too late
        tally.seconds = min(tally.seconds, time.monotonic() - began)
    said = log.read_text(errors="replace")
    wrong = [*wrong_words(said), *damaged(folder)]
    if number != signal.SIGKILL:
        wrong += [f"{path.name} is left" for path in drafts(folder)]
    if not case.replaces and weights(folder / case.result) == tally.weights:
        shutil.rmtree(folder / case.result)  # it was done before the signal came
    with case.serving(folder) as prepare:
        code, said = run(case.command, folder, prepare)
    if code:
        wrong.append(f"then it ends with {code}: {said.splitlines()[-1:]}")
    elif weights(folder / case.result) != tally.weights:
        wrong.append("then it has other weights")
    wrong += [*wrong_words(said), *damaged(folder)]
    wrong += [f"then {path.name} is left" for path in (*drafts(folder), *workplaces(folder))]
    tally.problems += [f"{what}: {problem}" for problem in wrong]
    print(f"{what}: {'; '.join(wrong) or 'all is well'}", file=sys.stderr, flush=True)
    if not wrong:
        shutil.rmtree(folder)


def wrong_words(said: str) -> list[str]:
    return [f"it says {word}" for word in ("Traceback", "(unexpected") if word in said]


def damaged(folder: Path) -> list[str]:
    """The artefacts that are not what was written."""
    from pelacli.manifest import lookup
    from pelacli.steps.verify import verify

    results = [verify(path) for path in lookup.artefacts(folder)]
    return [
        f"{result.artefact} is damaged: {result.damages}" for result in results if result.damages
    ]


def drafts(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.rglob(".*") if path.name.endswith((".tmp", ".lock", ".old"))
    )


def workplaces(folder: Path) -> list[Path]:
    return [*folder.rglob("*.training"), *folder.rglob("*.factorising")]


def kill_imports(count: int, chance: random.Random, root: Path) -> list[str]:
    """New processes, each ended within its first seconds, most of which go into imports."""
    folder = root / "start-"
    problems = []
    for _ in range(count):
        number, moment = chance.choice(SIGNALS[1:]), chance.uniform(0.1, 6)
        command = [sys.executable, "-m", "pelacli", *_DECOMPOSE]
        process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        time.sleep(moment)
        process.send_signal(number)
        said = process.communicate()[0]
        what = f"new process, {number.name} after {moment:.2f} s"
        wrong = [*wrong_words(said), *damaged(folder)]
        if number != signal.SIGKILL:
            wrong += [f"{path.name} is left" for path in drafts(folder)]
        problems += [f"{what}: {problem}: {said[-300:]}" for problem in wrong]
    print(f"new processes: {count} killed within six seconds, {len(problems)} problems")
    return problems


def print_tallies(tallies: dict[str, Tally]) -> None:
    print(
        "| command | seconds | kills | on the way | signals | problems |\n|---|---|---|---|---|---|"
    )
    for name, tally in tallies.items():
        signals = ", ".join(f"{count} {name}" for name, count in sorted(tally.signals.items()))
        print(
            f"| {name} | {tally.seconds:.1f} | {tally.kills} | {tally.on_the_way} | {signals} | "
            f"{len(tally.problems)} |"
        )


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
