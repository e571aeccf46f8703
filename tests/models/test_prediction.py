"""What a pass through a model keeps."""

from __future__ import annotations

import pytest
import torch
import transformers

from pelacli.models import prediction, token_head


@pytest.mark.parametrize("family", ["gpt2", "llama", "t5"])
def test_no_keys_and_values_are_kept_for_tokens_that_will_not_be_generated(family, monkeypatch):
    """Over the layers they would be the most that a pass without gradients holds."""
    made = []
    own = transformers.DynamicCache.__init__
    monkeypatch.setattr(
        transformers.DynamicCache, "__init__", lambda *a, **k: (made.append(1), own(*a, **k))[1]
    )
    small = {"vocab_size": 20, "num_hidden_layers": 1, "num_layers": 1, "n_layer": 1, "d_model": 8,
             "hidden_size": 8, "n_embd": 8, "num_attention_heads": 2, "n_head": 2, "num_heads": 2,
             "intermediate_size": 8, "d_ff": 8, "d_kv": 4, "num_key_value_heads": 2,
             "decoder_start_token_id": 0}  # fmt: skip
    allowed = set(transformers.AutoConfig.for_model(family).to_dict()) | {"decoder_start_token_id"}
    config = transformers.AutoConfig.for_model(
        family, **{k: v for k, v in small.items() if k in allowed}
    )
    kind = "Seq2SeqLM" if family == "t5" else "CausalLM"
    model = getattr(transformers, f"AutoModelFor{kind}").from_config(config).eval()
    inputs = {"input_ids": torch.arange(6)[None] % 20}
    prediction.predict(model, inputs)
    head = token_head.token_head(model, inputs)
    head.hidden(inputs)
    assert not made
