"""Work on a model where factorising is done, and put it back where it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from pelacli.errors import RequestError


@contextmanager
def on_cpu(module: nn.Module) -> Iterator[None]:
    """While active, a module is on the CPU; afterwards it is back, its new layers included.

    Raises:
        RequestError: it has no weights yet ("meta"), or lies on several devices.
    """
    places = {t.device for tensors in (module.parameters(), module.buffers()) for t in tensors}
    home = next((place for place in places if place.type != "cpu"), None)
    if home is None:
        yield
        return
    name = type(module).__name__
    if home.type == "meta":
        raise RequestError(f"{name}: is on the device 'meta', without weights; load them first")
    if len(places) > 1:
        found = ", ".join(sorted(map(str, places)))
        raise RequestError(f"{name}: lies on several devices ({found}); move it to one")
    module.cpu()
    try:
        yield
    finally:
        module.to(home)
