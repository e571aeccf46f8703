"""What transformers' models take: the kind of their inputs, and a plain sample of it."""

from __future__ import annotations

import contextlib
import inspect
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from pelacli.models.types import ImageInput, Inputs, PairInput, TextInput

_TOKENS = 128  # of an example
_PATCHES = 256  # of an example that comes in patches
_IMAGE = 224  # side of an example where neither configuration nor processor tell one
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


def inputs(module: nn.Module, directory: Path | None) -> Inputs:
    """What a sample of this model looks like, from its own files where there are any."""
    config: Any = module.config
    takes = _arguments(module)
    vision = getattr(config, "vision_config", config)
    if "pixel_values" in takes and "input_ids" not in takes:
        return _image_input(vision, directory)
    text = _text_input(getattr(config, "text_config", None) or config, directory)
    return PairInput(_image_input(vision, directory), text) if _sees(module, takes) else text


def _text_input(config: Any, directory: Path | None) -> TextInput:
    tokenizer = None
    if directory is not None and any(directory.glob("tokenizer*")):
        with quiet():
            tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    longest = _longest(config) or 512
    limit = int(getattr(tokenizer, "model_max_length", longest) or longest)
    if directory is not None and (directory / "sentence_bert_config.json").is_file():
        # sentence-transformers trained the model on shorter texts than its positions allow.
        limit = int(
            json.loads((directory / "sentence_bert_config.json").read_text()).get(
                "max_seq_length", limit
            )
        )
    return TextInput(tokenizer, min(longest, limit))


def example(module: nn.Module, inputs: Inputs) -> dict[str, torch.Tensor]:
    """A sample to count FLOPs at: an image, 128 tokens, a second of sound, or what of these the
    model wants together."""
    config: Any = module.config
    takes, device = _arguments(module), next(module.parameters()).device
    batch: dict[str, torch.Tensor] = {}
    if isinstance(inputs, ImageInput | PairInput):
        image = inputs.image if isinstance(inputs, PairInput) else inputs
        batch |= {k: v.to(device) for k, v in _image(config, takes, image).items()}
    for name in takes & _SOUND.keys():
        batch[name] = torch.zeros(1, *_sound(config, name), device=device)
    hears = bool(batch.keys() & _SOUND.keys())
    if "input_ids" in takes and (not hears or hasattr(config, "text_config")):
        batch |= _text(module, takes, batch)
    if "decoder_input_ids" in takes:
        batch["decoder_input_ids"] = _token_ids(getattr(config, "decoder", config), device)
    return batch


def _arguments(module: nn.Module) -> set[str]:
    """What the module's forward takes by name."""
    return set(inspect.signature(module.forward).parameters)


def _longest(text: Any) -> int:
    """Tokens that a model of texts takes; 0 where no number is set (XLNet says −1)."""
    return max(0, int(getattr(text, "max_position_embeddings", 0) or 0))


def _text(
    module: nn.Module, takes: set[str], batch: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    """A text, behind what the model is to see of the image in the batch."""
    config: Any = module.config
    seen = _image_tokens(module, batch)
    ids = torch.cat([seen, _token_ids(getattr(config, "text_config", config), seen.device)], dim=1)
    found = {"input_ids": ids}
    if "attention_mask" in takes:
        found["attention_mask"] = torch.ones_like(ids)
    if "mm_token_type_ids" in takes:
        found["mm_token_type_ids"] = (torch.arange(ids.shape[1]) < seen.shape[1]).to(ids)[None]
    if "bbox" in takes:  # of each word on its page
        found["bbox"] = ids.new_zeros(*ids.shape, 4)
    return found


def _token_ids(text: Any, device: torch.device) -> torch.Tensor:
    """128 tokens, or as many as fit, the end of text at the end: models that pool there look for
    it."""
    ids = torch.zeros(1, min(_TOKENS, _longest(text) or _TOKENS), dtype=torch.long, device=device)
    end = getattr(text, "eos_token_id", 0) or 0
    end = end[0] if isinstance(end, list) else end
    ids[:, -1] = min(end, int(getattr(text, "vocab_size", end + 1)) - 1)
    return ids


def _sees(module: nn.Module, takes: set[str]) -> bool:
    """Whether a model of texts takes images too, and not as an extra that it can do without."""
    if "pixel_values" not in takes:
        return False
    config: Any = module.config
    wanted = inspect.signature(module.forward).parameters["pixel_values"]
    own = hasattr(config, "vision_config") or hasattr(config, "image_size")
    return own or wanted.default is inspect.Parameter.empty


def _image(config: Any, takes: set[str], image: ImageInput) -> dict[str, torch.Tensor]:
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
    frames = getattr(vision, "num_frames", None)  # of a model of videos
    return {"pixel_values": torch.zeros(1, *([frames] if frames else []), *image.size)}


def _image_tokens(module: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The places in the text, [1, N], that a language model fills with what it sees in an image;
    N is 0 for all others."""
    config: Any = module.config
    token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
    places = torch.zeros(1, 0, dtype=torch.long, device=next(module.parameters()).device)
    if token is None or "pixel_values" not in batch or not hasattr(module, "get_image_features"):
        return places
    get: Any = module.get_image_features
    takes = inspect.signature(get).parameters
    with torch.no_grad():
        seen = get(**{name: value for name, value in batch.items() if name in takes})
    seen = getattr(seen, "pooler_output", seen)
    parts = [seen] if isinstance(seen, torch.Tensor) else seen
    count = sum(part.numel() // part.shape[-1] for part in parts)
    return places.new_full((1, count), token)


def _sound(config: Any, name: str) -> tuple[int, ...]:
    """Shape of a sample of sound, without the batch: the first form whose sizes are configured."""
    config = getattr(config, "audio_config", config)
    for keys, shape in _SOUND[name]:
        sizes = [getattr(config, key, None) for key in keys]
        if all(isinstance(size, int) for size in sizes):
            return shape(*sizes)
    return (16000,)  # a second of plain samples


def _image_input(vision: Any, directory: Path | None) -> ImageInput:
    processor: dict[str, Any] = {}
    if directory is not None and (directory / "preprocessor_config.json").is_file():
        processor = json.loads((directory / "preprocessor_config.json").read_text())
    size = getattr(vision, "image_size", None)
    size = size or getattr(getattr(vision, "backbone_config", None), "image_size", None)
    if size is None:  # it takes any; its processor knows what it is used with
        usual = processor.get("size") or {}
        side = usual.get("shortest_edge", _IMAGE)
        size = (usual.get("height", side), usual.get("width", side))
    height, width = (size, size) if isinstance(size, int) else size
    channels = getattr(vision, "num_channels", 3)
    crop = processor.get("crop_size") or {}
    resize = (processor.get("size") or {}).get("shortest_edge", height)
    resample = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
    return ImageInput(
        (channels, height, width),
        tuple(processor.get("image_mean", [0.5] * channels)),
        tuple(processor.get("image_std", [0.5] * channels)),
        resample.get(processor.get("resample", 2), "bilinear"),
        float(crop.get("height", height)) / resize if crop else 1.0,
        processor or None,
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars or load reports of transformers: pela says what matters itself."""
    verbosity = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(verbosity)
        if bars:
            transformers.logging.enable_progress_bar()
