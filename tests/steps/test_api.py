"""The Python interface: load, save, plan and decompose."""

from __future__ import annotations

import copy
import threading

import pytest
import timm
import torch
import transformers
from torch import nn

import pelacli
from pelacli.artefact import description, loading, saving
from pelacli.errors import RequestError
from pelacli.exports import dense as export_dense
from pelacli.lowrank import find
from pelacli.manifest import document
from pelacli.manifest.document import StepRecord
from pelacli.models import heads, prediction, wrapping
from pelacli.recipe.schema import Recipe
from pelacli.recipe.step import step_of
from pelacli.steps import decompose as steps_decompose

BERT = {
    "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 50,
}  # fmt: skip
PICTURE = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64,
    "image_size": 16, "patch_size": 8,
}  # fmt: skip
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 50, "bos_token_id": 0,
        "eos_token_id": 0}  # fmt: skip


def vit(**args):
    torch.manual_seed(0)
    return timm.create_model("test_vit", **args).eval()


def bare():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 32))


def weights(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(module, state):
    now = module.state_dict()
    return now.keys() == state.keys() and all(torch.equal(now[n], state[n]) for n in state)


# What is low-rank already ------------------------------------------------------------------------


@pytest.mark.parametrize("call", [pelacli.decompose, pelacli.plan], ids=["decompose", "plan"])
@pytest.mark.parametrize("build", [vit, bare], ids=["timm", "any module"])
def test_what_is_low_rank_already_is_refused_and_stays_as_it_is(build, call):
    model = build()
    pelacli.decompose(model, ratio=0.9, scope="layers")
    before = weights(model)
    says = rf"^{type(model).__name__}: is low-rank already; decompose the dense model$"
    with pytest.raises(RequestError, match=says):
        call(model, ratio=0.8, scope="layers")
    assert same(model, before)


@pytest.mark.parametrize("call", [pelacli.decompose, pelacli.plan], ids=["decompose", "plan"])
def test_a_low_rank_artefact_is_refused_by_its_path(tmp_path, call):
    model = vit()
    pelacli.decompose(model, ratio=0.9, scope="layers")
    pelacli.save(model, tmp_path / "a")
    with pytest.raises(RequestError, match=r"a: is low-rank already; decompose the dense model"):
        call(pelacli.load(tmp_path / "a"), ratio=0.8, scope="layers")


def test_a_folded_model_is_dense_again():
    model = bare()
    pelacli.decompose(model, ratio=0.5, policy="uniform")
    export_dense.fold(model)
    assert pelacli.decompose(model, ratio=0.5, policy="uniform").ranks()
    assert find.low_rank_layers(copy.deepcopy(model)).keys() == {"0", "2"}


# Batches -----------------------------------------------------------------------------------------


class Counting(nn.Module):
    """Residual blocks, and the most threads that were alive while any of them ran."""

    def __init__(self, width=8):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(width, width) for _ in range(3)])
        self.most = 0

    def forward(self, x, attention_mask=None):
        self.most = max(self.most, threading.active_count())
        for layer in self.layers:
            x = x + layer(x).tanh()
        return x.mean(1)


def factorised(batches, form):
    model = Counting()
    before = threading.active_count()
    pelacli.decompose(
        model, ratio=0.8, scope="layers", policy="uniform", batches=map(form, batches)
    )
    return model, model.most - before


FORMS = {
    "tensors": lambda x: x,
    "dicts": lambda x: {"x": x, "attention_mask": torch.ones(x.shape[:2], dtype=torch.long)},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_thousand_batches_of_one_sample_are_walked_as_batches_of_32(form):
    torch.manual_seed(1)
    images = torch.randn(1000, 4, 8)
    model, threads = factorised(images.split(1), form)
    assert threads <= 2 * 32  # two streams of the 32 batches that a thousand samples fill
    wanted, _ = factorised(images.split(32), form)
    assert find.low_rank_layers(model).keys() == {f"layers.{i}" for i in range(3)}
    assert same(model, weights(wanted))
    plans = [
        pelacli.plan(
            Counting(), energy=0.9, form="factors", batches=map(form, images.split(n))
        ).ranks()
        for n in (1, 32)
    ]
    assert plans[0] == plans[1]


# A model that changed between load and save ------------------------------------------------------


def picture(*names):
    """A tiny ViT of transformers with classes of these names."""
    torch.manual_seed(0)
    config = transformers.ViTConfig(**PICTURE, id2label=dict(enumerate(names)))
    return transformers.ViTForImageClassification(config).eval()


def words(kind=transformers.DistilBertForMaskedLM):
    torch.manual_seed(0)
    return kind(transformers.DistilBertConfig(**BERT)).eval()


def images(model):
    size = (3, 160, 160) if hasattr(model, "pretrained_cfg") else (3, 16, 16)
    return torch.randn(2, *size, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def loaded(tmp_path):
    """Save a model at 0.9 of its layers (or dense) as ``a`` and load it again."""

    def build(model, ratio=0.9):
        if ratio is not None:
            pelacli.decompose(model, ratio=ratio, scope="layers", policy="uniform")
        pelacli.save(model, tmp_path / "a")
        return pelacli.load(tmp_path / "a")

    return build


def check_round_trip(model, path, batch):
    """Written as it is, read back to the bit, and described as what it is."""
    pelacli.save(model, path)
    again = pelacli.load(path)
    with torch.no_grad():
        assert torch.equal(
            prediction.predict(again, batch), prediction.predict(model.eval(), batch)
        )
    found = loading.load(path)
    described = found.manifest
    assert described.params.after == sum(p.numel() for p in model.parameters())
    low = find.low_rank_layers(model)
    assert {r.name: r.rank for r in described.layers if r.rank is not None} == {
        name: layer.rank for name, layer in low.items()
    }
    dense = {r.name: r.shape for r in described.layers if r.rank is None}
    parts = {f"{name}.{part}" for name in low for part in ("down", "up")}
    assert dense == {la.name: la.shape for la in find.find_layers(model) if la.name not in parts}
    assert described.flops.after == description.cost(found.opened, []).total
    saved = sum(r.params.before - r.params.after for r in described.layers)
    assert described.params.before - described.params.after == saved
    return found


def test_what_did_not_change_is_written_again_to_the_byte(loaded, tmp_path):
    model = loaded(picture("cat", "dog", "fish"))
    opened, _ = loading.open(str(tmp_path / "a"))
    opened.carried = {"preprocessor_config.json": b"{}"}
    saving.save(opened, document.read(tmp_path / "a"), tmp_path / "a")
    model = pelacli.load(tmp_path / "a")
    state = torch.get_rng_state()
    pelacli.save(model, tmp_path / "b")
    assert torch.equal(torch.get_rng_state(), state)
    files = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("a", "b")]
    assert files[0] == files[1]
    assert "preprocessor_config.json" in files[0]


@pytest.mark.parametrize("classes", [5, 1000, 0])
def test_a_new_head_of_timm_is_saved_as_it_is(loaded, tmp_path, classes):
    model = loaded(vit())
    model.reset_classifier(classes)
    found = check_round_trip(model, tmp_path / "b", images(model))
    assert heads.num_classes(found.opened) == (classes or None)
    assert found.opened.head == ({"head"} if classes else set())


def test_a_model_without_a_head_gets_one(loaded, tmp_path):
    model = loaded(vit(num_classes=0))
    model.reset_classifier(5)
    found = check_round_trip(model, tmp_path / "b", images(model))
    assert {r.reason for r in found.manifest.layers if r.name == "head"} == {"output head"}


def test_a_new_head_after_decompose_is_saved_as_it_is(tmp_path):
    model = vit()
    plan = pelacli.decompose(model, ratio=0.9, scope="layers")
    model.reset_classifier(5)
    found = check_round_trip(model, tmp_path / "a", images(model))
    energies = {r.name: r.energy for r in found.manifest.layers if r.rank is not None}
    assert energies == {name: layer.energy for name, layer in plan.layers.items() if layer.rank}


def test_a_new_head_of_transformers_is_saved_with_its_configuration(loaded, tmp_path):
    model = loaded(picture("cat", "dog", "fish"))
    model.classifier = nn.Linear(32, 5)
    model.config.num_labels = 5
    found = check_round_trip(model, tmp_path / "b", images(model))
    assert heads.num_classes(found.opened) == 5
    assert found.opened.inputs.labels == ()


def test_set_classes_takes_the_names_of_the_old_head_away(loaded, tmp_path):
    """Also where the number of classes is the same."""
    loaded(picture("cat", "dog", "fish"))
    opened = loading.load(tmp_path / "a").opened
    assert opened.inputs.labels == ("cat", "dog", "fish")
    heads.set_classes(opened, 3, seed=1)
    found = check_round_trip(opened.module, tmp_path / "b", images(opened.module))
    assert found.opened.inputs.labels == opened.inputs.labels == ()
    timms = wrapping.wrap(vit(pretrained_cfg_overlay={"label_names": ["a"] * 1000}))
    assert "label_names" in timms.config["pretrained_cfg"]
    heads.set_classes(timms, 1000, seed=1)
    assert "label_names" not in timms.config["pretrained_cfg"]


def test_a_new_head_is_the_head_of_what_is_decomposed(loaded, tmp_path):
    model = loaded(picture("cat", "dog", "fish"), ratio=None)
    opened, before = loading.open(str(tmp_path / "a"))
    before.history.append(StepRecord(step="finetune"))
    saving.save(opened, before, tmp_path / "a")
    model = pelacli.load(tmp_path / "a")
    model.classifier = nn.Linear(32, 5)
    model.config.num_labels = 5
    plan = pelacli.decompose(model, ratio=0.9, scope="layers")
    assert plan.ranks()
    found = check_round_trip(model, tmp_path / "b", images(model))
    row = next(r for r in found.manifest.layers if r.name == "classifier")
    assert (row.shape, row.reason) == ((5, 32), "output head")
    assert [step.step for step in found.manifest.history] == ["finetune"]


def test_another_class_of_transformers_around_low_rank_layers(loaded, tmp_path):
    model = loaded(words())
    other = words(transformers.DistilBertForSequenceClassification)
    other.distilbert = model.distilbert
    ids = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8)}
    found = check_round_trip(other, tmp_path / "b", ids)
    assert type(found.module) is transformers.DistilBertForSequenceClassification
    assert find.low_rank_layers(found.module)


def test_layers_that_became_dense_again(loaded, tmp_path):
    model = loaded(vit())
    name = "blocks.1.mlp.fc1"
    low = find.low_rank_layers(model)[name]
    dense = nn.Linear(low.in_features, low.out_features)
    dense.weight.data, dense.bias.data = low.weight.detach(), low.bias.detach()
    model.blocks[1].mlp.fc1 = dense
    before = {r.name: r for r in document.read(tmp_path / "a").layers}
    found = check_round_trip(model, tmp_path / "b", images(model))
    rows = {r.name: r for r in found.manifest.layers}
    assert rows[name].rank is None
    assert rows.keys() == before.keys()
    assert all(rows[other] == before[other] for other in rows if other != name)
    folded = export_dense.fold(model)
    check_round_trip(folded, tmp_path / "c", images(model))
    pelacli.plan(folded, ratio=0.9, scope="layers")


# What can't be written so that it can be read back -----------------------------------------------


def head_alone(model):
    model.classifier = nn.Linear(32, 5)


def wrapped(model):
    model.vit.layers[0].mlp.fc1 = nn.Sequential(model.vit.layers[0].mlp.fc1)


def activation(model):
    model.vit.layers[1].mlp.activation_fn = nn.ReLU()


def shorter(model):
    model.vit.layers = model.vit.layers[:1]


def scaled(model):
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model.classifier = Scaled(32, 3)


def infinite(model):
    model.vit.layernorm.weight.data[3] = float("inf")


def tied(model):
    model.transformer.h[1].ln_1.weight = model.transformer.h[0].ln_1.weight


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (head_alone, r"classifier\.weight has shape \(5, 32\), and config.json builds \(3, 32\)"),
        (wrapped, r"vit\.layers\.0\.mlp\.fc1\.0: the model has no such layer"),
        (activation, r"vit\.layers\.1\.mlp\.activation_fn is ReLU, and config.json builds GELU"),
        (shorter, r"config\.json builds vit\.layers\.1\.\S+, and the model has no such tensor"),
        (scaled, r"classifier is Scaled, and config\.json builds Linear"),
        (infinite, r"vit\.layernorm\.weight holds values that are not finite"),
        (tied, r"h\.1\.ln_1\.weight is tied to transformer\.h\.0\.ln_1\.weight"),
    ],
)
def test_a_layer_that_would_not_come_back_is_named_and_nothing_written(
    loaded, tmp_path, change, says
):
    if change is tied:
        torch.manual_seed(0)
        model = loaded(transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT2)).eval())
    else:
        model = loaded(picture("cat", "dog", "fish"))
    change(model)
    before = {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()}
    for name in ("a", "b"):
        with pytest.raises(RequestError, match=says) as caught:
            pelacli.save(model, tmp_path / name)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "b").exists()
    assert {p.name: p.read_bytes() for p in (tmp_path / "a").iterdir()} == before


def test_an_argument_that_json_has_no_form_for_is_named(tmp_path):
    model = vit(act_layer=nn.ReLU)
    with pytest.raises(RequestError, match=r"VisionTransformer: timm .* 'act_layer'"):
        pelacli.save(model, tmp_path / "a")


def test_dropout_and_other_batch_norms_may_come_and_go(tmp_path):
    """They change nothing in what the model gives in eval mode."""
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=3).eval()
    model.stages[0].blocks[0].drop_path = timm.layers.DropPath(0.1)
    check_round_trip(model, tmp_path / "a", torch.randn(1, 3, 160, 160))
    model = timm.create_model("test_resnet", num_classes=3).eval()
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    pelacli.save(model, tmp_path / "b")
    pelacli.load(tmp_path / "b")


def test_parts_that_the_library_itself_exchanges_are_no_obstacle(tmp_path):
    """BigBird takes another attention for short texts, and HuBERT's convolution gets a class of its
    own for its weight norm."""
    shape = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 64, "vocab_size": 50,
    }  # fmt: skip
    torch.manual_seed(0)
    text = transformers.BigBirdModel(transformers.BigBirdConfig(**shape)).eval()
    ids = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8)}
    text(**ids)
    check_round_trip(text, tmp_path / "text", ids)
    sizes = {"conv_dim": (16, 16), "conv_stride": (5, 5), "conv_kernel": (10, 3)}
    sizes |= {"num_feat_extract_layers": 2, "num_conv_pos_embeddings": 4}
    sizes |= {"num_conv_pos_embedding_groups": 2}
    sound = transformers.HubertModel(transformers.HubertConfig(**shape, **sizes)).eval()
    check_round_trip(sound, tmp_path / "sound", {"input_values": torch.randn(1, 800)})


def test_a_model_is_planned_decomposed_saved_and_loaded(here):
    model = timm.create_model("test_vit").eval()
    dense = sum(p.numel() for p in model.parameters())
    batches = [torch.randn(8, 3, 160, 160)]
    plan = pelacli.plan(model, ratio="0.6", batches=batches)
    assert sum(p.numel() for p in model.parameters()) == dense
    assert pelacli.decompose(model, ratio=0.6, batches=batches).ranks() == plan.ranks()
    pelacli.save(model, "saved")
    again = pelacli.load("saved")
    with torch.no_grad():
        assert torch.equal(again(batches[0]), model(batches[0]))
    assert sum(p.numel() for p in again.parameters()) <= 0.6 * dense


def test_a_module_of_no_library_is_decomposed():
    net = torch.nn.Sequential(torch.nn.Linear(32, 64), torch.nn.GELU(), torch.nn.Linear(64, 32))
    before = sum(p.numel() for p in net.parameters())
    plan = pelacli.decompose(net, ratio="1/2", policy="uniform")
    assert set(plan.ranks()) == {"0", "2"}
    assert sum(p.numel() for p in net.parameters()) <= before / 2


# Arguments ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [pelacli.decompose, pelacli.plan], ids=["decompose", "plan"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({}, "ratio: policy energy needs one"),
        ({"ratio": 1.5}, "ratio: "),
        ({"ratio": 0.5, "unit": "bytes"}, "unit: 'bytes' is none of params, flops"),
        ({"ratio": 0.5, "multiple": 0}, "multiple: 0 is out of range; at least 1"),
        ({"ratio": 0.5, "energy": 0.9}, "energy: energy and ratio both say how small; give one"),
        ({"policy": "threshold"}, "policy: 'threshold' needs threshold too"),
        ({"ratio": 0.5, "min_rank": 9, "max_rank": 8}, "max_rank: max_rank 8 is below min_rank 9"),
        ({"ratio": 0.5, "include": ["("]}, "include: "),
        ({"ratio": 0.5, "pins": {"fc1": "thin"}}, "pins: "),
    ],
)
def test_an_argument_that_is_no_good_is_named_and_the_model_stays_as_it_is(call, arguments, says):
    model = vit()
    before = weights(model)
    with pytest.raises(RequestError) as caught:
        call(model, **arguments)
    assert str(caught.value).startswith(says)
    assert "\n" not in str(caught.value)
    assert same(model, before)


def test_the_interface_factorises_as_the_step_does(tmp_path):
    recipe = {
        "model": str(tmp_path / "dense"), "output": str(tmp_path / "run"),
        "decompose": {"ratio": 0.8, "scope": "layers", "pin": {"fc1$": 4}},
    }  # fmt: skip
    model = vit()
    pelacli.save(model, tmp_path / "dense")
    done = steps_decompose.run(step_of(Recipe.model_validate(recipe), "decompose"))
    pelacli.decompose(model, 0.8, scope="layers", pins={"fc1$": 4})
    assert same(model, weights(pelacli.load(done.path)))
