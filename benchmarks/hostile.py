"""Files from strangers: damages small models, artefacts, recipes and data, and calls pela on each.

    python benchmarks/hostile.py                              # 300 inputs, some minutes
    nice python benchmarks/hostile.py --inputs 100000 --out hostile.jsonl
    python benchmarks/hostile.py --only 4711                  # one input again, with its files

Every input has a number, which is its seed. What must hold of each: exit code 0, 2 or 3 (1 only
where memory is short), one line of at most 1,000 characters, no traceback, no "(unexpected", less
than ten seconds of the processor, nothing opened or changed outside of the input's directory, no
code of it run, nothing asked on standard input. An artefact's damaged weights are refused, or give
what the undamaged ones give.

Reads by Python are seen by an audit hook. Those of the safetensors and tokenizers libraries are
not: there a link that leads out counts as followed if the command ends well.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import select
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import _hostile_damage as damage
import _hostile_watch as watch
import _rows
from _hostile_subjects import SUBJECTS, Subject, make

_AFTER = 600  # seconds after which a worker that says nothing is ended
_BATCH = 400  # inputs of a worker
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
        undamaged = watch.call(subject.command, case, limit=_AFTER)
        if undamaged.code or undamaged.broken:
            raise SystemExit(f"{subject}: fails undamaged: {undamaged}")
        results[subject.name] = _comparable(undamaged.out)
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
    if not subject.is_data and not file.resolve().is_relative_to(damage.case_of(file).resolve()):
        yield "a link that leads out was followed"


def worker(first: int, last: int, whole: Path, space: Path) -> None:
    """Print a line of JSON for each input."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    watch.install(space.with_name("space-temporary"))
    results: dict[str, str] = {}
    for number in range(first, last):
        print(json.dumps(one(number, whole, space, results)), file=answers, flush=True)


def rows(first: int, last: int, whole: Path, space: Path) -> Iterator[Row]:
    """The inputs' rows, from processes of their own; what ends or hangs one of these is a row."""
    while first < last:
        end = min(last, first + _BATCH)
        arguments = ["--worker", str(first), str(end), str(whole), str(space)]
        command = [sys.executable, __file__, *arguments]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            for row in _lines(process):
                first = int(row["input"]) + 1
                yield row
            process.kill()
        if first < end:
            what = "the process ended or hung"
            yield {"input": first, "code": process.returncode, "broken": [what]}
            first += 1


def _lines(process: subprocess.Popen[bytes]) -> Iterator[Row]:
    """What a worker prints, until it ends or says nothing for too long."""
    assert process.stdout is not None
    text = b""
    while select.select([process.stdout], [], [], _AFTER)[0]:
        more = os.read(process.stdout.fileno(), 1 << 16)
        if not more:
            return
        *lines, text = (text + more).split(b"\n")
        yield from map(json.loads, lines)


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
    parser.add_argument("--only", type=int, help="this input alone; its files stay")
    parser.add_argument("--out", type=Path, help="append a line of JSON for each input")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    if options.worker:
        first, last, whole, space = options.worker
        return worker(int(first), int(last), Path(whole), Path(space))
    root = Path(tempfile.mkdtemp(prefix="pela-hostile-"))
    make(root / "whole")
    make_artefact(root / "whole")
    if options.only is not None:
        watch.install(root)
        print(json.dumps(one(options.only, root / "whole", root / "space", {}), indent=2))
        print(f"its files: {root / 'space'}")
        return None
    all_rows = []
    end = options.first + options.inputs
    for row in rows(options.first, end, root / "whole", root / "space"):
        all_rows.append(row)
        if row["broken"]:
            print(json.dumps(row), file=sys.stderr)
        if options.out:
            _rows.append(options.out, row)
    print(table(all_rows))
    shutil.rmtree(root)
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
