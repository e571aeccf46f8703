"""The FLOPs of a dense model that no plan changes, from its manifest."""

from __future__ import annotations

from collections.abc import Collection

from pelacli.manifest.document import Manifest


def fixed_flops(dense: Manifest, planned: Collection[str]) -> int | None:
    """FLOPs of one sample outside of the planned layers; None where FLOPs are unknown.

    Args:
        planned: names of the layers that may be factorised.
    """
    if dense.flops is None:
        return None
    return dense.flops.before - sum(
        row.flops.before for row in dense.layers if row.name in planned and row.flops is not None
    )


def flop_obstacles(dense: Manifest, planned: Collection[str]) -> dict[str, int]:
    """Owner → FLOPs that no plan can touch: layers that stay dense, and what is no linear layer."""
    layers = {row.name: row.flops.before for row in dense.layers if row.flops is not None}
    total = 0 if dense.flops is None else dense.flops.before
    obstacles = {name: flops for name, flops in layers.items() if name not in planned}
    return obstacles | {"what is no linear layer": total - sum(layers.values())}
