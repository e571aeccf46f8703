"""Two modules of transformers that make an output depend on the other samples of its batch, or on
chance, each with a subclass that does not."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.models.blip.modeling_blip_text import BlipTextSelfAttention
from transformers.models.vilt.modeling_vilt import ViltEmbeddings


class MaskedCrossAttention(BlipTextSelfAttention):  # type: ignore[misc]
    """Cross-attention that heeds the question's mask. transformers 5.24 loses it on the way, so
    that an answer depends on how long the other questions of its batch are."""

    def forward(self, hidden_states: Tensor, *, attention_mask: Any = None, **kwargs: Any) -> Any:
        if kwargs.get("encoder_attention_mask") is None:
            kwargs["encoder_attention_mask"] = attention_mask
        return super().forward(hidden_states, attention_mask=attention_mask, **kwargs)


class OrderedEmbeddings(ViltEmbeddings):  # type: ignore[misc]
    """The patches in their order. transformers shuffles them anew in each pass: the outputs are the
    same, but a teacher's features and a student's would be those of different patches."""

    def visual_embed(
        self, pixel_values: Tensor, pixel_mask: Tensor, max_image_length: int = 200
    ) -> Any:
        if max_image_length > 0 or not bool(pixel_mask.all()):
            return super().visual_embed(pixel_values, pixel_mask, max_image_length)
        patches = self.patch_embeddings(pixel_values)
        side = self.config.image_size // self.config.patch_size
        table = self.position_embeddings[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        size = patches.shape[2:]
        positions = F.interpolate(table, size, mode="bilinear", align_corners=True)
        patches = (patches + positions).flatten(2).transpose(1, 2)
        first = (self.cls_token + self.position_embeddings[:, :1]).expand(len(patches), -1, -1)
        embedded = self.dropout(torch.cat([first, patches], 1))
        mask = torch.ones(embedded.shape[:2], dtype=torch.long, device=embedded.device)
        return embedded, mask, None


_VILTS = (
    "ViltModel",
    "ViltForMaskedLM",
    "ViltForQuestionAnswering",
    "ViltForImageAndTextRetrieval",
)


def repair(module: nn.Module) -> None:
    """Exchange these two modules in a BLIP that answers questions, or in a ViLT, for their
    subclasses. Any other model, and one that is repaired already, stays as it is."""
    kind = type(module).__name__
    if kind == "BlipForQuestionAnswering":
        decoder: Any = module.text_decoder
        for layer in decoder.bert.encoder.layer:
            attention = layer.crossattention
            if type(attention.self) is BlipTextSelfAttention:
                attention.self = _as_subclass(attention.self, MaskedCrossAttention)
    elif kind in _VILTS:
        encoder: Any = getattr(module, "vilt", module)
        if type(encoder.embeddings) is ViltEmbeddings:
            encoder.embeddings = _as_subclass(encoder.embeddings, OrderedEmbeddings)


def _as_subclass(module: nn.Module, subclass: type[nn.Module]) -> nn.Module:
    """An instance of the subclass with all that the module has: the very parameters and children
    (which may be low-rank), hooks, settings and training mode."""
    replacement = subclass.__new__(subclass)
    vars(replacement).update(vars(module))
    return replacement
