"""ALBEF's network: its sizes to the unit, its fusion layer by hand, its variants."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from albef_tiny import TINY, pairs, tiny

from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.measure.flops import count
from pelacli.models.albef.config import Config, from_json
from pelacli.models.albef.network import Albef, as_variant, head_names, resampled, resize
from pelacli.ranks import planner, spectrum
from pelacli.ranks.budget import Budget

# Parameters of the parts, from the architecture's description alone.
D, H, V, POSITIONS, E = 768, 3072, 30522, 512, 256
NORM, SQUARE = 2 * D, D * D + D
MLP = D * H + H + H * D + D
BLOCK = (D * 3 * D + 3 * D) + SQUARE + MLP + 2 * NORM
ATTENTION = 4 * SQUARE + NORM  # query, key, value, output, and the norm after them
LAYER, CROSSING = ATTENTION + MLP + NORM, ATTENTION
EMBEDDINGS = (V + POSITIONS + 2) * D + NORM
WORDS = SQUARE + NORM + V  # the last matrix is the embeddings'
TEXT = EMBEDDINGS + 12 * LAYER + 6 * CROSSING
COMMON = 2 * (D * E + E) + 1 + (2 * D + 2)


def image_encoder(pixels):
    patches = (pixels // 16) ** 2
    return (3 * 16 * 16 * D + D) + D + (patches + 1) * D + 12 * BLOCK + NORM


TOTALS = {
    ("pretrain", 256): image_encoder(256) + TEXT + WORDS + COMMON,
    ("pretrain", 384): image_encoder(384) + TEXT + WORDS + COMMON,
    ("retrieval", 384): image_encoder(384) + TEXT + COMMON,
    ("entailment", 384): image_encoder(384) + TEXT + SQUARE + 3 * D + 3,
    ("vqa", 384): image_encoder(384) + TEXT + EMBEDDINGS + 6 * (LAYER + CROSSING) + WORDS,
}
# The same in millions, at full rank and at c = 3, as in the published tables' arithmetic.
MILLIONS = {
    ("pretrain", 256): (209.938, 87.107),
    ("pretrain", 384): (210.183, 87.353),
    ("retrieval", 384): (209.56, 86.73),
    ("entailment", 384): (209.76, 86.93),
    ("vqa", 384): (290.34, 129.72),
}


def full(variant, pixels):
    with torch.device("meta"):
        network = Albef(Config(variant=variant, image_size=pixels))
    network.tie()
    return network.eval()


def compress(network, c, **choice):
    layers = find.find_layers(network, head=head_names(network), **choice)
    free = [layer for layer in layers if layer.reason is None]
    plan = planner.plan(
        [spectrum.Spectrum(la.name, la.shape, np.ones(min(la.shape))) for la in free],
        Budget("uniform", 1 / Fraction(c), scope="layers"),
    )
    before = sum(layer.params for layer in free)
    found = {n: la.rank for n, la in plan.layers.items() if la.rank is not None}
    replace.replace_empty(network, found)
    after = sum(
        p.numel()
        for layer in find.low_rank_layers(network).values()
        for p in (layer.down.weight, layer.up.weight)
    )
    return len(free), before, after


def size(network):
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(("variant", "pixels"), TOTALS)
def test_parameters_to_the_unit(variant, pixels):
    network = full(variant, pixels)
    assert size(network) == TOTALS[variant, pixels]
    dense, low = MILLIONS[variant, pixels]
    digits = 3 if variant == "pretrain" else 2
    assert round(size(network) / 1e6, digits) == dense
    layers, before, after = compress(network, "3")
    assert round(size(network) / 1e6, digits) == low
    assert size(network) == TOTALS[variant, pixels] - before + after
    if variant != "vqa":
        assert (layers, before, after) == (144, 184_025_088, 61_194_240)


@pytest.mark.parametrize(("c", "millions"), [("3/2", 148.485), ("2", 117.888)])
def test_the_other_ratios(c, millions):
    network = full("pretrain", 256)
    compress(network, c)
    assert round(size(network) / 1e6, 3) == millions


@pytest.mark.parametrize(
    ("pixels", "c", "gflops"), [(256, None, 54.77), (256, "3", 20.14), (384, "3", 50.08)]
)
def test_flops_of_a_pair(pixels, c, gflops):
    network = full("pretrain", pixels)
    if c:
        compress(network, c)
    ids = torch.zeros(1, 25, dtype=torch.long, device="meta")
    image = torch.zeros(1, 3, pixels, pixels, device="meta")
    cost = count(network, [], lambda m: m(image, ids, torch.ones_like(ids)))
    assert round(cost.total / 1e9, 2) == gflops


def test_only_the_upper_layers_see_the_image():
    network = tiny().eval()
    with_cross = [hasattr(layer, "crossattention") for layer in network.text_encoder.bert.layers]
    assert with_cross == [False, False, True, True]
    inputs = pairs()
    text = network.embed_texts(inputs["input_ids"], inputs["attention_mask"])
    one = network.fuse(text, inputs["attention_mask"], torch.randn(6, 17, 32))
    two = network.fuse(text, inputs["attention_mask"], torch.randn(6, 17, 32))
    assert not torch.allclose(one, two, atol=1e-3)


def test_a_fusion_layer_by_hand():
    """Self-attention, cross-attention and MLP of BERT, post-norm, written out in plain tensors."""
    network = tiny(fusion_layer=3, text_width=24).double().eval()
    for p in network.parameters():  # norms and biases that do something
        torch.nn.init.normal_(p, std=0.2)
    w = {n.removeprefix("text_encoder.bert.encoder.layer.3."): p
         for n, p in network.named_parameters()}  # fmt: skip
    mask = pairs()["attention_mask"]
    x = torch.randn(6, 7, 24, dtype=torch.double)
    image = torch.randn(6, 17, 32, dtype=torch.double)

    def linear(name, x):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]

    def attention(name, x, seen, allowed):
        q, k, v = (linear(f"{name}.self.{part}", source)
                   for part, source in (("query", x), ("key", seen), ("value", seen)))  # fmt: skip
        heads = []
        for h in range(2):
            part = slice(12 * h, 12 * h + 12)
            scores = q[..., part] @ k[..., part].transpose(1, 2) / 12**0.5
            strength = scores.exp() * allowed
            heads.append(strength / strength.sum(-1, keepdim=True) @ v[..., part])
        mixed = linear(f"{name}.output.dense", torch.cat(heads, -1))
        return norm(f"{name}.output.LayerNorm", mixed + x)

    y = attention("attention", x, x, mask[:, None, :].double())
    y = attention("crossattention", y, image, torch.ones(6, 1, 17, dtype=torch.double))
    hidden = linear("intermediate.dense", y)
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / 2**0.5))
    expected = norm("output.LayerNorm", linear("output.dense", hidden) + y)
    assert torch.allclose(network.fuse(x, mask, image), expected, atol=1e-10)


def test_image_states_are_the_normed_tokens():
    network = tiny().eval()
    images = pairs()["pixel_values"]
    states = network.embed_images(images)
    assert states.shape == (6, 17, 32)
    assert torch.allclose(states.mean(-1), torch.zeros(6, 17), atol=1e-5)  # a fresh norm's output
    assert not any("head" in name for name, _ in network.visual_encoder.named_parameters())


def test_padding_does_not_matter():
    network, inputs = tiny().eval(), pairs()
    longer = {k: F.pad(v, (0, 3)) if k != "pixel_values" else v for k, v in inputs.items()}
    short, long = (network(**i)["last_hidden_state"] for i in (inputs, longer))
    assert torch.allclose(long[:, :7], short, atol=1e-5)


def test_features_are_unit_vectors_and_the_word_head_is_tied():
    network, inputs = tiny().eval(), pairs()
    image = network.image_features(network.embed_images(inputs["pixel_values"]))
    assert torch.allclose(image.norm(dim=1), torch.ones(6))
    words = network.text_encoder
    table = words.bert.embeddings.word_embeddings.weight
    assert words.cls.predictions.decoder.weight is table
    assert words.cls.predictions.decoder.bias is words.cls.predictions.bias


def test_position_embeddings_are_resampled_bicubically():
    network = tiny().eval()
    before = network.visual_encoder.pos_embed.detach().clone()
    resize(network, 48)
    after = network.visual_encoder.pos_embed.detach()
    assert torch.equal(after[:, 0], before[:, 0])  # the class token has no place
    grid = before[0, 1:].T.reshape(1, 32, 4, 4)
    expected = F.interpolate(grid, (6, 6), mode="bicubic").reshape(32, 36).T
    assert torch.allclose(after[0, 1:], expected, atol=1e-6)
    assert network.config.image_size == 48
    assert network.embed_images(torch.randn(2, 3, 48, 48)).shape == (2, 37, 32)
    assert resampled(torch.randn(1, 257, 768), 24).shape == (1, 577, 768)


def low(network):
    layers = [la.name for la in find.find_layers(network, head=head_names(network))
              if la.reason is None]  # fmt: skip
    factors = {}
    for name in layers:
        layer = network.get_submodule(name)
        u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        factors[name] = (s[:6, None].sqrt() * v[:6], u[:, :6] * s[:6].sqrt(), layer.bias.detach())
    replace.replace(network, factors)
    return network


@pytest.mark.parametrize("prepare", [lambda n: n, low], ids=["dense", "low-rank"])
def test_variants_are_made_of_the_pretrained_parts(prepare):
    base, inputs = prepare(tiny().eval()), pairs()
    fused = base(**inputs)["last_hidden_state"]
    found = as_variant(base, "retrieval")
    assert torch.equal(found(**inputs)["last_hidden_state"], fused)
    assert not hasattr(found.text_encoder, "cls")
    classes = as_variant(base, "entailment", num_classes=5)
    assert classes(**inputs)["logits"].shape == (6, 5)
    assert "vision_proj.weight" not in classes.state_dict()
    answers = as_variant(base, "vqa")
    upper, decoder = base.text_encoder.bert.layers[2:], answers.text_decoder.bert.layers
    for (name, ours), theirs in zip(decoder.named_parameters(), upper.parameters(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours is not theirs
    own = answers.text_decoder
    assert own.cls.predictions.decoder.weight is own.bert.embeddings.word_embeddings.weight
    ids = inputs["input_ids"]
    assert answers(**inputs, decoder_input_ids=ids)["logits"].shape == (6, 7, 40)
    assert as_variant(base, "retrieval", image_size=48).config.image_size == 48


def test_a_variant_without_the_parts_is_refused():
    with pytest.raises(RequestError, match=r"no text_encoder.cls; start from a pre-training"):
        as_variant(tiny("retrieval"), "vqa")
    with pytest.raises(RequestError, match="only where vision_width is text_width"):
        as_variant(tiny(text_width=24), "vqa")
    with pytest.raises(RequestError, match="no vision_proj"):
        as_variant(tiny("entailment"), "retrieval")


def test_the_decoder_is_causal_and_sees_the_question():
    network, inputs = tiny("vqa").eval(), pairs()
    fused, mask = network(**inputs)["last_hidden_state"], inputs["attention_mask"]
    ids, ones = inputs["input_ids"], torch.ones_like(inputs["input_ids"])
    one = network.decode(ids, ones, fused, mask)
    later = ids.clone()
    later[:, 4:] = 7
    two = network.decode(later, ones, fused, mask)
    assert torch.allclose(one[:, :4], two[:, :4], atol=1e-5)
    assert not torch.allclose(one[:, 4:], two[:, 4:], atol=1e-3)
    padded = fused.clone()
    padded[mask == 0] = 9.0
    assert torch.allclose(network.decode(ids, ones, padded, mask), one, atol=1e-5)
    assert not torch.allclose(network.decode(ids, ones, fused + 1, mask), one, atol=1e-3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"varient": "vqa"}, "no setting 'varient'; did you mean variant?"),
        ({"variant": "nlvr"}, "variant 'nlvr': ALBEF comes as pretrain"),
        ({"text_width": "wide"}, "text_width = 'wide': expected int"),
        ({"image_size": 100}, "image_size = 100: must be a multiple of patch_size = 16"),
        ({"fusion_layer": 13}, "fusion_layer = 13: there are 12 text layers"),
        ({"text_depth": 0}, "text_depth = 0: must be at least 1"),
    ],
)
def test_a_wrong_configuration_is_named(values, message):
    with pytest.raises(RequestError) as caught:
        from_json(values, "here")
    assert str(caught.value).startswith("here: ")
    assert message in str(caught.value)


def test_a_configuration_survives_json():
    config = Config(variant="vqa", **TINY)
    assert from_json(config.to_json()) == config
