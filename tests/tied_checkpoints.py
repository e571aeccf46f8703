"""Tiny checkpoints whose weights are tied or apart, whatever their configuration says."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import transformers
from torch import nn

WIDTHS = {"vocab_size": 60, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
PLAIN = WIDTHS | {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
}  # fmt: skip
PAIR = WIDTHS | {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64,
    "decoder_start_token_id": 2,
}  # fmt: skip
T5 = WIDTHS | {"d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2,
               "decoder_start_token_id": 1}  # fmt: skip
FAMILIES = {
    "T5ForConditionalGeneration": ("t5", T5),
    "GPT2LMHeadModel": ("gpt2", WIDTHS | {"n_embd": 32, "n_layer": 2, "n_head": 2}),
    "LlamaForCausalLM": ("llama", PLAIN | {"num_key_value_heads": 2}),
    "BertForMaskedLM": ("bert", PLAIN),
    "AlbertForMaskedLM": ("albert", PLAIN | {"embedding_size": 16}),
    "BartForConditionalGeneration": ("bart", PAIR),
    "MarianMTModel": ("marian", PAIR | {"decoder_vocab_size": 60}),
}


def checkpoint(name: str, path: Path, stored: str, says: bool | None) -> Path:
    """A directory whose weights are tied or apart, and whose config.json says so or otherwise."""
    torch.manual_seed(0)
    family, settings = FAMILIES[name]
    tied = {"tie_word_embeddings": stored == "tied"}
    config = transformers.AutoConfig.for_model(family, **settings | tied)
    model = getattr(transformers, name)(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(path)
    config = json.loads((path / "config.json").read_text())
    config.pop("tie_word_embeddings", None)
    if says is not None:
        config["tie_word_embeddings"] = says
    (path / "config.json").write_text(json.dumps(config))
    return path


def logits(model: nn.Module) -> torch.Tensor:
    ids = torch.arange(3, 13)[None]
    inputs = {"input_ids": ids}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = ids
    with torch.no_grad():
        return model(**inputs).logits
