"""What is distilled by default in each family, and from when on."""

import copy

import pytest
import torch
import transformers
from torch import nn

from pelacli.errors import RequestError
from pelacli.models import opening, outputs, prediction
from pelacli.train import losses, recompute, taps

SMALL = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 48,
    "vocab_size": 99,
}  # fmt: skip
SWIN = {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 2]}


def opened(name, **args):
    return opening.open(name, weights="random", model_args=args)


def images(*size):
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


def watched(module, inputs):
    module.eval()
    names = taps.choose(module, None)
    with torch.no_grad(), outputs.caught(module, names) as found:
        prediction.predict(module, inputs)
    return {name: [tuple(output.shape) for output in found[name]] for name in names}


def test_vit_is_its_residual_stream():
    vit = opened("vit_tiny", img_size=32, embed_dim=32, depth=3, num_heads=2)
    shapes = watched(vit.module, images(3, 32, 32))
    assert shapes == {f"blocks.{i}": [(2, 5, 32)] for i in range(3)}


def test_swin_is_every_block_before_the_merging():
    """The paper's code collects these and then distils the pooled output alone."""
    swin = opened("swin_tiny_patch4_window7_224", img_size=56, **SWIN)
    assert watched(swin.module, images(3, 56, 56)) == {
        "layers.0.blocks.0": [(2, 14, 14, 16)],
        "layers.1.blocks.0": [(2, 7, 7, 32)],
        "layers.1.blocks.1": [(2, 7, 7, 32)],
    }
    other = opened("swin", image_size=56, window_size=7, **SWIN)
    assert watched(other.module, {"pixel_values": images(3, 56, 56)}) == {
        "encoder.layers.0.blocks.0": [(2, 196, 16)],
        "encoder.layers.1.blocks.0": [(2, 49, 32)],
        "encoder.layers.1.blocks.1": [(2, 49, 32)],
    }


def test_bert_is_its_layers():
    bert = opened("bert", **SMALL)
    tokens = {"input_ids": torch.ones(2, 7, dtype=torch.long)}
    assert watched(bert.module, tokens) == {f"encoder.layer.{i}": [(2, 7, 32)] for i in range(3)}


def test_clip_is_both_towers():
    tower = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    clip = opened(
        "clip",
        text_config=tower | {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 98},
        vision_config=tower | {"image_size": 32, "patch_size": 16},
    )
    batch = {"input_ids": torch.full((2, 6), 98), "pixel_values": images(3, 32, 32)}
    wanted = {f"text_model.encoder.layers.{i}": [(2, 6, 32)] for i in range(3)}
    wanted |= {f"vision_model.encoder.layers.{i}": [(2, 5, 32)] for i in range(3)}
    assert watched(clip.module, batch) == wanted


def test_convnext_is_its_blocks():
    net = opened("convnext_tiny", depths=[1, 1, 2, 1], dims=[8, 12, 16, 24])
    assert watched(net.module, images(3, 64, 64)) == {
        "stages.0.blocks.0": [(2, 8, 16, 16)],
        "stages.1.blocks.0": [(2, 12, 8, 8)],
        "stages.2.blocks.0": [(2, 16, 4, 4)],
        "stages.2.blocks.1": [(2, 16, 4, 4)],
        "stages.3.blocks.0": [(2, 24, 2, 2)],
    }


def test_a_layer_that_is_called_at_every_depth_is_distilled_at_every_depth():
    config = transformers.AlbertConfig(**SMALL, embedding_size=16)
    torch.manual_seed(0)
    albert = transformers.AlbertModel(config)
    (shapes,) = watched(albert, {"input_ids": torch.ones(2, 7, dtype=torch.long)}).values()
    assert shapes == [(2, 7, 32)] * 3


def test_taps_join_in_from_the_first_to_the_last():
    names = ["a", "b", "c", "d"]
    course = ["".join(taps.joined(names, step / 10, 0.8)) for step in range(10)]
    assert course == ["a", "a", "ab", "ab", "abc", "abc", "abcd", "abcd", "abcd", "abcd"]
    assert taps.joined(names, 0.0, 0.0) == names  # at once
    assert [len(taps.joined(names, step / 4, 1.0)) for step in range(4)] == [1, 2, 3, 4]


def test_named_taps_are_whole_names_and_must_be_there():
    vit = opened("vit_tiny", img_size=32, embed_dim=32, depth=3, num_heads=2).module
    assert taps.choose(vit, [r"blocks\.[01]", "norm"]) == ["blocks.0", "blocks.1", "norm"]
    with pytest.raises(RequestError, match="matches no module"):
        taps.choose(vit, ["block"])
    with pytest.raises(RequestError, match="no repeated blocks"):
        taps.choose(nn.Linear(2, 2), None)


@pytest.mark.parametrize(
    ("name", "args", "inputs"),
    [
        ("vit_tiny", {"img_size": 32, "embed_dim": 32, "depth": 3, "num_heads": 2},
         images(3, 32, 32)),
        ("bert", SMALL | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
         {"input_ids": torch.ones(2, 7, dtype=torch.long)}),
    ],
)  # fmt: skip
def test_recomputed_activations_give_the_same_gradients_through_taps(name, args, inputs):
    one = opened(name, **args).module
    two = copy.deepcopy(one)
    passes = []
    for module, on in ((one, False), (two, True)):
        names = taps.choose(module.train(), None)
        first = next(m for m in module.get_submodule(names[0]).modules() if type(m) is nn.Linear)
        first.register_forward_hook(lambda module, *_: passes.append(module))
        with recompute.checkpointing(module, on=on):
            with outputs.caught(module, names) as features:
                prediction.predict(module, inputs)
            caught = [output for tap in names for output in features[tap]]
            losses.feature(caught, [torch.zeros_like(output) for output in caught]).backward()
    assert len(passes) == 1 + 2  # once more on the way back
    trained = 0
    for (parameter, a), b in zip(one.named_parameters(), two.parameters(), strict=True):
        assert (a.grad is None) == (b.grad is None), parameter
        if a.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, msg=parameter)
            trained += 1
    assert trained > 30
