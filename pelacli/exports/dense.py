"""The dense model of the same map: a directory of timm or transformers, which needs nothing of pela
to be run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.artefact import saving
from pelacli.errors import RequestError
from pelacli.exports import calls
from pelacli.exports.calls import Call
from pelacli.exports.order import Order
from pelacli.exports.tracing import faults_of
from pelacli.lowrank.find import low_rank_layers
from pelacli.lowrank.linear import LowRankLinear
from pelacli.lowrank.replace import Exchange, exchange
from pelacli.manifest import low_rank_config
from pelacli.models import pooling
from pelacli.models.hf import stated_layers
from pelacli.models.opened import OpenModel
from pelacli.models.weight_files import ties

SUFFIX = ""
PRECISIONS: tuple[str, ...] = ("fp32", "fp16", "bf16")
OPSETS = range(0)
_OWN_BACKBONE = "pela_timm"  # model_type of a backbone that transformers knows through pela alone


def check_installed() -> None:
    """timm and transformers are there."""


def call(opened: OpenModel) -> Call:
    """See `pelacli.exports.targets.Target`."""
    backbone = opened.config.get("backbone_config")
    if isinstance(backbone, dict) and backbone.get("model_type") == _OWN_BACKBONE:
        raise RequestError(
            f"{opened.ref}: stands on a timm model that transformers knows through pela alone, so "
            "it can't be loaded without; use pelacli.load"
        )
    return calls.of_any(opened)


def prepare(opened: OpenModel) -> None:
    """Fold in float32: of factors in half precision the product would be rounded twice."""
    fold(opened.module)


def write(order: Order, at: Path) -> None:
    """See `pelacli.exports.targets.Target`."""
    opened = order.opened
    at.mkdir()
    saving.write_weights(replace(opened, stored={}), ties(opened.module), at)
    config = low_rank_config.with_layers(opened.config, opened.library, {}, {})
    if opened.library == "transformers":
        config.pop("torch_dtype", None)
        config["dtype"] = str(_dtype(opened.module)).removeprefix("torch.")
    replace(opened, config=config).describe(at)


def run(at: Path, batches: list[dict[str, Tensor]], opened: OpenModel) -> list[dict[str, Tensor]]:
    """See `pelacli.exports.targets.Target`."""
    with faults_of(opened, opened.library), torch.no_grad():
        module = _from_transformers(at) if opened.library == "transformers" else _from_timm(at)
        if opened.library == "timm":
            module = module.to(_dtype(opened.module))
        pooling.hold(module, at)
        loaded = calls.of_any(replace(opened, module=module.eval()))
        return [loaded(**batch) for batch in batches]


def _dtype(module: nn.Module) -> torch.dtype:
    """The precision of its weights, which is one after `pelacli.steps.export` has chosen it."""
    return next(p.dtype for p in module.parameters() if p.is_floating_point())


def _from_timm(at: Path) -> nn.Module:
    import timm

    module: nn.Module = timm.create_model(f"local-dir:{at}", pretrained=True)
    return module


def _from_transformers(at: Path) -> nn.Module:
    """As its own class reads it.

    Raises:
        RequestError: a tensor is missing, or left over.
    """
    from pelacli.models.hf import classes, loading

    with loading.quiet():
        import transformers

        config = transformers.AutoConfig.from_pretrained(at, trust_remote_code=False)
        cls = classes.class_of(config)
        module, info = cls.from_pretrained(
            at, output_loading_info=True, use_safetensors=True, trust_remote_code=False
        )
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[what]:
            first = min(map(str, info[what]))
            raise RequestError(f"{at.name}: {cls.__name__} reports {what}: {first}")
    filled: nn.Module = module
    return filled


def record(at: Path, document: dict[str, Any]) -> None:
    """As the README.md of the directory."""
    lines = [
        f"# {document['model']}",
        "",
        f"Low-rank layers folded into dense ones by pela {document['pela']}, in "
        f"{document['precision']}. The largest relative difference of its outputs to those of the "
        f"low-rank model is {document['difference']:.1e}.",
        "",
    ]
    (at / "README.md").write_text("\n".join(lines), encoding="utf-8")


def fold(module: nn.Module) -> nn.Module:
    """Turn every `LowRankLinear` back into a dense layer of the same map and of the kind that it
    replaced, ``nn.Linear`` or transformers' ``Conv1D``, in place."""
    exchanges: list[Exchange] = []
    for low in low_rank_layers(module).values():
        dense = _conv1d(low) if low.replaces == "conv1d" else _linear(low)
        exchanges.append((low, dense.train(low.training)))
    exchange(module, exchanges)
    stated_layers.state(module)
    return module


def _linear(low: LowRankLinear) -> nn.Module:
    dense = nn.Linear(low.in_features, low.out_features, low.bias is not None, device="meta")
    dense.weight = nn.Parameter(_weight(low))
    if low.bias is not None:
        dense.bias = nn.Parameter(low.bias.detach().clone())
    return dense


def _weight(low: LowRankLinear) -> Tensor:
    down, up = low.factors()
    return (up @ down).detach()


def _conv1d(low: LowRankLinear) -> nn.Module:
    """Its weight is in × out: of a square layer, another kind would be read back transposed."""
    from transformers.pytorch_utils import Conv1D

    dense: Any = Conv1D(low.out_features, 0)
    dense.nx = low.in_features
    dense.weight = nn.Parameter(_weight(low).T.contiguous())
    if low.bias is None:
        dense.bias = nn.Parameter(dense.weight.new_zeros(low.out_features))
    else:
        dense.bias = nn.Parameter(low.bias.detach().clone())
    folded: nn.Module = dense
    return folded
