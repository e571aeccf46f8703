"""Feature maps of an image backbone at several depths, whichever library it comes from."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.messages import one_line
from pelacli.models.blocks import blocks
from pelacli.models.outputs import caught

# (backbone, images [B, C, S, S], depths to take, None for all) → maps [B, channels, h, w]
Maps = Callable[[nn.Module, Tensor, "Sequence[int] | None"], list[Tensor]]
_LEVELS = 4


def maps(library: str) -> Maps:
    """How the backbones of a library give their maps.

    Raises:
        RequestError: they don't.
    """
    known: dict[str, Maps] = {"timm": _timm, "transformers": _transformers}
    if library not in known:
        raise RequestError(f"library {library!r}: backbones are timm's and transformers' models")
    return known[library]


def depths(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Which of all maps to take: the last of each of the last four sizes, where the network has
    stages of as many; else four of them, evenly spaced.

    Args:
        shapes: (channels, pixels a side) of all maps, front to back.
    """
    last = {side: depth for depth, (_, side) in enumerate(shapes)}
    if len(last) >= _LEVELS:
        return sorted(last.values())[-_LEVELS:]
    levels = min(_LEVELS, len(shapes))
    return [(level + 1) * len(shapes) // levels - 1 for level in range(levels)]


@torch.no_grad()
def shapes(
    library: str, backbone: nn.Module, channels: int, size: int, at: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """(channels, pixels a side) of the maps of an image of this size, found by running one.

    Raises:
        RequestError: the backbone gives no maps, or doesn't take such images.
    """
    image = torch.zeros(1, channels, size, size, device=next(backbone.parameters()).device)
    was_training = backbone.training
    try:
        feature_maps = maps(library)(backbone.eval(), image, at)
    except RequestError:
        raise
    except Exception as error:  # each architecture checks its input in its own way
        reason = one_line(error, 200)
        raise RequestError(
            f"{type(backbone).__name__}: gives no feature maps of {size} px images ({reason}); "
            "another data.image_size may do"
        ) from None
    finally:
        backbone.train(was_training)
    if not feature_maps or any(m.ndim != 4 or m.shape[2] != m.shape[3] for m in feature_maps):
        raise RequestError(f"{type(backbone).__name__}: gives no square feature maps")
    return [(m.shape[1], m.shape[2]) for m in feature_maps]


def bare(library: str, module: nn.Module) -> nn.Module:
    """The model without its classifier: what a head of another kind is put upon. In place, or the
    part of the model that is its backbone."""
    if library == "timm":
        reset: Any = getattr(module, "reset_classifier", None)
        if reset is not None:
            try:
                reset(0, "")
            except AssertionError:  # it can't do without its pooling, which no map goes through
                reset(0)
        return module
    base: nn.Module = getattr(module, "base_model", module)
    if "pixel_values" not in inspect.signature(base.forward).parameters:
        base = module  # DINOv3's base is its encoder, which takes no images
    if isinstance(getattr(base, "pooler", None), nn.Module):
        base.pooler = None  # type: ignore[assignment]  # its output would be thrown away
    return base


def resize(library: str, backbone: nn.Module, size: int) -> None:
    """Prepare a backbone for square images of another size: position tables are interpolated, and
    windows keep the size that they were trained with.

    Of transformers' models nothing is to be changed; theirs do it as they run.
    """
    set_size: Any = getattr(backbone, "set_input_size", None)
    if library != "timm" or set_size is None:
        return
    options = {}
    windows = _windows(backbone)
    if windows and "window_size" in inspect.signature(set_size).parameters:
        options["window_size"] = windows  # timm would let them grow with the image
    set_size(img_size=(size, size), **options)


def _windows(backbone: nn.Module) -> list[tuple[int, int]]:
    stages: Any = getattr(backbone, "layers", getattr(backbone, "stages", []))
    first = [stage.blocks[0] for stage in stages if hasattr(stage, "blocks")]
    return [tuple(b.window_size) for b in first if hasattr(b, "window_size")]


def _timm(backbone: nn.Module, images: Tensor, at: Sequence[int] | None) -> list[Tensor]:
    forward: Any = getattr(backbone, "forward_intermediates", None)
    if forward is None:
        raise RequestError(f"{type(backbone).__name__}: timm has no feature maps of it")
    indices = None if at is None else list(at)
    return list(forward(images, indices=indices, intermediates_only=True))


def _transformers(backbone: nn.Module, images: Tensor, at: Sequence[int] | None) -> list[Tensor]:
    """Outputs of the blocks, tokens put in their places; class and register tokens come first."""
    names = blocks(backbone)
    chosen = names if at is None else [names[depth] for depth in at]
    taken: Any = inspect.signature(backbone.forward).parameters
    size = getattr(getattr(backbone, "config", None), "image_size", None)
    other = size is not None and tuple(images.shape[-2:]) != _pair(size)
    options = {"interpolate_pos_encoding": True} if "interpolate_pos_encoding" in taken else {}
    with caught(backbone, chosen) as outputs:
        backbone(images, **(options if other else {}))
    return [_map(outputs[name][-1]) for name in chosen]


def _map(output: Tensor) -> Tensor:
    """[B, tokens, channels], or a map already → [B, channels, h, w] of a square image."""
    if output.ndim == 4:
        return output
    side = isqrt(output.shape[1])
    patches = output[:, output.shape[1] - side * side :]
    return patches.transpose(1, 2).reshape(len(output), -1, side, side)


def _pair(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
