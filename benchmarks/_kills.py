"""A command of pela in a child process that is ended on the way: at a moment, or before an
operation on files.

The child is a fork of this process, which has imported all that a command does, so a command takes
a second where a new process takes ten.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ENDS = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)
# What Python reports before it touches files; the command's own reading counts too.
_OPERATIONS = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.chmod", "os.link", "open"}


def count_operations(call: Callable[[], object], below: Path) -> int:
    """How many operations on files below a folder a call makes, in a child process."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            done = [0]
            _on_each_operation(below, lambda number: done.__setitem__(0, number))
            call()
            os.write(writer, str(done[0]).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as file:
        return int(file.read())


def killed_before_operation(number: int, call: Callable[[], object], below: Path) -> int:
    """Make a call in a child process that is killed before its operation of this number.

    Returns:
        the child's exit code, negative for a signal; 0 where it made fewer operations.
    """
    child = os.fork()
    if child == 0:

        def kill(operation: int) -> None:
            if operation == number:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            _on_each_operation(below, kill)
            call()
        finally:
            os._exit(0)
    return wait(child)


def _on_each_operation(below: Path, do: Callable[[int], None]) -> None:
    """Have a function called with its number before each operation. It can't be undone, so only a
    child process may ask for it."""
    prefix, count = str(below), [0]

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        if event in _OPERATIONS and str(arguments[0]).startswith(prefix):
            count[0] += 1
            do(count[0])

    sys.addaudithook(hook)


class Gate:
    """Where a child process waits while it holds an output, until it is let go.

    Args:
        output: whose lock it waits with.
    """

    def __init__(self, output: Path) -> None:
        self.output = output
        self._held, self._holds = os.pipe()
        self._goes, self._go = os.pipe()

    def keep(self) -> None:
        """In the child: wait whenever it has got the lock of the output."""
        from pelacli.system import locks

        os.close(self._held)
        os.close(self._go)
        own = locks.holding

        @contextmanager
        def holding(output: Path) -> Iterator[None]:
            with own(output):
                if output.resolve() == self.output.resolve():
                    os.write(self._holds, b".")
                    os.read(self._goes, 1)  # ends too when the parent lets go for good, or dies
                yield

        vars(locks)["holding"] = holding

    def is_held(self) -> bool:
        """In the parent: wait until the child holds the output; False if it ended without."""
        os.close(self._holds)
        os.close(self._goes)
        return bool(os.read(self._held, 1))

    def let_go(self) -> None:
        """In the parent: let the child go on, here and at every later lock."""
        os.close(self._go)
        os.close(self._held)


def start(
    arguments: Sequence[str],
    folder: Path,
    log: Path,
    prepare: Callable[[], object] | None = None,
) -> int:
    """Start a command in a child process in a folder, and give its number.

    Args:
        log: gets what it writes to standard output and error.
        prepare: is called in the child first.
    """
    log.touch()  # a child may be killed before it opens it
    held = signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    try:
        child = os.fork()
        if not child:
            _become(arguments, folder, log, prepare)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return child


def _become(
    arguments: Sequence[str], folder: Path, log: Path, prepare: Callable[[], object] | None
) -> NoReturn:
    """Be the command, in the child. Nothing may leave this function: the child would go on as a
    second copy of its parent, a test run say. So signals wait until the command can catch them."""
    code = 1
    try:
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        os.chdir(folder)
        sys.argv = ["pela", *arguments]
        try:
            if prepare is not None:
                prepare()
            from pelacli.__main__ import main

            _let_signals_in()
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:  # main() lets nothing else out, but what came while it ended
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
    finally:
        os._exit(code)


def _let_signals_in() -> None:
    """As soon as the command listens to them, and no instruction earlier."""
    from pelacli.system import termination

    own = termination.raise_on_signals

    def listen() -> None:
        own()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)

    vars(termination)["raise_on_signals"] = listen


def wait(child: int) -> int:
    """The exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def end(child: int, after: float, number: int) -> int:
    """Send a child a signal after so many seconds, if it lives so long; give its exit code."""
    deadline = time.monotonic() + after
    while time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.001)
    os.kill(child, number)
    return wait(child)
