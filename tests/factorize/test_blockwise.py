"""Section by section is the same as the whole model at once."""

from __future__ import annotations

import pytest
import torch
from calibrated_models import BART, CLIP, SMALL, T5, opened, samples

from pelacli.factorize import blockwise, blockwise_refit, calibration, refit, sections
from pelacli.lowrank import find
from pelacli.models import blocks, prediction
from pelacli.models.token_head import token_head
from pelacli.system.shelf import Shelf

TEXT = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
    "vocab_size": 200, "max_position_embeddings": 64,
}  # fmt: skip
VIT = {"embed_dim": 24, "depth": 3, "num_heads": 2, "img_size": 32}
# Electra has a layer before its blocks, ViT and BERT one after them; GPT-2 has Conv1D.
SEQUENCES = {
    "vit_tiny_patch16_224": VIT,
    "bert": TEXT,
    "electra": TEXT | {"embedding_size": 16},
    "bloom": {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 200},
}
CAUSAL = {
    "llama": TEXT,
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 2, "vocab_size": 200},
}
OTHERS = {
    "swin_tiny_patch4_window7_224": SMALL | {"img_size": 56}, "bart": BART, "t5": T5, "clip": CLIP,
    "albert": TEXT | {"embedding_size": 16},
}  # fmt: skip


class Parts:
    """A model, the sections of it, and what calibrates it."""

    def __init__(self, name, args, causal=False):
        model = opened(name, args)
        self.module = model.module
        self.batches = samples(model, 24, 8)
        if causal:
            self.module = with_head(self.module)
        self.head = token_head(self.module, self.batches[0])
        self.layers = find.free_layers(find.find_layers(self.module), name)
        self.sections = sections.sections(
            self.module, blocks.blocks(self.module), self.run, self.layers, self.batches[0]
        )

    def run(self, module, batch):
        return prediction.predict(module, batch) if self.head is None else self.head.hidden(batch)


def with_head(body):
    """The causal language model of this body."""
    import transformers

    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(body.config)
    setattr(model, model.base_model_prefix, body)
    return model.eval()


@pytest.fixture(params=[*SEQUENCES, *CAUSAL])
def parts(request):
    name = request.param
    return Parts(name, (SEQUENCES | CAUSAL)[name], name in CAUSAL)


@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_plain_sequence_of_blocks_has_no_sections(name):
    assert Parts(name, OTHERS[name]).sections is None


def same(ours, theirs, tolerance=1e-4):
    if ours is None or theirs is None:
        return ours is theirs
    return float((ours - theirs).norm()) <= tolerance * float(theirs.norm())


def test_moments_are_those_of_the_whole_model(parts):
    whole = calibration.collect(
        parts.module, parts.layers, parts.batches, prediction.predict, head=parts.head
    )
    ours = blockwise.collect(parts.sections, parts.batches, Shelf(), head=parts.head)
    assert set(ours) == set(whole)
    for name, known in whole.items():
        assert same(ours[name].near, known.near), name
        assert same(ours[name].far, known.far), name
        assert same(ours[name].mean, known.mean), name
        assert ours[name].weights.keys() == known.weights.keys()
        for number, weights in known.weights.items():
            assert same(ours[name].weights[number], weights, 1e-3), name


@pytest.mark.parametrize("at_once", [None, 1, 2])
@pytest.mark.parametrize("parts", ["vit_tiny_patch16_224", "electra", *CAUSAL], indirect=True)
def test_correction_is_that_of_the_whole_model_with_payback_at_the_borders(
    parts, at_once, monkeypatch
):
    shelf = Shelf()
    moments = blockwise.collect(parts.sections, parts.batches, shelf, head=parts.head)
    ranks = {layer.name: 6 for layer in parts.layers}
    whole = refit.correct(parts.module, parts.layers, ranks, moments, parts.batches, parts.run)
    if at_once:  # then never all of them
        monkeypatch.delattr(refit, "correct")
    ours = blockwise_refit.correct(
        parts.sections, ranks, moments, parts.batches, shelf, at_once=at_once
    )
    assert list(ours) == list(whole)
    for name, (down, up, bias) in whole.items():
        product = ours[name][1] @ ours[name][0]
        assert same(product, up @ down, 1e-3), name
        assert same(ours[name][2], bias, 1e-3), name
