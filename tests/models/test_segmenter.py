"""UperNet around dense and low-rank backbones of both libraries; transformers' own segmenters."""

from __future__ import annotations

import json

import pytest
import timm
import torch
import torch.nn.functional as F
import transformers as T
from accelerate import init_empty_weights
from backbones import Moved, counted, images

import pelacli
from pelacli.artefact import loading, saving
from pelacli.data.dataset import Dataset
from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.models import heads, opening, wrapping
from pelacli.models.around import features, segmenter
from pelacli.tasks import registry

SMALL = {"channels": 16, "pool_scales": [1, 2], "auxiliary_channels": 8, "seed": 0}
VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
SWIN = {"img_size": 64, "embed_dim": 16, "depths": (1, 1, 2, 1), "num_heads": (1, 2, 4, 8)}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (8, 16, 32, 64)}
HF_VIT = {
    "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip
HF_SWIN = {
    "embed_dim": 16, "depths": [1, 1, 2, 1], "num_heads": [1, 2, 4, 8], "image_size": 64,
    "window_size": 2, "patch_size": 4,
}  # fmt: skip
STAGES = [f"stage{i}" for i in range(1, 5)]
HF_CONVNEXT = {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 2, 1], "image_size": 64}

TIMM = {
    "vit_tiny_patch16_224": VIT,
    "deit_tiny_distilled_patch16_224": VIT,
    "deit3_small_patch16_224": VIT,
    "beit_base_patch16_224": VIT,
    "vit_small_patch14_dinov2": VIT | {"patch_size": 7, "img_size": 28},
    "swin_tiny_patch4_window7_224": SWIN,
    "swinv2_tiny_window8_256": SWIN,
    "convnext_tiny": CONVNEXT,
}
HF = {
    "ViT": (T.ViTForImageClassification, T.ViTConfig(**HF_VIT)),
    "DeiT": (T.DeiTForImageClassification, T.DeiTConfig(**HF_VIT)),
    "BEiT": (T.BeitForImageClassification, T.BeitConfig(**HF_VIT, use_relative_position_bias=True)),
    "DINOv2": (T.Dinov2Model, T.Dinov2Config(**HF_VIT)),
    "DINOv2 registers": (T.Dinov2WithRegistersModel, T.Dinov2WithRegistersConfig(**HF_VIT)),
    "DINOv3": (T.DINOv3ViTModel, T.DINOv3ViTConfig(**HF_VIT)),
    "Swin": (T.SwinForImageClassification, T.SwinConfig(**HF_SWIN)),
    "Swin-V2": (T.Swinv2ForImageClassification, T.Swinv2Config(**HF_SWIN)),
    "ConvNeXt": (T.ConvNextForImageClassification, T.ConvNextConfig(**HF_CONVNEXT)),
}


def opened(name):
    torch.manual_seed(0)
    if name in TIMM:
        return opening.open(name, weights="random", model_args=TIMM[name], num_classes=6)
    kind, config = HF[name]
    return wrapping.wrap(kind(config).eval())


def around(found, classes=5, image_size=None, **changed):
    return segmenter.around(found, classes=classes, image_size=image_size, **(SMALL | changed))


# Backbones ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*TIMM, *HF])
def test_a_low_rank_backbone_stays_low_rank(name, tmp_path):
    found = opened(name)
    pelacli.decompose(found.module, 0.5, scope="layers")
    pelacli.save(found.module, tmp_path / "classifier")
    source = loading.load(tmp_path / "classifier")
    moved = Moved(source)
    fitted = around(source.opened)
    described = moved.check(fitted, whole=around(opened(name)))
    assert all(place.startswith("backbone.") for place in find.low_rank_layers(fitted.module))

    # Written and read back to the bit.
    saving.save(fitted, described, tmp_path / "segmenter")
    again = loading.load(tmp_path / "segmenter")
    assert again.opened.library == "segmenter"
    assert again.opened.inputs == fitted.inputs
    assert again.opened.config == json.loads(json.dumps(fitted.config))
    x = images(fitted)
    with torch.no_grad():
        want, got = fitted.module.eval()(x), again.module(x)
    assert want.shape[:2] == (2, 5)
    assert torch.equal(want, got)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "BEiT"])
def test_full_rank_equals_dense(name):
    dense, full = around(opened(name)), around(opened(name))
    factors = {}
    for layer in find.find_layers(full.module, head=full.head):
        if layer.reason is None:
            u, values, v = torch.linalg.svd(layer.weight.double(), full_matrices=False)
            down, up = v * values.sqrt()[:, None], u * values.sqrt()
            factors[layer.name] = (down.float(), up.float(), layer.bias)
    assert len(factors) >= 16
    replace.replace(full.module, factors)
    x = images(dense)
    with torch.no_grad():
        assert torch.allclose(dense.module.eval()(x), full.module.eval()(x), atol=2e-4)


@pytest.mark.parametrize("name", [*TIMM, *HF])
def test_images_of_another_size(name):
    side = 2 * opened(name).inputs.size[1]
    found = around(opened(name), image_size=side)
    assert found.inputs.size == (3, side, side)
    with torch.no_grad():
        logits = found.module.eval()(images(found))
    finest = found.config["backbone"]["maps"][0][1]
    assert logits.shape[:2] == (2, 5)
    assert logits.shape[2] >= finest
    with pytest.raises(RequestError, match=f"built for {side}×{side}: set data.image_size"):
        found.module(torch.zeros(2, 3, side // 2, side // 2))


def test_windows_keep_their_size_and_positions_are_interpolated():
    swin, vit = "swin_tiny_patch4_window7_224", "vit_tiny_patch16_224"
    before, large = opened(swin).module, around(opened(swin), image_size=128).module.backbone
    tables = {n: p for n, p in large.named_parameters() if "relative_position_bias" in n}
    assert len(tables) == 5
    own = dict(before.named_parameters())
    assert all(torch.equal(p, own[name]) for name, p in tables.items())
    wide = around(opened(vit), image_size=64).module.backbone
    assert wide.pos_embed.shape == (1, 65, 32)
    assert opened(vit).module.pos_embed.shape == (1, 17, 32)


def test_the_maps_of_a_vit_are_its_tokens_in_their_places():
    found = opened("ViT")
    x = images(found)
    with torch.no_grad():
        states = found.module.vit(x, output_hidden_states=True).hidden_states
        maps = features.maps("transformers")(found.module.vit, x, [0, 2])
    for depth, one in zip([0, 2], maps, strict=True):
        for row, column in [(0, 0), (1, 3), (3, 2)]:
            token = states[depth + 1][:, 1 + 4 * row + column]  # after the class token
            assert torch.equal(one[:, :, row, column], token)


def test_the_maps_of_a_swin_are_those_before_the_merging_of_patches():
    found = opened("Swin")
    other = T.SwinBackbone(T.SwinConfig(**HF_SWIN, out_features=STAGES)).eval()
    other.load_state_dict(found.module.state_dict(), strict=False)
    x = images(found)
    with torch.no_grad():
        wanted = other(x).feature_maps  # each through a norm that is fresh
        maps = features.maps("transformers")(found.module.swin, x, [0, 1, 3, 4])
    for one, want in zip(maps, wanted, strict=True):
        normed = F.layer_norm(one.permute(0, 2, 3, 1), one.shape[1:2]).permute(0, 3, 1, 2)
        assert torch.allclose(normed, want, atol=1e-5)


def test_which_depths_are_taken():
    assert features.depths([(8, 16), (8, 16), (16, 8), (32, 4), (64, 2), (64, 2)]) == [1, 2, 3, 5]
    assert features.depths([(8, 32), (8, 16), (16, 8), (32, 4), (64, 2)]) == [1, 2, 3, 4]
    assert features.depths([(8, 4)] * 12) == [2, 5, 8, 11]
    assert features.depths([(8, 4)] * 24) == [5, 11, 17, 23]
    assert features.depths([(8, 4)] * 2) == [0, 1]


@pytest.mark.parametrize(("patch", "strides"), [(16, (4, 8, 16, 32)), (8, (4, 8, 16, 32)),
                                                (14, (3.5, 7, 14, 28))])  # fmt: skip
def test_the_pyramid_of_a_plain_vit(patch, strides):
    args = VIT | {"patch_size": patch, "img_size": 8 * patch}
    found = opening.open("vit_tiny_patch16_224", weights="random", model_args=args)
    module = around(found).module
    x = torch.randn(2, 3, 8 * patch, 8 * patch)
    with torch.no_grad():
        maps = features.maps("timm")(module.backbone, x, [0, 1, 2, 3])
        levels = [level(one) for level, one in zip(module.neck, maps, strict=True)]
    assert [8 * patch / level.shape[-1] for level in levels] == list(strides)


def test_swin_b_at_full_size():
    """Against transformers' own UperNet around a Swin-B: the same but for a last norm that it has
    and never applies. mmsegmentation tells 121 M."""
    with init_empty_weights(include_buffers=True):
        swin = wrapping.wrap(timm.create_model("swin_base_patch4_window7_224"))
        found = segmenter.around(
            swin,
            classes=150,
            image_size=512,
            channels=512,
            pool_scales=[1, 2, 3, 6],
            auxiliary_channels=256,
            seed=0,
        )
        shape = {"embed_dim": 128, "depths": [2, 2, 18, 2], "num_heads": [4, 8, 16, 32]}
        backbone = T.SwinConfig(**shape, out_features=STAGES)
        theirs = T.UperNetForSemanticSegmentation(
            T.UperNetConfig(backbone_config=backbone, num_labels=150)
        )
    assert found.config["backbone"]["maps"] == [[128, 128], [256, 64], [512, 32], [1024, 16]]
    assert counted(found.module) == counted(theirs) - 2 * 1024 == 121_279_716
    module = found.module.eval()
    assert module(torch.empty(1, 3, 512, 512, device="meta")).shape == (1, 150, 128, 128)
    out = module.train()(torch.empty(2, 3, 512, 512, device="meta"))
    assert (out["logits"].shape, out["auxiliary"].shape) == ((2, 150, 128, 128), (2, 150, 32, 32))


# What is told ------------------------------------------------------------------------------------


def test_the_auxiliary_head_is_for_training_alone():
    found = around(opened("vit_tiny_patch16_224"))
    module, x = found.module, images(found)
    out = module.train()(x)
    assert set(out) == {"logits", "auxiliary"}
    assert torch.is_tensor(module.eval()(x))
    without = around(opened("vit_tiny_patch16_224"), auxiliary_channels=0)
    assert without.module.auxiliary_head is None
    assert torch.is_tensor(without.module.train()(x))


def test_requests_that_make_no_sense():
    with pytest.raises(RequestError, match="two images or more: raise batch_size"):
        around(opened("ViT")).module.train()(torch.zeros(1, 3, 32, 32))
    shape = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = wrapping.wrap(T.BertModel(T.BertConfig(**shape, intermediate_size=8)))
    with pytest.raises(RequestError, match="BertModel: sees no images alone"):
        around(text)
    mixer = opening.open("mixer_s32_224", weights="random", model_args={"img_size": 64})
    with pytest.raises(RequestError, match="MlpMixer: gives no feature maps of 96 px images"):
        around(mixer, image_size=96)


def test_what_a_training_loop_asks_of_it():
    for name in ("vit_tiny_patch16_224", "ViT"):
        found = around(opened(name))
        module, x = found.module.train(), images(found)
        module.zero_grad()
        module.set_grad_checkpointing(True)
        sum(value.square().mean() for value in module(x).values()).backward()
        got = {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}
        module.set_grad_checkpointing(False)
        module.zero_grad()
        sum(value.square().mean() for value in module(x).values()).backward()
        assert all(torch.allclose(got[n], p.grad, atol=1e-5)
                   for n, p in module.named_parameters() if p.grad is not None)  # fmt: skip
        unused = [n for n, p in module.named_parameters() if p.grad is None]
        assert all("norm" in n for n in unused)
    listed = around(opened("vit_tiny_patch16_224")).module.no_weight_decay()
    assert {"backbone.pos_embed", "backbone.cls_token"} <= listed


def test_other_classes():
    found = around(opened("Swin"))
    heads.set_classes(found, 9, seed=0)
    assert (heads.num_classes(found), found.config["num_classes"]) == (9, 9)
    out = found.module.train()(images(found))
    assert (out["logits"].shape[1], out["auxiliary"].shape[1]) == (9, 9)


# transformers' own -------------------------------------------------------------------------------

TINY_BEIT = HF_VIT | {"num_hidden_layers": 4, "out_indices": [0, 1, 2, 3], "pool_scales": [1, 2]}
OWN = {
    "SegFormer": (
        T.SegformerForSemanticSegmentation,
        T.SegformerConfig(
            hidden_sizes=[8, 16, 32, 64], depths=[1, 1, 1, 1], decoder_hidden_size=16, num_labels=3,
            num_attention_heads=[1, 2, 4, 8],
        ),
    ),
    "UperNet": (
        T.UperNetForSemanticSegmentation,
        T.UperNetConfig(
            backbone_config=T.SwinConfig(**HF_SWIN, out_features=STAGES),
            hidden_size=16, auxiliary_channels=8, pool_scales=[1, 2], num_labels=3,
        ),
    ),
    "BEiT": (T.BeitForSemanticSegmentation, T.BeitConfig(**TINY_BEIT, num_labels=3)),
    "DPT": (
        T.DPTForSemanticSegmentation,
        T.DPTConfig(
            **HF_VIT, neck_hidden_sizes=[8, 8, 16, 16], backbone_out_indices=[0, 1, 2, 3],
            fusion_hidden_size=8, num_labels=3, is_hybrid=False, auxiliary_loss_weight=0.4,
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(OWN))
def test_segmenters_of_transformers(name, tmp_path):
    kind, config = OWN[name]
    torch.manual_seed(0)
    kind(config).save_pretrained(tmp_path / "model")
    found = opening.open(str(tmp_path / "model"))
    assert segmenter.segments(found)
    assert heads.num_classes(found) == 3
    side = {"SegFormer": 224, "UperNet": 64, "BEiT": 32, "DPT": 32}[name]
    assert found.inputs.size == (3, side, side)
    task = registry.get("segmentation", {"classes": 5})
    dataset = Dataset("x", [], lambda s, w: s, list, classes=list("abcde"))
    fitted = task.fit(found, dataset, None, 0)
    assert fitted is found
    assert heads.num_classes(found) == 5
    x = images(found)
    pelacli.decompose(found.module, 0.5, scope="layers")
    assert find.low_rank_layers(found.module)
    pelacli.save(found.module, tmp_path / "low")
    again = loading.load(tmp_path / "low")
    batch = {"inputs": x, "masks": torch.randint(5, (2, *x.shape[2:]))}
    with torch.no_grad():
        want, got = (task.forward(m.eval(), batch)["logits"] for m in (found.module, again.module))
    assert want.shape[:2] == (2, 5)
    ours, theirs = found.module.state_dict(), again.module.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())
    assert torch.allclose(want, got, atol=1e-6)  # what was opened lies in mapped memory
    output = task.forward(again.module.train(), batch)
    task.loss(output, batch)["task"].backward()
    low = find.low_rank_layers(again.module).values()
    assert all(layer.up.weight.grad is not None for layer in low)
