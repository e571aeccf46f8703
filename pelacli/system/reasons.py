"""Why a group of processes ends: the first one that fails leaves its reason with the launcher,
where those find it that lose contact with it."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

from pelacli.system import processes

_KEY = "pela/reason"


@dataclass(frozen=True)
class Reason:
    """What a process said when it failed, and its exit code."""

    rank: int
    exit_code: int
    message: str


def leave(exit_code: int, message: str) -> Reason | None:
    """Leave this process's reason, unless another one was earlier; give the one that counts.

    None where there is no group, or where the process that kept its reasons has ended: without
    torchrun or accelerate launch that is the first one.
    """
    store = _store()
    if store is None:
        return None
    mine = json.dumps([processes.rank_and_size()[0], exit_code, message])
    try:
        return Reason(*json.loads(store.compare_set(_KEY, "", mine)))
    except RuntimeError:
        return None


def left() -> Reason | None:
    """The reason of the process that failed first; None where none has left one: it was killed."""
    store = _store()
    try:
        if store is None or not store.check([_KEY]):
            return None
        return Reason(*json.loads(store.get(_KEY)))
    except RuntimeError:
        return None


def _store() -> Store | None:
    """What the launcher keeps for the group; None where this process has not met the others."""
    if processes.launched() == 1 or "torch.distributed" not in sys.modules:
        return None
    from torch.distributed import distributed_c10d, is_available, is_initialized

    if not (is_available() and is_initialized()):
        return None
    store: Store = distributed_c10d._get_default_store()
    return store
