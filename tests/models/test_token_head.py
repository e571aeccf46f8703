"""Language models in two parts give what the whole gives; other models have no such head."""

from __future__ import annotations

import pytest
import torch

from pelacli.models import opening
from pelacli.models.prediction import predict
from pelacli.models.token_head import token_head

TINY = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 100,
}  # fmt: skip
KEYS = {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 100}
OPT = {
    "hidden_size": 32, "word_embed_proj_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
    "ffn_dim": 64, "vocab_size": 100,
}  # fmt: skip
T5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 100}


def language_model(kind, args, cls):
    from transformers import AutoConfig

    config = AutoConfig.for_model(kind, **args)
    torch.manual_seed(0)
    model = getattr(__import__("transformers"), cls)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # a fresh model's logits are almost all alike
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(
    ("kind", "args", "cls"),
    [
        ("llama", TINY | {"num_key_value_heads": 2}, "LlamaForCausalLM"),
        ("gpt2", GPT2, "GPT2LMHeadModel"),
        ("gemma2", TINY | KEYS, "Gemma2ForCausalLM"),  # caps its logits
        ("granite", TINY | {"logits_scaling": 8.0}, "GraniteForCausalLM"),  # divides them
        ("opt", OPT, "OPTForCausalLM"),  # the body is one deeper
        ("bert", TINY, "BertForMaskedLM"),  # the head has layers of its own
    ],
)
def test_the_two_parts_give_the_logits_of_the_whole(kind, args, cls):
    model = language_model(kind, args, cls)
    ids = torch.randint(3, 100, (3, 12))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    inputs["attention_mask"][1, 8:] = 0
    head = token_head(model, inputs)
    assert head is not None
    with torch.no_grad():
        hidden = head.hidden(inputs)
        assert hidden.shape == (3, 12, 32)
        whole = model(**inputs).logits
        parts = head.logits(hidden.flatten(0, 1))
    kept = inputs["attention_mask"].bool()
    assert torch.allclose(parts.view_as(whole)[kept], whole[kept], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("decoder", [True, False])
def test_a_model_that_cannot_be_taken_apart_has_its_logits_for_states(decoder):
    model = language_model("t5", T5 | {"decoder_start_token_id": 0}, "T5ForConditionalGeneration")
    inputs = {"input_ids": torch.randint(3, 100, (3, 12))}
    if decoder:
        inputs["decoder_input_ids"] = torch.randint(3, 100, (3, 5))
    head = token_head(model, inputs)
    assert head is not None
    with torch.no_grad():
        states = head.hidden(inputs)
        assert torch.equal(states, predict(model, inputs))
        assert torch.equal(head.logits(states[0]), states[0])


def test_only_language_models_have_such_a_head():
    ids = torch.randint(3, 100, (2, 12))
    inputs = {"input_ids": ids}
    assert (
        token_head(opening.open("bert", weights="random", model_args=TINY).module, inputs) is None
    )
    classifier = language_model("bert", TINY, "BertForSequenceClassification")
    assert token_head(classifier, inputs) is None
    assert token_head(torch.nn.Linear(3, 3), torch.zeros(2, 3)) is None
