"""What pela asks of a library, for ALBEF; see `pelacli.models.adapters.OwnAdapter`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from torch import Tensor, nn

from pelacli.errors import RequestError
from pelacli.models import checkpoint_file, config_file
from pelacli.models.albef import checkpoint, network
from pelacli.models.albef import config as albef_config
from pelacli.models.albef.network import Albef
from pelacli.models.albef.view import PairModel
from pelacli.models.inputs import ImageInput, PairInput, TextInput
from pelacli.models.without_values import on_meta

# Of the pair and the answer that FLOPs are counted at: ALBEF cuts captions at 25 tokens.
_TOKENS, _ANSWER = 25, 6


def build(
    name: str, *, model_args: dict[str, Any], num_classes: int | None, weights: Path | None
) -> nn.Module:
    """ALBEF with fresh weights, or from an original checkpoint (.pth or safetensors).

    Args:
        model_args: fields of `config.Config`; with ``weights``, in place of what the file tells:
            ``image_size`` resamples the positions, ``variant`` makes that variant of what is there.
    """
    if weights is None:
        return Albef(_with_classes(albef_config.from_json(model_args, "model_args"), num_classes))
    settings = dict(model_args)
    variant = settings.pop("variant", None)
    albef = checkpoint.open_file(weights, settings)
    if variant not in (None, albef.config.variant) or num_classes is not None:
        config = replace(albef.config, variant=variant or albef.config.variant)
        classes = _with_classes(config, num_classes).num_classes
        albef = network.as_variant(albef, config.variant, num_classes=classes)
    return albef


def open_directory(directory: Path, *, random: bool, num_classes: int | None) -> nn.Module:
    """The dense model of a directory with config.json and safetensors."""
    config = _config(directory)
    files = sorted(directory.glob("*.safetensors"))
    if random or not files:
        if not random:
            raise RequestError(f"{directory}: has no safetensors weights; use --weights random")
        return Albef(_with_classes(config, num_classes))
    albef = _empty(config)
    tensors = {name: t for file in files for name, t in checkpoint_file.read(file).items()}
    checkpoint.fill(albef, checkpoint.from_original(tensors, str(directory)), directory)
    if num_classes is not None and num_classes != config.num_classes:
        set_classes(albef, num_classes)
    return albef


def rebuild(directory: Path) -> nn.Module:
    """The dense architecture that config.json describes, its weights without values."""
    return _empty(_config(directory))


def config(module: nn.Module) -> dict[str, Any]:
    """config.json: the sizes and the variant."""
    return cast(Albef, module).config.to_json()


def inputs(module: nn.Module, directory: Path | None) -> PairInput:
    """Square images as CLIP normalises them (ALBEF's own way), and texts."""
    config = cast(Albef, module).config
    size = (3, config.image_size, config.image_size)
    image = ImageInput(size, OPENAI_CLIP_MEAN, OPENAI_CLIP_STD)
    tokenizer = _tokenizer(directory)
    # Answers are written between the marks that its encoder's texts have.
    marks = None if tokenizer is None else (tokenizer.cls_token_id, tokenizer.sep_token_id)
    if marks is not None and None in marks:
        marks = None
    return PairInput(image, TextInput(tokenizer, config.max_positions, marks=marks))


def example(module: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """An image with 25 tokens; with an answer, where answers are decoded."""
    config = cast(Albef, module).config
    device = next(module.parameters()).device
    ids = torch.zeros(1, min(_TOKENS, config.max_positions), dtype=torch.long, device=device)
    image = torch.zeros(1, 3, config.image_size, config.image_size, device=device)
    pair = {"pixel_values": image, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return pair | ({"decoder_input_ids": ids[:, :_ANSWER]} if config.variant == "vqa" else {})


def head(module: nn.Module) -> frozenset[str]:
    """The heads on top of the encoders: projections, matching, classes, words."""
    return network.head_names(module)


def num_classes(module: nn.Module) -> int | None:
    """Classes of the entailment variant."""
    config = cast(Albef, module).config
    return config.num_classes if config.variant == "entailment" else None


def set_classes(module: nn.Module, num_classes: int) -> None:
    """Give the entailment variant a fresh classifier."""
    albef = cast(Albef, module)
    albef.config = _with_classes(albef.config, num_classes)
    weight = albef.visual_encoder.pos_embed
    fresh = network.classifier(albef.config.text_width, num_classes)
    albef.cls_head = fresh.to(weight.device, weight.dtype)


def pairs(module: nn.Module) -> PairModel:
    """What tasks on images with texts ask of it."""
    return PairModel(module)


def _empty(config: albef_config.Config) -> Albef:
    with on_meta():
        albef = Albef(config)
    albef.tie()
    checkpoint.fill_buffers(albef)
    return albef


def _config(directory: Path) -> albef_config.Config:
    file = directory / "config.json"
    try:
        return albef_config.from_json(config_file.read(directory, "restore the file"), str(file))
    except (OSError, ValueError, AttributeError) as error:
        raise RequestError(f"{file}: not a configuration ({error})") from None


def _with_classes(config: albef_config.Config, num_classes: int | None) -> albef_config.Config:
    if num_classes is None:
        return config
    if config.variant != "entailment":
        raise RequestError(
            f"num_classes: ALBEF's {config.variant!r} has no classifier; "
            "set model_args.variant = 'entailment', or leave it out"
        )
    return replace(config, num_classes=num_classes)


def _tokenizer(directory: Path | None) -> Any:
    """From the model's own files; ALBEF's is that of bert-base-uncased."""
    if directory is None:
        return None
    if any(directory.glob("tokenizer*")):
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if (directory / "vocab.txt").is_file():
        from transformers import BertTokenizer

        return BertTokenizer(str(directory / "vocab.txt"))
    return None
