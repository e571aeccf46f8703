"""Which of timm's architectures are tried: all whose linear layers may be factorised, made tiny.

What is tiny is found by building every architecture without memory. One that holds too few linear
layers is left out, and one whose constructor fixes a size that is too large; each with the reason.
"""

from __future__ import annotations

import functools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import timm
import torch
from _trial import FEWEST, LARGEST, Case
from torch import nn

from pelacli.lowrank import find
from pelacli.lowrank import layer as lowrank_layer
from pelacli.models.timm import adapter
from pelacli.ranks.reasons import OUTPUT_HEAD

KEPT = Path(__file__).parent / "results" / "coverage-timm.json"
# Tried in this order: the first that the constructor takes, and that makes the model smaller and
# leaves all classes in it that hold linear layers.
NARROW = {"embed_dims": [32, 64, 96, 128], "num_heads": [1, 2, 3, 4]}
TINY: list[dict[str, Any]] = [
    {"embed_dim": 64, "depth": 2, "num_heads": 4},
    {"embed_dim": 96, "depth": 2, "num_heads": 4},  # SwiGLU's width, a third of it, is even
    {"embed_dim": 64, "depth": 2, "num_heads": 4, "num_kv_heads": [4, 2]},
    {"embed_dim": 64, "depth": 3, "num_heads": 4, "local_up_to_layer": 2},
    {"embed_dim": 32, "depths": [1] * 4, "num_heads": [1, 2, 4, 8]},
    {"embed_dim": [32, 64, 96, 128], "depths": [1] * 4},
    {"embed_dim": [32, 64, 96], "depth": [1] * 3, "num_heads": [2] * 3},
    {"embed_dim": [32, 64], "depth": [[1, 1, 0]], "num_heads": [2, 2]},
    {"embed_dim": 32, "stages": [1] * 4, "num_heads": 1},
    NARROW | {"depths": [1] * 4},
    NARROW | {"depths": [2] * 4},
    {"embed_dims": [32, 64, 96, 128], "depths": [1] * 4},
    {"embed_dims": [32, 64, 96, 128], "serial_depths": [1] * 4},
    {"embed_dims": [16, 32, 64, 128], "layers": [1] * 4},
    {"embed_dims": [16, 32, 64, 128, 256], "layers": [1] * 5},
    {"dims": [32, 64, 96, 128], "depths": [1] * 4},
    {"embed_dim": 64, "depth": 2, "inner_dim": 16, "num_heads_inner": 2, "num_heads_outer": 4},
    {"embed_dim": 64, "depth": 2},
    {"depth": 2},
    {"num_blocks": 2},
    *({key: [1] * n} for key in ("depths", "depth", "stages", "layers") for n in (4, 3)),
]


def cases() -> list[Case]:
    """All that are tried, by module and name."""
    return [
        Case("timm", row["name"], row["name"], row["module"], functools.partial(dict, row["args"]))
        for row in found()[0]
    ]


def kinds() -> list[Case]:
    """One of each module, family name and way of being made tiny: where all would take too long."""
    first: dict[tuple[str, str, str], Case] = {}
    for case in cases():
        first.setdefault((case.group, case.name.split("_")[0], str(case.args())), case)
    return list(first.values())


def left_out() -> dict[str, str]:
    """timm module (or architecture) → why it is not tried."""
    return found()[1]


def found() -> tuple[list[dict[str, Any]], dict[str, str]]:
    """(what is tried, what is left out), looked for anew where timm is another than the kept
    file's."""
    if KEPT.is_file():
        kept = json.loads(KEPT.read_text(encoding="utf-8"))
        if kept["timm"] == timm.__version__:
            return kept["tried"], kept["left_out"]
    tried, out = _look()
    lines = ",\n".join(f"  {json.dumps(row)}" for row in tried)
    KEPT.write_text(
        f'{{"timm": {json.dumps(timm.__version__)}, "tried": [\n{lines}\n],\n'
        f'"left_out": {json.dumps(out, indent=1)}}}\n',
        encoding="utf-8",
    )
    return tried, out


def _look() -> tuple[list[dict[str, Any]], dict[str, str]]:
    tried: list[dict[str, Any]] = []
    out: dict[str, str] = {}
    for module in timm.list_modules():
        dense: Counter[str] = Counter()  # why layers are not factorised
        known = len(tried) + len(out)
        for name in timm.list_models(module=module):
            layers = _found(_shapes(name))
            free = sum(layer.reason is None for layer in layers)
            if free < FEWEST:
                dense.update(la.reason for la in layers if la.reason not in (None, OUTPUT_HEAD))
                if free:
                    out[name] = f"fewer than {FEWEST} linear layers that may be factorised"
                continue
            args, params = _tiny(name)
            if params < LARGEST:
                tried.append({"name": name, "module": module, "args": args})
            else:
                out[name] = f"too large, and its constructor fixes it: {params / 1e6:.0f} M"
        if len(tried) + len(out) == known:
            why = ", ".join(f"{reason} only" for reason in dense)
            out[module] = why or "no linear map but the head"
    tried.sort(key=lambda row: (row["module"], row["name"]))
    return tried, out


def _found(module: nn.Module) -> list[lowrank_layer.Layer]:
    return find.find_layers(module, head=adapter.head(module))


def _holders(module: nn.Module) -> set[str]:
    """Classes that hold layers which may be factorised."""
    return {
        type(module.get_submodule(layer.name.rpartition(".")[0])).__name__
        for layer in _found(module)
        if layer.reason is None
    }


def _params(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _shapes(name: str, args: dict[str, Any] | None = None) -> nn.Module:
    with torch.device("meta"):
        module: nn.Module = timm.create_model(name, **(args or {}))
    return module


def _tiny(name: str) -> tuple[dict[str, Any], int]:
    """(arguments that make the architecture small, its parameters then); no arguments where its
    constructor takes none of `TINY`."""
    dense = _shapes(name)
    for args in TINY:
        try:
            module = _shapes(name, args)
        except Exception:  # its constructor wants other things together
            continue
        enough = sum(layer.reason is None for layer in _found(module)) >= FEWEST
        same = _holders(module) == _holders(dense) and _runs(module) == _runs(dense)
        if enough and same and _params(module) < _params(dense):
            return args, _params(module)
    return {}, _params(dense)


def _runs(module: nn.Module) -> bool:
    """Whether images go through: a constructor may take widths that do not fit together."""
    config: Any = module.pretrained_cfg
    try:
        module.eval()(torch.empty(2, *config["input_size"], device="meta"))
    except Exception:  # each model says so in its own way; some read values, which "meta" has not
        return False
    return True
