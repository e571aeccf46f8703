"""The dense model of the same map, which needs nothing of pela to be run."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pelacli.lowrank.find import low_rank_layers
from pelacli.lowrank.linear import LowRankLinear
from pelacli.lowrank.replace import Exchange, exchange
from pelacli.models.hf import stated_layers


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
