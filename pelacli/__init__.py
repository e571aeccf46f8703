"""pela makes pretrained Transformers smaller and keeps them as good.

From Python::

    import pelacli

    model = pelacli.load("runs/vit_base-r0.50")             # an nn.Module
    plan = pelacli.decompose(model, ratio=0.5, batches=…)   # any nn.Module, in place
    pelacli.save(model, "smaller")

Importing this package costs nothing: torch comes with the first call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pelacli.version import __version__

if TYPE_CHECKING:
    from pelacli.api import decompose, load, plan, save

__all__ = ["__version__", "decompose", "load", "plan", "save"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from pelacli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
