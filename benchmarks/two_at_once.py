"""Start two commands on one output at once, and look at what comes of it.

    python benchmarks/two_at_once.py               # two pairs of each kind
    python benchmarks/two_at_once.py --pairs 60    # the long form

The second one starts when the first holds the output, so that the two certainly overlap. In every
other pair the first one holds it until the second has ended, which must be refused; else the first
goes on after a while of chance, from a seed. Whichever comes too late has to end with
exit code 1 and one line that names the other, the artefact has to be whole and to have the weights
of one of the two alone, and nothing may lie around. Exit code 1 if anything is wrong.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import _kills
import crash
from crash import Case

# The second recipe has other rates and another ratio, and the same output.
PAIRS = {
    "decompose": "decompose",
    "pretrain": "pretrain",
    "finetune": "finetune",
    "run": "run",
    "run and finetune": "run",
    "export": "export",
}


@dataclass
class Outcome:
    """What came of a pair.

    Attributes:
        overlapped: whether the second process started while the first held the output.
        refused: whether one came too late.
        problems: what was wrong, a line each.
    """

    overlapped: bool
    refused: bool = False
    problems: list[str] = field(default_factory=list)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--pairs", type=int, default=2 * len(PAIRS), help="in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", help="kinds of pairs")
    options = parser.parse_args()
    chance = random.Random(options.seed)
    kinds = options.only or list(PAIRS)
    outcomes: list[tuple[str, Outcome]] = []
    with tempfile.TemporaryDirectory(prefix="pela-two-") as folder:
        root = Path(folder)
        start = crash.prepared(root)
        alone = {kind: weights_alone(kind, start, root) for kind in kinds}
        for number in range(options.pairs):
            kind = kinds[number % len(kinds)]
            at = root / f"pair-{number}"
            waits = number // len(kinds) % 2 == 0
            outcomes.append((kind, try_pair(kind, start, at, alone[kind], chance, waits)))
    problems = [f"{kind}: {wrong}" for kind, outcome in outcomes for wrong in outcome.problems]
    print(
        f"{options.pairs} pairs; the second began while the first held the output in "
        f"{sum(outcome.overlapped for _, outcome in outcomes)}; one came too late in "
        f"{sum(outcome.refused for _, outcome in outcomes)}; {len(problems)} problems"
    )
    for problem in problems:
        print(problem)
    sys.exit(bool(problems))


def commands(kind: str) -> tuple[Case, tuple[str, ...], tuple[str, ...]]:
    """(what the first case needs and gives, the two commands)."""
    case = next(case for case in crash.CASES if case.name == PAIRS[kind])
    first = case.command
    second = ("finetune", "r2.toml") if kind == "run and finetune" else first
    other = {"r.toml": "r2.toml", "plain.toml": "plain2.toml"}
    return case, first, tuple(other.get(word, word) for word in second)


def held_output(kind: str) -> str:
    """The output, in a pair's folder, that both commands want."""
    return "run" if kind == "run" else commands(kind)[0].result


def folder_of(case: Case, start: dict[str, Path], folder: Path) -> Path:
    """A copy of what the case starts from, with the second recipe."""
    shutil.copytree(start[case.before], folder)
    for name in ("r", "plain"):
        text = (folder / f"{name}.toml").read_text()
        text = text.replace("lr = 1e-", "lr = 3e-")
        if case.name in ("decompose", "run"):
            text = text.replace('ratio = "0.6"', 'ratio = "0.7"')
        (folder / f"{name}2.toml").write_text(text)
    return folder


def weights_alone(kind: str, start: dict[str, Path], root: Path) -> tuple[set[str], float]:
    """(the weights that either command gives alone, or both one after the other; seconds)."""
    case, *both = commands(kind)
    seen: set[str] = set()
    seconds = 0.0
    for order in (both, both[::-1]):
        folder = folder_of(case, start, root / f"alone-{kind}-{len(seen)}-{order[0][-1][:5]}")
        for command in order:
            began = time.monotonic()
            crash.run(command, folder)
            seconds = max(seconds, time.monotonic() - began)
            seen.add(crash.weights(folder / case.result))
    return seen - {""}, seconds


def try_pair(
    kind: str,
    start: dict[str, Path],
    folder: Path,
    alone: tuple[set[str], float],
    chance: random.Random,
    waits: bool,
) -> Outcome:
    """Start both, the second when the first holds the output.

    Args:
        alone: of `weights_alone`.
        waits: whether the first holds the output until the second has ended.
    """
    case, *both = commands(kind)
    expected, seconds = alone
    folder_of(case, start, folder)
    logs = [folder.with_suffix(f".{number}.log") for number in (1, 2)]
    gate = _kills.Gate(folder / held_output(kind))
    first = _kills.start(both[0], folder, logs[0], gate.keep)
    outcome = Outcome(gate.is_held())
    second = _kills.start(both[1], folder, logs[1])
    if waits:
        codes = [_kills.wait(second)]
        gate.let_go()
        codes.insert(0, _kills.wait(first))
    else:
        time.sleep(chance.uniform(0, 1.2 * seconds))
        gate.let_go()
        codes = [_kills.wait(child) for child in (first, second)]
    wrong = outcome.problems
    if not outcome.overlapped:
        wrong.append("the first never held the output")
    if waits and (codes[0], codes[1]) != (0, 1):
        wrong.append("the second was let in while the first held the output")
    for code, log in zip(codes, logs, strict=True):
        said = log.read_text(errors="replace")
        wrong += crash.wrong_words(said)
        too_late = "is writing there" in said or (not case.replaces and "exists" in said)
        if code and not too_late:
            wrong.append(f"exit code {code}: {said.splitlines()[-1:]}")
    if all(codes):
        wrong.append("none of the two came to its end")
    if crash.weights(folder / case.result) not in expected:
        wrong.append("weights of neither")
    wrong += crash.damaged(folder)
    wrong += [f"{path.name} is left" for path in (*crash.drafts(folder), *crash.workplaces(folder))]
    print(f"{kind}: {codes}, {'; '.join(wrong) or 'all is well'}", file=sys.stderr, flush=True)
    if not wrong:
        shutil.rmtree(folder)
    outcome.refused = any(codes)
    return outcome


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
