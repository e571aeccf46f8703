"""ALBEF: an image encoder, a text encoder, and a fusion encoder in which the text sees the image.

Li et al., "Align before Fuse", NeurIPS 2021. One class for all variants; module names are those of
the original checkpoints (the text side of fine-tuned ones lies a level deeper here).
"""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pelacli.errors import RequestError
from pelacli.models.albef.config import LIBRARY, PARTS, Config
from pelacli.models.albef.text import Bert, TextModel, initialise
from pelacli.models.without_values import on_meta


class Albef(nn.Module):
    """The network. Shapes: B samples, P image positions (class token first), T text positions.

    Attributes:
        visual_encoder: timm's ViT without a head; its normed tokens are the image's states.
        text_encoder: layers 0 to ``fusion_layer`` see the text alone, the rest the image too.
        vision_proj, text_proj: class token → the common space; ``temp`` is its temperature.
        itm_head: fused class token → (no match, match).
        cls_head: fused class token → classes (entailment).
        text_decoder: writes answers, seeing the fused question (vqa).
        momentum: slow copies, while it trains with them; see `albef.momentum`.
    """

    pela_model = LIBRARY

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        parts = PARTS[config.variant]
        width, seen = config.text_width, config.vision_width
        self.visual_encoder = VisionTransformer(
            img_size=config.image_size,
            patch_size=config.patch_size,
            embed_dim=config.vision_width,
            depth=config.vision_depth,
            num_heads=config.vision_heads,
            num_classes=0,
        )
        bert = Bert(config, config.text_depth, config.fusion_layer, seen)
        self.text_encoder = TextModel(bert, config, "mlm_head" in parts)
        if "vision_proj" in parts:
            self.vision_proj = nn.Linear(config.vision_width, config.embed_dim)
            self.text_proj = nn.Linear(width, config.embed_dim)
            self.temp = nn.Parameter(torch.tensor(0.07))
            self.itm_head = nn.Linear(width, 2)
        if "cls_head" in parts:
            self.cls_head = classifier(width, config.num_classes)
        if "text_decoder" in parts:
            decoder = Bert(config, config.decoder_depth, 0, width, causal=True)
            self.text_decoder = TextModel(decoder, config, True)
        for name, child in self.named_children():
            if name != "visual_encoder":
                initialise(child)

    def tie(self) -> None:
        """Share again what is shared, after a build without memory."""
        for part in (self.text_encoder, getattr(self, "text_decoder", None)):
            if part is not None:
                part.tie()

    def embed_images(self, images: Tensor) -> Tensor:
        """Images [B, 3, H, W] → states [B, P, D]."""
        return cast(Tensor, self.visual_encoder.forward_features(images))

    def embed_texts(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token numbers and mask, both [B, T] → states [B, T, D] that know of no image."""
        bert = self.text_encoder.bert
        return cast(Tensor, bert(ids, mask, last=self.config.fusion_layer))

    def fuse(self, text: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """States of texts [B, T, D] with their mask, and of images [B, P, D] → [B, T, D]."""
        bert = self.text_encoder.bert
        return cast(Tensor, bert(text, mask, image, first=self.config.fusion_layer))

    def image_features(self, image: Tensor) -> Tensor:
        """States [B, P, D] → unit vectors [B, E] of the common space, in float32 or better."""
        return F.normalize(_wide(self.vision_proj(image[:, 0])), dim=-1)

    def text_features(self, text: Tensor) -> Tensor:
        """States [B, T, D] → unit vectors [B, E] of the common space, in float32 or better."""
        return F.normalize(_wide(self.text_proj(text[:, 0])), dim=-1)

    def match(self, text: Tensor, mask: Tensor, image: Tensor) -> Tensor:
        """As `fuse`; logits [B, 2] of (no match, match). Their difference is the score."""
        return cast(Tensor, self.itm_head(self.fuse(text, mask, image)[:, 0]))

    def forward(
        self,
        pixel_values: Tensor,
        input_ids: Tensor,
        attention_mask: Tensor,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """One pass over pairs of an image and a text.

        Returns:
            "last_hidden_state" [B, T, D], the fused text, and "logits" where the variant has a
            head for the pass: classes [B, C]; or the answers' words [B, A, V], if answers [B, A]
            were given.
        """
        image = self.embed_images(pixel_values)
        text = self.embed_texts(input_ids, attention_mask)
        fused = self.fuse(text, attention_mask, image)
        result = {"last_hidden_state": fused}
        if self.config.variant == "entailment":
            result["logits"] = self.cls_head(fused[:, 0])
        if self.config.variant == "vqa" and decoder_input_ids is not None:
            if decoder_attention_mask is None:
                decoder_attention_mask = torch.ones_like(decoder_input_ids)
            result["logits"] = self.decode(
                decoder_input_ids, decoder_attention_mask, fused, attention_mask
            )
        return result

    def decode(self, ids: Tensor, mask: Tensor, question: Tensor, question_mask: Tensor) -> Tensor:
        """Answers [B, A] under fused questions [B, T, D] → logits [B, A, V] of each next word."""
        decoder = self.text_decoder
        return decoder.words(decoder.bert(ids, mask, question, question_mask))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, as timm's models can too."""
        self.visual_encoder.set_grad_checkpointing(enable)
        for side in (self.text_encoder, getattr(self, "text_decoder", None)):
            for layer in side.bert.layers if side is not None else []:
                layer.gradient_checkpointing = enable
                layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)

    def no_weight_decay(self) -> set[str]:
        """Parameters that decay would only harm: positions, the class token, the temperature."""
        names = {f"visual_encoder.{name}" for name in ("pos_embed", "cls_token")}
        return names | ({"temp"} if hasattr(self, "temp") else set())


def classifier(width: int, classes: int) -> nn.Sequential:
    """ALBEF's classifier of fused states, freshly initialised."""
    head = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))
    initialise(head)
    return head


def head_names(network: nn.Module) -> frozenset[str]:
    """Modules that make outputs; they stay dense."""
    names = ("vision_proj", "text_proj", "itm_head", "cls_head", "text_encoder.cls",
             "text_decoder.cls")  # fmt: skip
    present = {name for name, _ in network.named_modules()}
    return frozenset(name for name in names if name in present)


def resize(network: Albef, image_size: int) -> None:
    """Let the network take images of another size: its positions are resampled, in place."""
    config = replace(network.config, image_size=image_size)
    vision = network.visual_encoder
    if image_size == network.config.image_size:
        return
    positions = resampled(vision.pos_embed.detach(), config.patches)
    vision.pos_embed = nn.Parameter(positions, vision.pos_embed.requires_grad)
    vision.patch_embed.set_input_size(image_size)
    network.config = config


def resampled(positions: Tensor, patches: int) -> Tensor:
    """Position embeddings [1, 1 + n·n, D] for ``patches``² patches: bicubic, class token kept.

    Without antialiasing, as ALBEF resamples its own.
    """
    result = resample_abs_pos_embed(positions, [patches, patches], antialias=False)
    return cast(Tensor, result)


def as_variant(
    network: Albef, variant: str, *, image_size: int | None = None, num_classes: int | None = None
) -> Albef:
    """The network of a variant, made of the modules of another one, low-rank or dense.

    What both have is taken over, not copied. An answer decoder starts from the upper text layers
    (all that have cross-attention), the embeddings and the masked-word head, as ALBEF's does. A
    classifier starts afresh.

    Raises:
        RequestError: the network lacks a part that the variant needs.
    """
    config = replace(network.config, variant=variant)
    if num_classes is not None:
        config = replace(config, num_classes=num_classes)
    if variant == "vqa" and network.config.variant != "vqa":
        config = replace(config, decoder_depth=config.text_depth - config.fusion_layer)
    fresh = variant == "entailment" and (
        network.config.variant != variant or config.num_classes != network.config.num_classes
    )
    with on_meta():
        result = Albef(config)
    some = network.visual_encoder.pos_embed
    for name, _ in list(result.named_children()):
        if name == "text_decoder" and network.config.variant != "vqa":
            result.text_decoder = _decoder(network, result)
        elif name == "text_encoder":
            result.text_encoder = _text_encoder(network, "mlm_head" in PARTS[variant])
        elif name == "cls_head" and fresh:
            head = classifier(config.text_width, config.num_classes)
            result.cls_head = head.to(some.device, some.dtype)
        else:
            setattr(result, name, _part(network, name, variant))
    if hasattr(result, "temp"):
        result.temp = network.temp
    result.tie()
    resize(result, image_size or config.image_size)
    return result.train(network.training)


def _text_encoder(network: Albef, head: bool) -> TextModel:
    if head:
        _part(network, "text_encoder.cls", "pretrain")
    result = TextModel(network.text_encoder.bert, network.config, False)
    if head:
        result.cls = network.text_encoder.cls
    return result


def _decoder(network: Albef, result: Albef) -> TextModel:
    decoder = result.text_decoder
    first = network.config.fusion_layer
    if first == network.config.text_depth:
        raise RequestError("variant 'vqa': the model has no fusion layers to make a decoder of")
    if network.config.vision_width != network.config.text_width:  # the decoder reads the question
        raise RequestError(
            "variant 'vqa': a decoder is made of fusion layers only where vision_width is "
            "text_width; train it from the start with model_args.variant = 'vqa'"
        )
    bert = network.text_encoder.bert
    decoder.bert.embeddings = copy.deepcopy(bert.embeddings)
    decoder.bert.encoder["layer"] = copy.deepcopy(bert.layers[first:])
    decoder.cls = copy.deepcopy(_part(network, "text_encoder.cls", "vqa"))
    return decoder


def _part(network: Albef, name: str, variant: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError:
        raise RequestError(
            f"variant {variant!r}: the model is ALBEF's {network.config.variant!r} and has no "
            f"{name}; start from a pre-training checkpoint"
        ) from None


def _wide(features: Tensor) -> Tensor:
    return features if features.dtype == torch.float64 else features.float()
