"""The FLOPs of a dense model that no plan changes, from what its manifest says of the layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pelacli.manifest.document import LayerRecord


def fixed_flops(
    total: int | None, rows: Sequence[LayerRecord], planned: Collection[str]
) -> int | None:
    """FLOPs of one sample outside of the planned layers; None where FLOPs are unknown.

    Args:
        total: FLOPs of the whole dense model.
        rows: of all its linear layers.
        planned: names of the layers that may be factorised.
    """
    if total is None:
        return None
    return total - sum(
        row.flops.before for row in rows if row.name in planned and row.flops is not None
    )


def flop_obstacles(
    total: int | None, rows: Sequence[LayerRecord], planned: Collection[str]
) -> dict[str, int]:
    """Owner → FLOPs that no plan can touch: layers that stay dense, and what is no linear layer."""
    layers = {row.name: row.flops.before for row in rows if row.flops is not None}
    obstacles = {name: flops for name, flops in layers.items() if name not in planned}
    return obstacles | {"what is no linear layer": (total or 0) - sum(layers.values())}
