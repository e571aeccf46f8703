"""The processes that a launcher (torchrun, accelerate launch) started for one command."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from accelerate import PartialState
    from torch import Tensor

from pelacli.errors import RequestError

# How long the others wait for one that factorises. The launcher sees to it if that one has died.
_PATIENCE = timedelta(days=1)
# What a launcher sets for a group of one process.
_GROUP_OF_ONE = {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}
_alone = False

T = TypeVar("T")
Number = TypeVar("Number", int, float, "Tensor")


def launched() -> int:
    """How many processes the launcher started; 1 unless WORLD_SIZE says more."""
    return max(_number("WORLD_SIZE") or 1, 1)


def is_first() -> bool:
    """Whether this process talks and factorises: the only one, or the launcher's first."""
    return launched() == 1 or not _number("RANK")


def _number(variable: str) -> int | None:
    """The whole number in an environment variable; None where it holds none."""
    try:
        return int(os.environ.get(variable, ""))
    except ValueError:
        return None


def ignore_leftovers() -> None:
    """Unset a launcher's variables where it started no group of processes.

    accelerate looks for a group as soon as LOCAL_RANK is set, whatever WORLD_SIZE says, and then
    waits for processes that do not exist, or fails. A batch system sets some of these variables,
    and a shell may keep them. A launcher of one process sets all of them, and its group stays.
    """
    if launched() > 1 or _joined():
        return
    group = _GROUP_OF_ONE.items() <= os.environ.items()
    if not (group and os.environ.get("MASTER_ADDR") and os.environ.get("MASTER_PORT")):
        for name in _GROUP_OF_ONE:
            os.environ.pop(name, None)


def join(device: str) -> PartialState:
    """Meet the others, before anything asks who is first or shares out samples.

    accelerate meets them on the first call only, and on CPUs only where it is told that CPUs are
    wanted; else each process would take itself for the only one.

    Args:
        device: as in a recipe.

    Raises:
        RequestError: there are others, and the environment does not say how to meet them.
    """
    import torch
    from accelerate import PartialState

    cpu = device.partition(":")[0] == "cpu" or not torch.accelerator.is_available()
    ignore_leftovers()
    if launched() == 1:
        return PartialState()
    if not _joined():
        _check_rendezvous()
    atexit.unregister(_leave)
    atexit.register(_leave)
    with _stdout_on_stderr():
        return PartialState(cpu=cpu, timeout=_PATIENCE)


@contextmanager
def _stdout_on_stderr() -> Iterator[None]:
    """Keep the standard output for the command's own: torch 2.9 says there whom a process has met,
    and a JSON document may follow. It writes past Python, so the descriptor itself is turned."""
    try:
        kept = os.dup(1)
    except OSError:  # it is closed
        yield
        return
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
        with suppress(OSError):
            os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _check_rendezvous() -> None:
    """Refuse what torch would fail on, or wait for without end."""
    given = {"RANK": _number("RANK") is not None, "MASTER_ADDR": "MASTER_ADDR" in os.environ}
    for name, is_given in given.items():
        if not is_given:
            raise RequestError(
                f"WORLD_SIZE is {launched()}, but {name} is not set as launchers set it: "
                "start pela with torchrun or accelerate launch, or unset WORLD_SIZE"
            )


def _leave() -> None:
    """Take leave of the others: a process that ends with the group's threads still there may be
    aborted ("terminate called without an active exception")."""
    import torch

    if _joined():
        torch.distributed.destroy_process_group()


def end_with_group(exit_code: int) -> None:
    """End a process that has failed, if it had met others: at once, since they wait for it, or have
    died. Python may take many seconds to take torch apart, of which the launcher waits for all.
    What is to be removed at the end is removed. Returns where there is no group."""
    if launched() == 1 or "torch.distributed" not in sys.modules or not _joined():
        return
    for number in (signal.SIGINT, signal.SIGTERM):  # the launcher's, which is not needed any more
        signal.signal(number, signal.SIG_IGN)
    sys.stdout.flush()
    sys.stderr.flush()
    atexit.unregister(_leave)  # it would wait for the others
    atexit._run_exitfuncs()
    os._exit(exit_code)


def _joined() -> bool:
    """Whether this process has met the others of its group."""
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def rank_and_size() -> tuple[int, int]:
    """(rank, number of processes) of those that share out the samples."""
    import torch

    if _alone or not _joined():
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """While active, this process does all of the work, and the others wait for it: samples are not
    shared out."""
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


def all_gather(value: T) -> list[T]:
    """The value of each process, in the order of their ranks; ``[value]`` where there is only one.

    Every process of the group must call it, except within `alone`, of which accelerate's own
    `gather_object` knows nothing. Values are pickled, so each process may give one of another size.

    Args:
        value: tensors in it must lie on the CPU, from where every process can read them.
    """
    import torch

    size = rank_and_size()[1]
    if size == 1:
        return [value]
    values: list[T] = [value] * size
    torch.distributed.all_gather_object(values, value)
    return values


def total(value: Number) -> Number:
    """The sum of a number, or of a tensor on any device, over all processes; the value itself where
    there is only one. Every process of the group must call it, except within `alone`."""
    import torch

    if rank_and_size()[1] == 1:
        return value
    if isinstance(value, torch.Tensor):
        return torch.stack(all_gather(value.cpu())).sum(0).to(value.device)
    return sum(all_gather(value))


def meet(device: str) -> None:
    """Meet the others before the data is opened, which is shared out; nothing without a launcher.

    Args:
        device: as in a recipe.
    """
    if launched() > 1:
        join(device)


def wait(device: str) -> None:
    """Wait until all others are here too; nothing without a launcher."""
    if launched() > 1:
        join(device).wait_for_everyone()
