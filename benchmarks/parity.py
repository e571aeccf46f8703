"""Do two checkouts of pela give bitwise the same results?

    python benchmarks/parity.py OLD NEW                      # two directories with pelacli in them
    python benchmarks/parity.py OLD --digests old.json       # keep the results of one …
    python benchmarks/parity.py old.json NEW                 # … to compare others with
    python benchmarks/parity.py OLD NEW --only bert --only vit/pretrain

For large refactorings, which must not change any result. Each checkout is driven through its
command line alone, on tiny random models, in a temporary directory, so it does not matter how its
files are laid out. Compared are the exit code, standard output and every file that a command
writes: each tensor of safetensors by name, shape, dtype and bytes, JSON value by value, other
files line by line. Standard error may differ; where it does, the case says "wording".
`_parity_facts.IGNORED` lists what else is left out. A checkout takes less than five minutes of
processor time, most of it for importing torch; two groups of commands run at a time.

Prints one line per case and ends with 1 if any case differs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import metadata
from itertools import takewhile
from pathlib import Path

import torch
from _parity_cases import GROUPS, Case
from _parity_facts import of_file, of_text

LIBRARIES = ("torch", "timm", "transformers", "safetensors", "accelerate", "numpy", "tokenizers")
TIMEOUT = 300  # seconds that one command may take
SHOWN = 100  # characters of a differing value
FAILURE = "failure"  # the fact of a case that did not run as it must


@dataclass(frozen=True)
class Result:
    """What one command gave.

    Attributes:
        facts: name of an observation ("run/pretrain/pela.json layers.0.rank") → its value.
        stderr: which may differ.
    """

    facts: dict[str, str]
    stderr: str


Results = dict[str, Result]


# Running ------------------------------------------------------------------------------------------


def environment(checkout: Path) -> dict[str, str]:
    """One thread, no hub, no GPU, and this checkout's pela before any installed one."""
    return os.environ | {
        "PYTHONPATH": str(checkout.resolve()),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }


def check(checkout: Path) -> None:
    """Stop unless ``python -m pelacli`` would run the code of this checkout."""
    where = "import pelacli; print(pelacli.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", where],
        env=environment(checkout), cwd=tempfile.gettempdir(), capture_output=True, text=True,
    )  # fmt: skip
    if not Path(done.stdout.strip()).is_relative_to(checkout.resolve()):
        sys.exit(f"{checkout}: not a checkout of pela: it has no package pelacli that imports")


def call(
    case: Case, folder: Path, variables: Mapping[str, str]
) -> subprocess.CompletedProcess[str]:
    """Run the command of a case, and interrupt it where the case says so."""
    command = [sys.executable, "-m", "pelacli", *case.words]
    with subprocess.Popen(
        command, cwd=folder, env=variables, text=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        if case.interrupt_at:
            interrupt(process, folder, case.interrupt_at)
        try:
            out, err = process.communicate(timeout=TIMEOUT)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def interrupt(process: subprocess.Popen[str], folder: Path, pattern: str) -> None:
    """Send SIGTERM as soon as a file is there that matches the pattern."""
    end = time.monotonic() + TIMEOUT
    while process.poll() is None and time.monotonic() < end:
        if any(folder.glob(pattern)):
            process.send_signal(signal.SIGTERM)
            return
        time.sleep(0.01)


def observe(case: Case, folder: Path, variables: Mapping[str, str]) -> Result:
    """Run a case and note what came of it."""
    before = signatures(folder)
    began = time.monotonic()
    done = call(case, folder, variables)
    print(f"{time.monotonic() - began:6.1f} s  {case.name}", file=sys.stderr)
    facts = {"exit code": str(done.returncode)}
    if done.returncode != case.code:
        last = done.stderr.strip().rpartition("\n")[2]
        facts[FAILURE] = f"exit code {done.returncode}, expected {case.code}: {last}"
    if case.interrupt_at:
        return Result(facts, "")
    here = str(folder.resolve())
    facts |= of_text(done.stdout.replace(here, "."), "stdout")
    after = signatures(folder)
    for name in sorted(before.keys() | after.keys()):
        if name not in after:
            facts[name] = "removed"
        elif before.get(name) != after[name]:
            facts |= of_file(folder / name, name)
    return Result(facts, done.stderr.replace(here, ".").strip())


def signatures(folder: Path) -> dict[str, tuple[int, int, int]]:
    """File below a folder → what changes when it is written."""
    status = {file: file.stat() for file in sorted(folder.rglob("*")) if file.is_file()}
    return {
        file.relative_to(folder).as_posix(): (stat.st_ino, stat.st_size, stat.st_mtime_ns)
        for file, stat in status.items()
    }


def run(checkout: Path, names: Sequence[str], jobs: int) -> Results:
    """The results of one checkout.

    Args:
        names: of the groups to run.
        jobs: groups that run at a time.
    """
    check(checkout)
    variables = environment(checkout)
    with tempfile.TemporaryDirectory(prefix="parity-") as root:
        folders = {name: Path(root) / name for name in names}
        for name, folder in folders.items():  # here, as the threads would share torch's generator
            GROUPS[name].set_up(folder)

        def results_of(name: str) -> Results:
            cases = GROUPS[name].cases
            return {case.name: observe(case, folders[name], variables) for case in cases}

        with ThreadPoolExecutor(jobs) as pool:
            groups = list(pool.map(results_of, names))
    return {name: result for group in groups for name, result in group.items()}


def made_with() -> dict[str, str]:
    """What may change the bits beside pela: the processor's instructions and the libraries."""
    cpu = torch.backends.cpu.get_cpu_capability()
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return {"cpu": f"{platform.machine()} {cpu}", "python": platform.python_version(), **versions}


# Comparing ----------------------------------------------------------------------------------------


def difference(old: Result, new: Result) -> str | None:
    """The first fact that differs, in the order of observation; None if none does."""
    for result in (old, new):
        if FAILURE in result.facts:
            return result.facts[FAILURE]
    differing = [
        (name, old.facts.get(name, "(nothing)"), new.facts.get(name, "(nothing)"))
        for name in old.facts | new.facts
        if old.facts.get(name) != new.facts.get(name)
    ]
    if not differing:
        return None
    name, before, after = differing[0]
    more = f" (and {len(differing) - 1} more)" if len(differing) > 1 else ""
    return f"{name}: {shortened(before, after)} → {shortened(after, before)}{more}"


def shortened(text: str, other: str) -> str:
    """The part of a text from shortly before where it differs from the other."""
    equal = takewhile(lambda pair: pair[0] == pair[1], zip(text, other, strict=False))
    start = len(list(equal)) - 20 if len(text) > SHOWN else 0
    part = f"…{text[start:]}" if start > 0 else text
    return part if len(part) <= SHOWN else f"{part[:SHOWN]}…"


def compare(old: Results, new: Results) -> int:
    """Print a line per case and the sum; how many cases differ."""
    nothing = Result({}, "")
    differ = 0
    for name in old | new:
        before, after = old.get(name, nothing), new.get(name, nothing)
        problem = difference(before, after)
        differ += problem is not None
        wording = "" if before.stderr == after.stderr else "  (wording of standard error differs)"
        print(f"{name:<24} {'same' if problem is None else f'different: {problem}'}{wording}")
        if wording:
            print(f"    old: {before.stderr}\n    new: {after.stderr}")
    print(f"{len(old | new)} cases, {differ} differ")
    return differ


def chosen(results: Results, only: Sequence[str]) -> Results:
    """The cases of these names or groups; all where none is given."""
    return {
        name: result
        for name, result in results.items()
        if not only or name in only or name.partition("/")[0] in only
    }


def read(file: Path) -> Results:
    """Results that ``--digests`` wrote; says so where they come from another installation."""
    document = json.loads(file.read_text(encoding="utf-8"))
    for name, here in made_with().items():
        if (recorded := document["made_with"].get(name)) != here:
            print(f"note: {file} was made with {name} {recorded}, not {here}", file=sys.stderr)
    return {name: Result(**result) for name, result in document["results"].items()}


def write(file: Path, results: Results) -> None:
    """Keep the results of one checkout."""
    kept = {name: asdict(result) for name, result in results.items()}
    document = {"made_with": made_with(), "results": kept}
    file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is asked for; the exit code."""
    args = arguments(argv)
    chosen_groups = {name.partition("/")[0] for name in args.only} or set(GROUPS)
    groups = [name for name in GROUPS if name in chosen_groups]

    def results(source: Path) -> Results:
        whole = read(source) if source.is_file() else run(source, groups, args.jobs)
        return chosen(whole, args.only)

    old = results(args.old)
    if args.digests is not None:
        write(args.digests, old)
    if args.new is not None:
        return int(compare(old, results(args.new)) > 0)
    failures = [f"{name}: {old[name].facts[FAILURE]}" for name in old if FAILURE in old[name].facts]
    print("\n".join([*failures, f"{len(old)} cases, {len(failures)} failed"]))
    return int(bool(failures))


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line, checked."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("old", type=Path, help="checkout, or a file that --digests wrote")
    parser.add_argument("new", type=Path, nargs="?", help="checkout to compare with it")
    parser.add_argument("--digests", type=Path, metavar="FILE", help="write the results of OLD")
    parser.add_argument("--only", action="append", default=[], metavar="NAME",
                        help="a group or a case; may be given several times")  # fmt: skip
    parser.add_argument("--jobs", type=int, default=2, help="groups that run at a time (2)")
    args = parser.parse_args(argv)
    if args.new is None and args.digests is None:
        parser.error("give NEW to compare with, or --digests FILE")
    known = {*GROUPS, *(case.name for group in GROUPS.values() for case in group.cases)}
    for name in args.only:
        if name not in known:
            parser.error(f"--only {name}: there is {', '.join(sorted(known))}")
    return args


if __name__ == "__main__":
    sys.exit(main())
