"""Files from strangers: damages small models, artefacts, recipes and data, and calls pela on each.

    python benchmarks/hostile.py                              # 300 inputs, a minute or two
    nice python benchmarks/hostile.py --inputs 100000 --jobs 2 --out hostile.jsonl
    python benchmarks/hostile.py --only 4711                  # one input again, with its files
    python benchmarks/hostile.py --table hostile.jsonl        # what came out so far

Every input has a number, which is its seed. What must hold of each: exit code 0, 2 or 3 (1 only
where memory is short), one line of at most 1,000 characters, no traceback, no "(unexpected", less
than ten seconds of the processor, nothing opened or changed outside of the input's directory, no
code of it run, nothing asked on standard input. An artefact's damaged weights are refused, or give
what the undamaged ones give.

An input costs a tenth of a second of the processor: the workers are forks of a process that has
imported and called everything once. What stands in ``--out`` is not done again, so a long run that
was ended goes on with the same command. Files that are made and removed so quickly are best in
memory: set TMPDIR to a folder of a tmpfs, but none below /dev, whose reads count as the system's.

Reads by Python are seen by an audit hook. Those of the safetensors and tokenizers libraries are
not: there a link that leads out counts as followed if the command ends well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import select
import shutil
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _hostile_damage as damage
import _hostile_watch as watch
import _rows
import torch
from _hostile_subjects import SUBJECTS, Subject, make

_AFTER = 600  # seconds after which a worker that says nothing is ended
_BATCH = 100  # inputs of a worker
_MEMORY = 6 * 2**30  # bytes that a worker may take beside what it was born with
Row = dict[str, Any]


def one(number: int, whole: Path, space: Path, results: dict[str, str]) -> Row:
    """Damage one file of one subject and call its command.

    Args:
        whole: the undamaged subjects.
        space: directory for the damaged copy.
        results: what the commands print of the undamaged subjects, filled here.
    """
    chance = random.Random(number)
    subject = chance.choice(SUBJECTS)
    case = space / "case"
    shutil.rmtree(space, ignore_errors=True)
    shutil.copytree(whole, case)
    (case / "evil.py").write_text(damage.EVIL)
    if subject.name not in results:
        results[subject.name] = _undamaged(subject, case)
    files = sorted(file for pattern in subject.damaged for file in case.glob(pattern))
    file = chance.choice([file for file in files if file.is_file()])
    way = chance.choice(damage.damages(file))
    way(chance, file)
    if file.is_fifo() and str(file.relative_to(case)) in subject.command:
        file.unlink()  # a pipe that somebody names is waited for, as <(…) of a shell is one
    readable = [case.with_name("outside")] if subject.is_data else []
    call = watch.call(subject.command, case, readable=readable)
    broken = [*call.broken, *_silent(subject, file, call, results[subject.name])]
    equal = call.code == 0 and _comparable(call.out) == results[subject.name]
    return {
        "input": number, "subject": subject.name, "file": str(file.relative_to(case)),
        "damage": way.__name__, "code": call.code, "equal": equal,
        "seconds": round(call.seconds, 2), "broken": broken, "err": call.err[-700:],
    }  # fmt: skip


def undamaged(whole: Path, space: Path) -> dict[str, str]:
    """Subject → what its command prints while nothing is damaged."""
    shutil.copytree(whole, space / "case")
    return {subject.name: _undamaged(subject, space / "case") for subject in SUBJECTS}


def _undamaged(subject: Subject, case: Path) -> str:
    call = watch.call(subject.command, case, limit=_AFTER)
    if call.code or call.broken:
        raise SystemExit(f"{subject}: fails undamaged: {call}")
    return _comparable(call.out)


def _comparable(out: str) -> str:
    """A command's output without what differs by nature."""
    times = ("seconds", "latency", " s")
    return "\n".join(line for line in out.splitlines() if not any(t in line for t in times))


def _silent(subject: Subject, file: Path, call: watch.Call, undamaged: str) -> Iterator[str]:
    """Whether damage passed for a good file."""
    if call.code:
        return
    if subject.is_recorded and _comparable(call.out) != undamaged:
        yield "another result than of the undamaged file"
    # Not by pathlib, which has no answer for a circle of links. A device in the place of a file
    # that need not be there counts as none.
    place, outside = (
        os.path.realpath(file),
        os.path.realpath(damage.case_of(file).parent / "outside"),
    )
    if not subject.is_data and place.startswith(outside):
        yield "a link that leads out was followed"


@dataclass
class Worker:
    """A fork of this process that tries some inputs, and writes a line of JSON on each.

    Attributes:
        left: the numbers of the inputs that it has not answered.
        output: where its lines are read.
    """

    left: list[int]
    process: int
    output: int
    text: bytes = b""

    def lines(self) -> list[Row] | None:
        """What it has written since it was last asked; None when it has ended. It waits."""
        more = os.read(self.output, 1 << 16)
        if not more:
            return None
        *lines, self.text = (self.text + more).split(b"\n")
        rows = [json.loads(line) for line in lines]
        self.left = self.left[len(rows) :]
        return rows

    def end(self, *, hangs: bool) -> int:
        """Its exit code, negative for a signal."""
        if hangs:
            os.kill(self.process, signal.SIGKILL)
        os.close(self.output)
        return os.waitstatus_to_exitcode(os.waitpid(self.process, 0)[1])


def start(numbers: list[int], whole: Path, space: Path, results: dict[str, str]) -> Worker:
    """Begin with some inputs, in a process of their own."""
    reader, writer = os.pipe()
    process = os.fork()
    if process:
        os.close(writer)
        return Worker(numbers, process, reader)
    try:
        limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 + _MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        with os.fdopen(writer, "w") as answers:
            for number in numbers:
                print(json.dumps(one(number, whole, space, results)), file=answers, flush=True)
        os._exit(0)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def rows(numbers: Sequence[int], root: Path, results: dict[str, str], jobs: int) -> Iterator[Row]:
    """The inputs' rows, from workers; what ends or hangs one of these is a row."""
    waiting = [list(numbers[at : at + _BATCH]) for at in range(0, len(numbers), _BATCH)][::-1]
    spaces = [root / f"space-{job}" for job in range(jobs)]
    running: dict[int, tuple[Worker, Path]] = {}
    while waiting or running:
        while waiting and spaces:
            space = spaces.pop()
            worker = start(waiting.pop(), root / "whole", space, results)
            running[worker.output] = worker, space
        ready = select.select(list(running), [], [], _AFTER)[0]
        for output in ready or list(running):  # nobody said a word: all of them hang
            worker, space = running[output]
            answered = worker.lines() if ready else None
            yield from answered or ()
            if answered is None:
                del running[output]
                spaces.append(space)
                code = worker.end(hangs=not ready)
                if worker.left:
                    number, *others = worker.left
                    yield {"input": number, "code": code, "broken": ["the process ended or hung"]}
                    waiting += [others] if others else []


def table(all_rows: list[Row]) -> str:
    """What came out, by subject."""
    lines = [
        "| file | inputs | refused | as undamaged | another model or sample | promises broken |"
    ]
    lines.append("|---|---:|---:|---:|---:|---:|")
    subjects = sorted({row.get("subject", "?") for row in all_rows})
    for name in [*subjects, "all"]:
        own = [row for row in all_rows if name in ("all", row.get("subject", "?"))]
        codes = Counter(
            "refused" if row["code"] else "equal" if row.get("equal") else "other" for row in own
        )
        broken = sum(bool(row["broken"]) for row in own)
        figures = (len(own), codes["refused"], codes["equal"], codes["other"], broken)
        lines.append(f"| {name} | {' | '.join(f'{n:,}' for n in figures)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=int, default=300)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--only", type=int, help="this input alone; its files stay")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each input")
    parser.add_argument("--table", type=Path, help="the table of such a file; nothing is tried")
    options = parser.parse_args()
    if options.table:
        return print(table(_rows.read(options.table)))
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)  # a pool of threads does not live on in a fork
    root = Path(tempfile.mkdtemp(prefix="pela-hostile-"))
    make(root / "whole")
    make_artefact(root / "whole")
    watch.install(root)
    watch.describe_commands_once()
    if options.only is not None:
        print(json.dumps(one(options.only, root / "whole", root / "space", {}), indent=2))
        return print(f"its files: {root / 'space'}")
    results = undamaged(root / "whole", root / "space")
    all_rows = _rows.read(options.out) if options.out and options.out.exists() else []
    done = {row["input"] for row in all_rows}
    end = options.first + options.inputs
    numbers = [number for number in range(options.first, end) if number not in done]
    try:
        for row in rows(numbers, root, results, options.jobs):
            all_rows.append(row)
            if row["broken"]:
                print(json.dumps(row), file=sys.stderr, flush=True)
            if options.out:
                _rows.append(options.out, row)
    finally:  # a worker ends with its next line, which nobody reads
        shutil.rmtree(root, ignore_errors=True)
    print(table(all_rows))
    sys.exit(any(row["broken"] for row in all_rows))


def make_artefact(whole: Path) -> None:
    """The artefact among the subjects, by pela itself."""
    for name, command in (("art", ("-o", "art")), ("plan", ("--dry-run", "--json"))):
        done = watch.call(("decompose", "vit", "--ratio", "0.9", *command), whole, limit=_AFTER)
        if done.code:
            raise SystemExit(f"{name}: {done.err}")
    (whole / "plan.json").write_text(done.out)


if __name__ == "__main__":
    main()
