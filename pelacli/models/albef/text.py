"""ALBEF's text side, of transformers' BERT layers: an encoder whose upper part sees the image, and
a decoder that writes answers. Module names are those of the original checkpoints."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertEmbeddings, BertLayer, BertOnlyMLMHead

from pelacli.models.albef.config import Config


class Bert(nn.Module):
    """Embeddings and layers; those from ``cross_from`` on attend to other states as well.

    Args:
        depth: number of layers.
        width_seen: width of the states that the cross-attention reads.
        causal: each position sees only those before it.
    """

    def __init__(
        self, config: Config, depth: int, cross_from: int, width_seen: int, causal: bool = False
    ) -> None:
        super().__init__()
        self.causal = causal
        plain, crossing = _bert_config(config, depth), _bert_config(config, depth, cross=True)
        self.embeddings = BertEmbeddings(plain)
        layers = [BertLayer(plain if i < cross_from else crossing, i) for i in range(depth)]
        for layer in layers[cross_from:]:
            # transformers allows cross-attention in decoders only, and makes their self-attention
            # causal where no mask is given. Here a mask is always given.
            layer.attention.self.is_causal = False
            seen = layer.crossattention.self
            if width_seen != config.text_width:
                seen.key = nn.Linear(width_seen, config.text_width)
                seen.value = nn.Linear(width_seen, config.text_width)
        self.encoder = nn.ModuleDict({"layer": nn.ModuleList(layers)})

    @property
    def layers(self) -> nn.ModuleList:
        return cast(nn.ModuleList, self.encoder["layer"])

    def forward(
        self,
        states: Tensor,
        mask: Tensor,
        seen: Tensor | None = None,
        seen_mask: Tensor | None = None,
        *,
        first: int = 0,
        last: int | None = None,
    ) -> Tensor:
        """Run the layers ``first`` to ``last`` (exclusive).

        Args:
            states: token numbers [B, T] (then they are embedded first), or hidden states [B, T, D].
            mask: [B, T], 1 where there is a token and 0 at padding.
            seen: [B, S, D] what the cross-attention reads, ``seen_mask`` [B, S] its mask (all
                of it, where there is none).

        Returns:
            hidden states [B, T, D].
        """
        if not states.is_floating_point():
            states = self.embeddings(states)
        attends = additive(mask, states.dtype, self.causal)
        sees = None if seen_mask is None else additive(seen_mask, states.dtype)
        for layer in self.layers[first:last]:
            states = layer(states, attends, seen, encoder_attention_mask=sees)
        return states


class TextModel(nn.Module):
    """A `Bert`, with a head that names words where ``head`` is set.

    The head's last matrix is the table of word embeddings.
    """

    def __init__(self, bert: Bert, config: Config, head: bool) -> None:
        super().__init__()
        self.bert = bert
        if head:
            self.cls = BertOnlyMLMHead(_bert_config(config, 1))
            self.tie()

    def tie(self) -> None:
        """Make the head read the embeddings (again, after a copy or a build without memory)."""
        if hasattr(self, "cls"):
            words = self.cls.predictions
            # Not by assignment, which accelerate's build without memory answers with a copy.
            table = self.bert.embeddings.word_embeddings.weight
            words.decoder._parameters.update(weight=table, bias=words.bias)

    def words(self, states: Tensor) -> Tensor:
        """Logits of the vocabulary: [..., D] → [..., V]."""
        return cast(Tensor, self.cls(states))


def additive(mask: Tensor, dtype: torch.dtype, causal: bool = False) -> Tensor:
    """[B, S] of ones and zeros → [B, 1, 1 or S, S] to be added to attention scores."""
    allowed = mask[:, None, None, :].bool()
    if causal:
        length = mask.shape[1]
        allowed = allowed & torch.ones(length, length, device=mask.device).tril().bool()
    return torch.zeros(allowed.shape, dtype=dtype, device=mask.device).masked_fill(
        ~allowed, torch.finfo(dtype).min
    )


def initialise(module: nn.Module) -> None:
    """BERT's start: normal of deviation 0.02, biases 0, norms 1."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=0.02)
        if isinstance(part, nn.Linear) and part.bias is not None:
            nn.init.zeros_(part.bias)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            with torch.no_grad():
                part.weight[part.padding_idx].zero_()
        if isinstance(part, nn.LayerNorm):
            part.reset_parameters()


def _bert_config(config: Config, depth: int, cross: bool = False) -> Any:
    return BertConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.text_width,
        num_hidden_layers=depth,
        num_attention_heads=config.text_heads,
        intermediate_size=config.text_hidden,
        max_position_embeddings=config.max_positions,
        pad_token_id=config.pad_token,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
        is_decoder=cross,
        add_cross_attention=cross,
        attn_implementation="sdpa",
    )
