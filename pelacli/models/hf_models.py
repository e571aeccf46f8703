"""Everything pela knows about transformers: build, weights, config, inputs, head."""

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

from pelacli.aliases import closest
from pelacli.errors import RequestError
from pelacli.models.types import ImageInput, TextInput

_CARRIED = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_NOT_CARRIED = {"config.json", "pela.json"}
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
_CARRY_LIMIT = 64 * 2**20  # bytes; anything larger is data, not configuration


def is_type(name: str) -> bool:
    """Whether transformers knows ``name`` as a model type ("bert", "gpt2", …)."""
    return name in transformers.CONFIG_MAPPING


def types() -> list[str]:
    """All model types of transformers."""
    return list(transformers.CONFIG_MAPPING)


def build_random(model_type: str, model_args: dict[str, Any], num_classes: int | None) -> nn.Module:
    """A model of this type with its default configuration, randomly initialised.

    Raises:
        RequestError: model_args that the type doesn't have, or that don't fit.
    """
    _refuse_unknown(transformers.AutoConfig.for_model(model_type), model_args, model_type)
    try:
        config = transformers.AutoConfig.for_model(model_type, **model_args)
        return from_config(_with_classes(config, num_classes))
    except Exception as error:  # each architecture checks in its own way
        raise RequestError(f"{model_type}: model_args don't fit: {_first(error)}") from None


def open_directory(
    directory: Path, *, random: bool, model_args: dict[str, Any], num_classes: int | None
) -> tuple[nn.Module, list[str]]:
    """Open a model directory.

    Returns:
        (the module, names of parameters that the checkpoint lacks and are fresh).

    Raises:
        RequestError: config or weights can't be used.
    """
    config = _with_classes(read_config(directory, model_args), num_classes)
    if random:
        return from_config(config), []
    if not any(directory.glob("*.safetensors")):
        raise RequestError(
            f"{directory}: has no safetensors weights, and pela never unpickles; convert them, "
            "or use --weights random"
        )
    cls = _class(config)
    with _quiet():
        try:
            module, info = cls.from_pretrained(
                directory,
                config=config,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=num_classes is not None,
            )
        except Exception as error:  # transformers raises whatever its file readers raise
            raise RequestError(
                f"{directory}: the weights can't be loaded: {_first(error)}"
            ) from None
    return module, sorted(info["missing_keys"])


def read_config(directory: Path, model_args: dict[str, Any]) -> Any:
    """config.json as transformers reads it."""
    try:
        plain = transformers.AutoConfig.from_pretrained(directory)
        _refuse_unknown(plain, model_args, str(directory))
        if not model_args:
            return plain
        return transformers.AutoConfig.from_pretrained(directory, **model_args)
    except RequestError:
        raise
    except Exception as error:
        raise RequestError(f"{directory}/config.json: {_first(error)}") from None


def from_config(config: Any) -> nn.Module:
    """The class that the config names, built from it, with fresh weights."""
    cls = _class(config)
    config.architectures = config.architectures or []  # Funnel's two are looked for in it
    build = cls._from_config if hasattr(cls, "_from_config") else cls.from_config
    module: nn.Module = build(config)
    return module


def rebuild(directory: Path) -> nn.Module:
    """The dense architecture that config.json describes, its weights on "meta".

    Buffers that no checkpoint holds (positions, rotary frequencies) have their values.
    """
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        module = from_config(read_config(directory, {}))
    module.tie_weights()  # type: ignore[operator]  # built without memory, shared weights come apart
    if any(b.is_meta for b in module.buffers()):  # computed from a weight, so only the long way
        return from_config(read_config(directory, {}))
    return module


def config(module: nn.Module) -> dict[str, Any]:
    """config.json as transformers writes it, with the class to load it by."""
    module.config.architectures = [type(module).__name__]  # type: ignore[union-attr]
    text: str = module.config.to_json_string()  # type: ignore[union-attr,operator]
    result: dict[str, Any] = json.loads(text)
    return result


def inputs(module: nn.Module, directory: Path | None) -> ImageInput | TextInput:
    """What a sample of this model looks like, from its own files where there are any."""
    config: Any = module.config
    takes = _arguments(module)
    if "pixel_values" in takes and "input_ids" not in takes:
        return _image_input(getattr(config, "vision_config", config), directory)
    tokenizer = None
    if directory is not None and any(directory.glob("tokenizer*")):
        with _quiet():
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


def head(module: nn.Module) -> frozenset[str]:
    """Names of the modules that make the output: the output embeddings, and what is no backbone."""
    names = set()
    get: Any = getattr(module, "get_output_embeddings", lambda: None)
    output = get()
    base = getattr(module, "base_model", module)
    for name, child in module.named_modules():
        if output is not None and child is output:
            names.add(name)
    if base is not module:
        names |= {name for name, child in module.named_children() if child is not base}
    return frozenset(names)


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give the model a fresh classifier in the place of the one it has."""
    old = getattr(module, "classifier", None)
    if not isinstance(old, nn.Linear):
        raise RequestError(
            f"{type(module).__name__}: has no classifier to exchange; start from a checkpoint with "
            "a classification head"
        )
    module.classifier = nn.Linear(old.in_features, num_classes, old.bias is not None)
    module.num_labels = module.config.num_labels = num_classes  # type: ignore[union-attr,assignment]


def carried(directory: Path) -> dict[str, bytes]:
    """Processors, tokenizers and the like: the small files beside the weights."""
    found = {}
    for path in sorted([*directory.glob("*"), *directory.glob("*/*")]):
        name = path.relative_to(directory).as_posix()
        if (
            path.suffix in _CARRIED
            and path.is_file()
            and name not in _NOT_CARRIED
            and not name.endswith(".index.json")
            and not any(part.startswith(".") for part in Path(name).parts)
            and path.stat().st_size <= _CARRY_LIMIT
        ):
            found[name] = path.read_bytes()
    return found


def example(module: nn.Module, inputs: ImageInput | TextInput) -> dict[str, torch.Tensor]:
    """A sample to count FLOPs at: an image, 128 tokens, a second of sound, or what of these the
    model wants together."""
    config: Any = module.config
    takes, device = _arguments(module), next(module.parameters()).device
    batch: dict[str, torch.Tensor] = {}
    if "pixel_values" in takes and (isinstance(inputs, ImageInput) or _sees(module)):
        batch |= {k: v.to(device) for k, v in _image(config, takes, inputs).items()}
    for name in takes & _SOUND.keys():
        batch[name] = torch.zeros(1, *_sound(config, name), device=device)
    wants_text = isinstance(inputs, TextInput) and not batch.keys() & _SOUND.keys()
    if "input_ids" in takes and (wants_text or hasattr(config, "text_config")):
        ids = _token_ids(getattr(config, "text_config", config), device)
        seen = _image_tokens(module, batch)
        ids = torch.cat([seen, ids], dim=1)
        batch["input_ids"] = ids
        if "attention_mask" in takes:
            batch["attention_mask"] = torch.ones_like(ids)
        if "mm_token_type_ids" in takes:
            batch["mm_token_type_ids"] = torch.zeros_like(ids)
            batch["mm_token_type_ids"][:, : seen.shape[1]] = 1
        if "bbox" in takes:  # of each word on its page
            batch["bbox"] = ids.new_zeros(*ids.shape, 4)
    if "decoder_input_ids" in takes:
        batch["decoder_input_ids"] = _token_ids(getattr(config, "decoder", config), device)
    return batch


def _arguments(module: nn.Module) -> set[str]:
    """What the module's forward takes by name."""
    return set(inspect.signature(module.forward).parameters)


def _longest(text: Any) -> int:
    """Tokens that a model of texts takes; 0 where no number is set (XLNet says −1)."""
    return max(0, int(getattr(text, "max_position_embeddings", 0) or 0))


def _token_ids(text: Any, device: torch.device) -> torch.Tensor:
    """128 tokens, or as many as fit, the end of text at the end: models that pool there look for
    it."""
    ids = torch.zeros(1, min(_TOKENS, _longest(text) or _TOKENS), dtype=torch.long, device=device)
    end = getattr(text, "eos_token_id", 0) or 0
    end = end[0] if isinstance(end, list) else end
    ids[:, -1] = min(end, int(getattr(text, "vocab_size", end + 1)) - 1)
    return ids


def _sees(module: nn.Module) -> bool:
    """Whether a model of texts takes images too, and not as an extra that it can do without."""
    config: Any = module.config
    wanted = inspect.signature(module.forward).parameters["pixel_values"]
    own = hasattr(config, "vision_config") or hasattr(config, "image_size")
    return own or wanted.default is inspect.Parameter.empty


def _image(config: Any, takes: set[str], inputs: Any) -> dict[str, torch.Tensor]:
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
    size = inputs.size if isinstance(inputs, ImageInput) else _image_input(vision, None).size
    frames = getattr(vision, "num_frames", None)  # of a model of videos
    return {"pixel_values": torch.zeros(1, *([frames] if frames else []), *size)}


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
    )


def _refuse_unknown(config: Any, model_args: dict[str, Any], where: str) -> None:
    """transformers would keep a misspelt setting and do nothing with it."""
    for name in model_args:
        if not hasattr(config, name) and not hasattr(config, f"_{name}"):
            near = closest(name, list(config.to_dict()), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise RequestError(f"{where}: model_args: its configuration has no {name!r}{hint}")


def _with_classes(config: Any, num_classes: int | None) -> Any:
    if num_classes is not None:
        config.num_labels = num_classes
    return config


def _class(config: Any) -> Any:
    """The class a config names; AutoModel where it names none that exists here."""
    named = [getattr(transformers, name, None) for name in config.architectures or []]
    return next((cls for cls in named if cls is not None), transformers.AutoModel)


def _first(error: Exception) -> str:
    """The one informative line of a library's long message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return (lines[1] if len(lines) > 1 and lines[0].endswith(":") else lines[0])[:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
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
