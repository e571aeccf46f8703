"""A sample that a transformers model can be run on: what its FLOPs are counted at."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from pelacli.models.inputs import ImageInput, Inputs, PairInput, TextInput

_TOKENS = 128  # of an example
_ANSWER = 6  # of the answer to an example question
_PATCHES = 256  # of an example that comes in patches
# Arguments that are sound → its forms: the sizes that a configuration names, and the shape.
_SOUND: dict[str, list[tuple[tuple[str, ...], Callable[..., tuple[int, ...]]]]] = {
    "input_values": [(("max_length", "num_mel_bins"), lambda length, bins: (length, bins))],
    "input_features": [
        (("num_mel_bins", "max_source_positions"), lambda bins, half: (bins, 2 * half)),
        (("input_feat_per_channel", "input_channels"), lambda bins, n: (_TOKENS, bins * n)),
        (("feature_projection_input_dim",), lambda bins: (_TOKENS, bins)),
        (("num_mel_bins", "spec_size"), lambda bins, size: (1, size * size // bins, bins)),
        (("num_mel_bins",), lambda bins: (_TOKENS, bins)),
    ],
}


def example(module: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """A sample: an image, 128 tokens, a second of sound, or what of these the model wants together,
    as a batch of one, where the model is."""
    config: Any = module.config
    takes, device = arguments(module), next(module.parameters()).device
    image = inputs.image if isinstance(inputs, PairInput) else inputs
    text = inputs.text if isinstance(inputs, PairInput) else inputs
    batch: dict[str, torch.Tensor] = {}
    if "pixel_values" in takes and isinstance(image, ImageInput):
        batch |= {k: v.to(device) for k, v in _image(config, takes, image).items()}
    for name in takes & _SOUND.keys():
        batch[name] = torch.zeros(1, *_sound(config, name), device=device)
    reads = isinstance(text, TextInput) and not batch.keys() & _SOUND.keys()
    if "input_ids" in takes and (reads or hasattr(config, "text_config")):
        longest = text.max_length if isinstance(text, TextInput) else _TOKENS
        ids = _token_ids(getattr(config, "text_config", config), longest, device)
        image_tokens = _image_tokens(module, batch)
        ids = torch.cat([image_tokens, ids], dim=1)
        batch["input_ids"] = ids
        if "attention_mask" in takes:
            batch["attention_mask"] = torch.ones_like(ids)
        if "mm_token_type_ids" in takes:
            batch["mm_token_type_ids"] = torch.zeros_like(ids)
            batch["mm_token_type_ids"][:, : image_tokens.shape[1]] = 1
        if "bbox" in takes:  # of each word on its page
            batch["bbox"] = ids.new_zeros(*ids.shape, 4)
    if "decoder_input_ids" in takes:
        written = isinstance(text, TextInput) and text.marks  # an answer, not a text
        longest = _ANSWER if written else _TOKENS
        ids = _token_ids(getattr(config, "decoder", config), longest, device)
        batch["decoder_input_ids"] = ids
        if written and "decoder_attention_mask" in takes:
            batch["decoder_attention_mask"] = torch.ones_like(ids)
    return batch


def arguments(module: nn.Module) -> set[str]:
    """What the module's forward takes by name."""
    return set(inspect.signature(module.forward).parameters)


def longest_text(config: Any) -> int:
    """Tokens that a model of texts takes; 0 where no number is set (XLNet says −1)."""
    return max(0, int(getattr(config, "max_position_embeddings", 0) or 0))


def _token_ids(text: Any, longest: int, device: torch.device) -> torch.Tensor:
    """128 tokens, or as many as fit, the end of text at the end: models that pool there look for
    it."""
    count = min(_TOKENS, longest, longest_text(text) or _TOKENS)
    ids = torch.zeros(1, count, dtype=torch.long, device=device)
    end = getattr(text, "eos_token_id", 0) or 0
    end = end[0] if isinstance(end, list) else end
    ids[:, -1] = min(end, int(getattr(text, "vocab_size", end + 1)) - 1)
    return ids


def sees(module: nn.Module) -> bool:
    """Whether a model of texts takes images too, and not as an extra that it can do without."""
    config: Any = module.config
    pixels = inspect.signature(module.forward).parameters["pixel_values"]
    has_vision = hasattr(config, "vision_config") or hasattr(config, "image_size")
    return has_vision or pixels.default is inspect.Parameter.empty


def _image(config: Any, takes: set[str], inputs: ImageInput) -> dict[str, torch.Tensor]:
    """An image as the model takes it: pixels, or a row of patches and how many a side it has."""
    vision = getattr(config, "vision_config", config)
    if takes & {"spatial_shapes", "image_grid_thw"}:
        side = math.isqrt(getattr(vision, "num_patches", _PATCHES))
        channels = getattr(vision, "num_channels", getattr(vision, "in_channels", 3))
        width = channels * getattr(vision, "temporal_patch_size", 1) * vision.patch_size**2
        if "image_grid_thw" in takes:
            grid = torch.tensor([[1, side, side]])
            return {"pixel_values": torch.zeros(side**2, width), "image_grid_thw": grid}
        return {
            "pixel_values": torch.zeros(1, side**2, width),
            "pixel_attention_mask": torch.ones(1, side**2, dtype=torch.long),
            "spatial_shapes": torch.tensor([[side, side]]),
        }
    size = inputs.size
    frames = getattr(vision, "num_frames", None)  # of a model of videos
    return {"pixel_values": torch.zeros(1, *([frames] if frames else []), *size)}


def _image_tokens(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The placeholder tokens, [1, N], that a language model replaces with an image's features;
    N is 0 for all others."""
    config: Any = module.config
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    tokens = torch.zeros(1, 0, dtype=torch.long, device=next(module.parameters()).device)
    if token is None or "pixel_values" not in batch or not hasattr(module, "get_image_features"):
        return tokens
    get: Any = module.get_image_features
    takes = inspect.signature(get).parameters
    with torch.no_grad():
        features = get(**{name: value for name, value in batch.items() if name in takes})
    features = getattr(features, "pooler_output", features)
    parts = [features] if isinstance(features, torch.Tensor) else features
    count = sum(part.numel() // part.shape[-1] for part in parts)
    return tokens.new_full((1, count), token)


def _sound(config: Any, name: str) -> tuple[int, ...]:
    """Shape of a sample of sound, without the batch: the first form whose sizes are configured."""
    config = getattr(config, "audio_config", config)
    for keys, shape in _SOUND[name]:
        sizes = [getattr(config, key, None) for key in keys]
        if all(isinstance(size, int) for size in sizes):
            return shape(*sizes)
    return (16000,)  # a second of plain samples
