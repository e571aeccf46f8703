"""Tokens and padding: rows of tokens from tensors [B, N, width] and a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor


def token_rows(t: Tensor, mask: Tensor | None) -> Tensor:
    """[..., width] → [tokens, width] in float32, detached, without padding.

    Args:
        mask: [B, N] bool, where there are tokens; it counts for tensors [B, N, width] alone.
    """
    return unpadded(t, mask).detach().reshape(-1, t.shape[-1]).float()


def unpadded(t: Tensor, mask: Tensor | None) -> Tensor:
    """[B, N, width] → [tokens, width] without padding; any other tensor as it is.

    Args:
        mask: [B, N], where there are tokens.
    """
    if mask is None or t.shape[:-1] != mask.shape:
        return t
    if mask.all():  # a copy would only take memory
        return t.reshape(-1, t.shape[-1])
    return t[mask.bool()]


def padding_mask(inputs: Any) -> Tensor | None:
    """The mask [B, N] of the tokens that are no padding, of what a model takes; None without."""
    return inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
