"""The dense model of the same map, which needs nothing of pela to be run."""

from __future__ import annotations

from torch import nn

from pelacli.lowrank.find import low_rank_layers
from pelacli.lowrank.replace import Exchange, exchange


def fold(module: nn.Module) -> nn.Module:
    """Turn every `LowRankLinear` back into a dense ``nn.Linear`` of the same map, in place."""
    exchanges: list[Exchange] = []
    for low in low_rank_layers(module).values():
        bias = low.bias
        dense = nn.Linear(low.in_features, low.out_features, bias is not None, device="meta")
        dense.weight = nn.Parameter((low.up.weight @ low.down.weight).detach())
        if bias is not None:
            dense.bias = nn.Parameter(bias.detach().clone())
        exchanges.append((low, dense.train(low.training)))
    exchange(module, exchanges)
    return module
