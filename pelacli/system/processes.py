"""The processes that a launcher (torchrun, accelerate launch) started for one command."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from accelerate import PartialState

from pelacli.errors import RequestError

# How long the others wait for one that factorises. The launcher sees to it if that one has died.
_PATIENCE = timedelta(days=1)
_alone = False


def launched() -> int:
    """How many processes the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str) -> PartialState:
    """Meet the others, before anything asks who is first or shares out samples.

    accelerate meets them on the first call only, and on CPUs only where it is told that CPUs are
    wanted; else each process would take itself for the only one.

    Args:
        device: as in a recipe.
    """
    import torch
    from accelerate import PartialState

    cpu = device.partition(":")[0] == "cpu" or not torch.accelerator.is_available()
    if launched() == 1:
        return PartialState()
    atexit.unregister(_leave)
    atexit.register(_leave)
    return PartialState(cpu=cpu, timeout=_PATIENCE)


def _leave() -> None:
    """Take leave of the others: a process that ends with the group's threads still there may be
    aborted ("terminate called without an active exception")."""
    import torch

    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def rank_and_size() -> tuple[int, int]:
    """(rank, number of processes) of those that share out the samples."""
    import torch

    joined = torch.distributed.is_available() and torch.distributed.is_initialized()
    if _alone or not joined:
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


@contextmanager
def alone() -> Iterator[None]:
    """While active, this process does all of the work, and the others wait for it: samples are not
    shared out."""
    global _alone
    _alone = True
    try:
        yield
    finally:
        _alone = False


def wait(device: str) -> None:
    """Wait until all others are here too; nothing without a launcher."""
    if launched() > 1:
        join(device).wait_for_everyone()


def refuse_launched(command: str) -> None:
    """For commands that one process does alone.

    Raises:
        RequestError: a launcher started several.
    """
    if launched() > 1:
        raise RequestError(
            f"{command} is work for one process, and the launcher started {launched()}: "
            "run it without, and launch pretrain, finetune, eval or run"
        )
