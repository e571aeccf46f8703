"""Which of timm's architectures are tried: the smallest of each kind, found by building them all.

Two architectures are of one kind where they are of one timm module and one family name, and the
same classes hold their linear layers. What holds none is left out, with the reason.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
from _trial import FEWEST, LARGEST, Case
from torch import nn

from pelacli import lowrank
from pelacli.models import timm_models

KEPT = Path(__file__).parent / "results" / "coverage-timm.json"
# Tried in this order: the first that the constructor takes and that makes the model smaller.
TINY: list[dict[str, Any]] = [
    {"embed_dim": 64, "depth": 2, "num_heads": 4},
    {"depth": 2},
    {"num_blocks": 2},
    *({key: [1] * n} for key in ("depths", "depth", "stages", "layers") for n in (4, 3)),
]


def cases() -> list[Case]:
    """All kinds, smallest first within each module."""
    return [
        Case("timm", row["name"], row["name"], row["module"], functools.partial(dict, row["args"]))
        for row in kinds()[0]
    ]


def left_out() -> dict[str, str]:
    """timm module (or architecture) → why nothing of it is tried."""
    return kinds()[1]


def kinds() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(what is tried, what is left out), built anew where timm is another than the kept one's."""
    if KEPT.is_file():
        kept = json.loads(KEPT.read_text())
        if kept["timm"] == timm.__version__:
            return kept["tried"], kept["left_out"]
    tried, out = _look()
    KEPT.write_text(
        json.dumps({"timm": timm.__version__, "tried": tried, "left_out": out}, indent=1) + "\n"
    )
    return tried, out


def _look(advance: Callable[[str], None] = lambda name: None) -> tuple[list[Any], dict[str, str]]:
    smallest: dict[tuple[str, ...], tuple[int, str]] = {}
    reasons: dict[str, Counter[str]] = {}
    for module in timm.list_modules():
        reasons[module] = Counter()
        for name in timm.list_models(module=module):
            advance(name)
            holders, why, params = _layers(_shapes(name))
            reasons[module] += Counter(why)
            kind = (module, name.split("_")[0], *holders)
            if holders and (kind not in smallest or params < smallest[kind][0]):
                smallest[kind] = (params, name)
    tried, out = [], {}
    for (module, *_), (_, name) in sorted(smallest.items(), key=lambda item: item[1]):
        args = _tiny(name)
        params = sum(p.numel() for p in _shapes(name, args).parameters())
        if params < LARGEST:
            tried.append({"name": name, "module": module, "args": args})
        else:
            out[name] = f"the smallest of its kind has {params / 1e6:.0f} M parameters"
    used = {row["module"] for row in tried}
    for module, why in reasons.items():
        if module not in used:
            found = ", ".join(f"{reason} only" for reason in why) or "no linear map but the head"
            out[module] = found
    tried.sort(key=lambda row: (row["module"], row["name"]))
    return tried, out


def _layers(module: nn.Module) -> tuple[list[str], dict[str, int], int]:
    """(classes that hold layers which may be factorised, reasons of the others, parameters)."""
    found = _found(module)
    holders = {
        type(module.get_submodule(layer.name.rpartition(".")[0])).__name__
        for layer in found
        if layer.reason is None
    }
    why = Counter(la.reason for la in found if la.reason not in (None, "output head"))
    return sorted(holders), dict(why), sum(p.numel() for p in module.parameters())


def _found(module: nn.Module) -> list[lowrank.Layer]:
    return lowrank.find_layers(module, head=timm_models.head(module))


def _shapes(name: str, args: dict[str, Any] | None = None) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = timm.create_model(name, **(args or {}))
    return module


def _tiny(name: str) -> dict[str, Any]:
    """The first of `TINY` that makes the architecture smaller and keeps its kind; none where its
    constructor takes none of them."""
    holders, _, params = _layers(_shapes(name))
    for args in TINY:
        try:
            module = _shapes(name, args)
        except Exception:  # its constructor wants other things together
            continue
        kind, _, small = _layers(module)
        enough = sum(layer.reason is None for layer in _found(module)) >= FEWEST
        if small < params and kind == holders and enough:
            return args
    return {}
