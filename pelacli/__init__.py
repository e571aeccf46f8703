"""pela makes pretrained Transformers smaller and keeps them as good.

From Python::

    import pelacli

    model = pelacli.load("runs/vit_base-r0.50")             # an nn.Module
    plan = pelacli.decompose(model, ratio=0.5, batches=…)   # any nn.Module, in place
    pelacli.save(model, "smaller")

What was asked for and can't be done is a `RequestError`, what fails on the way another `PelaError`;
both are one line. Importing this package costs nothing: torch comes with the first call.

Once this package is imported, transformers opens an artefact too: ``AutoModel.from_pretrained``,
``pipeline``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pelacli.errors import PelaError, RequestError
from pelacli.system.after_import import after_import
from pelacli.version import __version__

if TYPE_CHECKING:
    from pelacli.api import decompose, export, import_checkpoint, load, plan, save, verify
    from pelacli.ranks.plan import Plan

__all__ = [
    "PelaError",
    "Plan",
    "RequestError",
    "__version__",
    "decompose",
    "export",
    "import_checkpoint",
    "load",
    "plan",
    "save",
    "verify",
]


def _register() -> None:
    from pelacli.models.hf import quantizer

    quantizer.register()


after_import("transformers.quantizers.auto", _register)


def __getattr__(name: str) -> Any:
    if name == "Plan":
        from pelacli.ranks.plan import Plan

        return Plan
    if name in __all__:
        from pelacli import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
