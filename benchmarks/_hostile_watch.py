"""Call pela in this process, and see what it opens, writes and runs beside its answer."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import typer

_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
_RUNS = (
    "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.startfile", "pty.spawn",
    "socket.connect", "webbrowser.open", "builtins.input",
)  # fmt: skip
# Events whose first argument is a path that is changed.
_CHANGES = (
    "os.mkdir", "os.remove", "os.rmdir", "os.rename", "os.link", "os.symlink", "os.truncate",
    "shutil.rmtree",
)  # fmt: skip
_IDLE = 6  # seconds on the clock for each of the processor
_OF_SYSTEM = ("/proc", "/sys", "/dev", "/usr", "/lib", "/etc", "/run")


@dataclass
class Call:
    """What a call of pela did.

    Attributes:
        code: exit code; None where it had none.
        broken: the promises that it did not keep, in words.
    """

    code: int | None
    out: str
    err: str
    seconds: float
    broken: list[str] = field(default_factory=list)


@dataclass
class _Watch:
    """What the audit hook saw since it was last asked; idle while there is no root."""

    root: str | None = None
    readable: tuple[str, ...] = ()
    seen: list[str] = field(default_factory=list)

    def hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.root is None:
            return
        if event in _RUNS:
            self.seen.append(f"{event} {arguments[:2]!r}"[:200])
        elif event == "open" and isinstance(arguments[0], str | bytes):
            writes = bool(arguments[2] & _WRITES) if isinstance(arguments[2], int) else False
            self._see(os.fsdecode(arguments[0]), "wrote" if writes else "read")
        elif event in _CHANGES and isinstance(arguments[0], str | bytes | Path):
            self._see(os.fsdecode(arguments[0]), event)
        elif event == "exec" and arguments:
            name = str(getattr(arguments[0], "co_filename", ""))
            if name.endswith("evil.py"):
                self.seen.append(f"ran {name}")

    def _see(self, name: str, what: str) -> None:
        path, root = os.path.realpath(name), self.root or ""
        own = [root, tempfile.gettempdir(), sys.prefix, sys.base_prefix, *_OF_SYSTEM]
        if what == "read":
            own += [*self.readable, *filter(None, sys.path), os.path.expanduser("~/.cache")]
            own.append(_own_code())
        if not any(path == one or path.startswith(f"{one.rstrip('/')}/") for one in own):
            self.seen.append(f"{what} {path}"[:200])


def _own_code() -> str:
    """The folder of pela's own modules, which are read when they are first imported.

    An editable installation finds them by a hook, so that no entry of ``sys.path`` holds them.
    """
    return os.path.dirname(os.path.realpath(sys.modules["pelacli"].__file__ or ""))


_watch = _Watch()


class _Yes(io.StringIO):
    """Standard input that answers yes, and remembers that it was asked."""

    def readline(self, *_: Any) -> str:  # type: ignore[override]
        _watch.seen.append("read standard input")
        return "y\n"


def install(space: Path) -> None:
    """Watch this process from now on; it can't be undone.

    Args:
        space: directory for temporary files, which may be opened.
    """
    import torchmetrics  # noqa: F401  # with it matplotlib, which makes folders in the home directory

    (space / "temporary").mkdir(parents=True, exist_ok=True)
    tempfile.tempdir = str(space / "temporary")
    sys.addaudithook(_watch.hook)


def describe_commands_once() -> None:
    """Keep the description of the commands and their options, which is the same in every call and
    takes longer than many a refusal; it can't be undone."""
    from pelacli.cli import app

    vars(app)["make_app"] = functools.cache(app.make_app)
    vars(typer.main)["get_command"] = functools.cache(typer.main.get_command)


def call(
    arguments: Sequence[str], root: Path, limit: int = 10, readable: Sequence[Path] = ()
) -> Call:
    """Call pela in a directory, beyond which nothing may be read or written.

    Args:
        limit: seconds of the processor, which other programs don't lengthen; six times as many may
            pass.
        readable: what may be read beside it.
    """
    from pelacli import console
    from pelacli.__main__ import main

    out, err = io.StringIO(), io.StringIO()
    console.verbosity.said.clear()
    before, argv, stdin = Path.cwd(), sys.argv, sys.stdin
    sys.argv, sys.stdin = ["pela", *arguments], _Yes()
    os.chdir(root)
    start, code = time.process_time(), None
    _watch.root, _watch.seen = os.path.realpath(root), []
    _watch.readable = tuple(os.path.realpath(path) for path in readable)
    extra = []
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            _limit(_IDLE * limit),
        ):
            warnings.simplefilter("ignore")
            main()
    except SystemExit as exit_:
        code = exit_.code if isinstance(exit_.code, int) else 0
    except BaseException as error:
        extra.append(f"{type(error).__name__} left main()")
    finally:
        _watch.root = None
        os.chdir(before)
        sys.argv, sys.stdin = argv, stdin
    seconds = time.process_time() - start
    result = Call(code, out.getvalue(), err.getvalue(), seconds, [*extra, *_watch.seen])
    result.broken += _promises(result, root, limit)
    return result


@contextlib.contextmanager
def _limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        _watch.seen.append(f"longer than {seconds} s on the clock")
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, old)


def _promises(call: Call, root: Path, limit: int) -> Iterator[str]:
    if call.code not in (0, 1, 2, 3):
        yield f"exit code {call.code}"
    faults = ("memory", "the hub can't be reached")  # of the machine
    if call.code == 1 and not any(fault in call.err for fault in faults):
        yield "exit code 1: no fault of the machine"
    if "Traceback" in call.err or "Traceback" in call.out:
        yield "a traceback"
    if "(unexpected" in call.err:
        yield "an error that was not expected"
    if call.code in (1, 2) and (not call.err.strip() or call.out.strip()):
        yield "no message, or output beside it"
    errors = [line for line in call.err.splitlines() if line.startswith("pela: error")]
    if call.code in (1, 2) and len(errors) != 1 and "recipe" not in call.err:
        yield f"{len(errors)} lines of errors"
    if any(len(line) > 1000 for line in call.err.splitlines()):
        yield "a line of more than 1,000 characters"
    if any(not (c.isprintable() or c in "\n\u200c\u200d") for c in call.err):
        yield "codes on standard error"
    if call.seconds >= limit:
        yield f"longer than {limit} s of the processor"
    if (root / "EXECUTED").exists():
        yield "code was executed"
