"""Opening models by any name, and what is read from their modules."""

from __future__ import annotations

import json

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank import find, replace
from pelacli.models import blocks, examples, heads, libraries, opening, prediction, wrapping
from pelacli.models.inputs import ImageInput, TextInput
from pelacli.models.outputs import main_output
from pelacli.models.pairs.families import find_view
from pelacli.recipe.aliases import ALIASES, SHAPES
from pelacli.train import regularisation

TINY = {"embed_dim": 64, "depth": 2, "num_heads": 4}
BERT = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 64, "vocab_size": 50,
}  # fmt: skip


def tiny(name="vit_tiny_patch16_224", **how):
    return opening.open(name, weights="random", model_args=TINY, **how)


def bert(cls=transformers.BertModel, **more):
    torch.manual_seed(0)
    return cls(transformers.BertConfig(**BERT, **more)).eval()


def test_every_alias_is_a_model():
    import timm

    for name, full in ALIASES.items():
        assert "/" in full or timm.is_model(full.split(".")[0]), name
        if "." in full:
            assert timm.is_model_pretrained(full), name
        if name in SHAPES:
            assert SHAPES[name] in transformers.CONFIG_MAPPING


def test_an_alias_opens_what_it_stands_for():
    opened = opening.open("vit_tiny", weights="random", meta=True)
    assert opened.source.architecture == "vit_tiny_patch16_224"
    assert opened.params == 5_717_416
    shape = opening.open("bert_base", weights="random", meta=True)
    assert shape.params == 109_482_240


def test_random_weights_come_from_the_seed():
    one, same, other = (tiny(seed=s).module.state_dict() for s in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_classes_and_arguments_reach_the_model():
    opened = tiny(num_classes=7)
    assert heads.num_classes(opened) == 7
    assert not opened.module.training
    assert prediction.predict(opened.module, examples.example(opened)).shape == (1, 7)
    wanted = ImageInput((3, 224, 224), (0.5,) * 3, (0.5,) * 3, "bicubic", 0.9, fixed=True)
    assert opened.inputs == wanted


def test_a_bare_file_has_its_own_classes(checkpoint):
    opened = opening.open(str(checkpoint), arch="test_vit")
    assert heads.num_classes(opened) == 7
    assert opened.source.weights == str(checkpoint)
    assert torch.equal(opened.module.head.weight, load_file(checkpoint)["head.weight"])
    named = opening.open("test_vit", weights=str(checkpoint), num_classes=3)
    assert heads.num_classes(named) == 3
    assert torch.equal(named.module.norm.weight, load_file(checkpoint)["norm.weight"])


def test_directories_of_both_libraries(tmp_path):
    module = bert()
    module.save_pretrained(tmp_path / "bert")
    (tmp_path / "bert" / "vocab.json").write_text("{}")
    opened = opening.open(str(tmp_path / "bert"))
    assert opened.carried == {"vocab.json": b"{}"}
    assert isinstance(opened.inputs, TextInput)
    ids = {"input_ids": torch.arange(8)[None], "attention_mask": torch.ones(1, 8).long()}
    with torch.no_grad():
        assert torch.equal(prediction.predict(opened.module, ids), prediction.predict(module, ids))
    assert len(opened.source.digest) == 64
    vit = tiny()
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text(json.dumps(vit.config))
    save_file(vit.module.state_dict(), tmp_path / "vit" / "model.safetensors")
    again = opening.open(str(tmp_path / "vit"))
    assert torch.equal(again.module.head.weight, vit.module.head.weight)
    assert opening.open(str(tmp_path / "vit"), weights="random").source.digest is None


def test_weights_of_another_architecture_than_the_one_named_are_refused(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match=r"holds a model of bert, and vit_tiny is another; give"):
        opening.open("vit_tiny", weights=str(tmp_path))
    with pytest.raises(RequestError, match="holds a model of bert, and t5 is"):
        opening.open("t5", weights=str(tmp_path))
    assert opening.open("bert", weights=str(tmp_path)).source.library == "transformers"


@pytest.mark.parametrize(
    ("name", "how", "says"),
    [
        ("vit_bse", {}, "unknown model; did you mean vit_base"),
        ("bert", {}, "is a family of transformers, not a checkpoint"),
        ("vit_tiny_patch16_224.zzz", {}, "unknown pretrained tag; known: vit_tiny_patch16_224.aug"),
        ("no/such/file.safetensors", {}, "there is no such file"),
        ("vit_tiny", {"weights": "nowhere"}, "--weights nowhere: there is no such file"),
        ("vit_tiny", {"weights": "random", "model_args": {"nope": 3}}, "model_args don't fit"),
        (
            "bert",
            {"weights": "random", "model_args": {"hiden_size": 3}},
            "did you mean hidden_size",
        ),
        ("bert", {"weights": "random", "model_args": {"hidden_size": "x"}}, "expected int"),
        ("bert", {"weights": "random", "model_args": {"hidden_size": 13}}, "model_args don't fit"),
    ],
)
def test_requests_that_make_no_sense(name, how, says):
    with pytest.raises(RequestError, match=says):
        opening.open(name, **how)


def test_a_directorys_arguments_are_checked_too(tmp_path):
    bert().save_pretrained(tmp_path)
    with pytest.raises(RequestError, match="no 'hiden_size'; did you mean hidden_size"):
        opening.open(str(tmp_path), model_args={"hiden_size": 3})
    opened = opening.open(str(tmp_path), model_args={"attn_implementation": "eager"})
    assert opened.module.config._attn_implementation == "eager"


def test_weights_that_are_not_finite_are_refused(tmp_path):
    module = bert()
    module.encoder.layer[1].output.dense.weight.data[3, 4] = float("nan")
    module.save_pretrained(tmp_path)
    with pytest.raises(
        RequestError, match=r"encoder\.layer\.1\.output\.dense\.weight holds values"
    ):
        opening.open(str(tmp_path))


def test_blocks_are_the_residual_stream():
    swin = {"embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4]}
    two = opening.open("swin_tiny_patch4_window7_224", weights="random", model_args=swin, meta=True)
    assert blocks.blocks(two.module) == [f"layers.{i}.blocks.{j}" for i in (0, 1) for j in (0, 1)]
    assert blocks.blocks(tiny(meta=True).module) == ["blocks.0", "blocks.1"]
    assert blocks.blocks(bert()) == ["encoder.layer.0", "encoder.layer.1"]
    assert blocks.blocks(opening.open("resnet18", weights="random", meta=True).module) == []


def test_blocks_of_two_kinds():
    class Mlp(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    class Other(Mlp):
        pass

    hybrid = nn.ModuleDict({"layers": nn.ModuleList([Mlp(), Other()])})
    assert blocks.blocks(hybrid) == ["layers.0", "layers.1"]
    last = nn.Sequential(nn.Conv2d(3, 4, 4), nn.Flatten(2), Mlp())  # EfficientFormer's last stage
    assert blocks.blocks(nn.Sequential(nn.Conv2d(3, 3, 1), last)) == ["1.2"]
    assert blocks.blocks(nn.Sequential(last, nn.Sequential(Mlp(), Mlp()))) == ["1.0", "1.1"]


def test_blocks_are_found_in_a_decomposed_model_too():
    opened = tiny()
    names = blocks.blocks(opened.module)
    free = find.find_layers(opened.module, head=opened.head)
    replace.replace_empty(opened.module, {la.name: 4 for la in free if la.reason is None})
    assert blocks.blocks(opened.module) == names


def test_heads():
    assert tiny(meta=True).head == {"head"}
    distilled = tiny("deit_tiny_distilled_patch16_224", meta=True)
    assert distilled.head == {"head", "head_dist"}
    assert wrapping.wrap(bert()).head == frozenset()
    assert "cls" in wrapping.wrap(bert(transformers.BertForMaskedLM)).head
    assert wrapping.wrap(bert(transformers.BertForSequenceClassification)).head >= {"classifier"}


def test_a_fresh_head():
    for opened in (tiny(), wrapping.wrap(bert(transformers.BertForSequenceClassification))):
        heads.set_classes(opened, 9, seed=0)
        with torch.no_grad():
            out = prediction.predict(opened.module, examples.example(opened))
        assert out.shape == (1, 9)
        assert heads.num_classes(opened) == 9
    with pytest.raises(RequestError, match="no classifier to exchange"):
        heads.set_classes(wrapping.wrap(bert()), 9, seed=0)


def test_positions_and_temperatures_do_not_decay():
    names = regularisation.no_decay(tiny(meta=True).module)
    assert {"pos_embed", "cls_token"} <= names
    assert not any("weight" in name and "embed" not in name for name in names)
    assert any("position_embeddings" in name for name in regularisation.no_decay(bert()))


@pytest.mark.parametrize(
    ("kind", "args", "wants"),
    [
        ("beit", {"num_hidden_layers": 1, "image_size": 64}, {"pixel_values": (1, 3, 64, 64)}),
        ("segformer", {}, {"pixel_values": (1, 3, 224, 224)}),
        ("videomae", {"num_frames": 2, "image_size": 32}, {"pixel_values": (1, 2, 3, 32, 32)}),
        ("vilt", {"image_size": 64, "max_position_embeddings": 40},
         {"pixel_values": (1, 3, 64, 64), "input_ids": (1, 40), "attention_mask": (1, 40)}),
        ("wav2vec2", {}, {"input_values": (1, 16000)}),
        ("audio-spectrogram-transformer", {}, {"input_values": (1, 1024, 128)}),
        ("whisper", {"max_source_positions": 60, "num_mel_bins": 8},
         {"input_features": (1, 8, 120), "decoder_input_ids": (1, 128)}),
        ("xlnet", {}, {"input_ids": (1, 128), "attention_mask": (1, 128)}),
    ],
)  # fmt: skip
def test_a_plain_sample_is_what_the_model_takes(kind, args, wants):
    opened = opening.open(kind, weights="random", model_args=args, meta=True)
    batch = examples.example(opened)
    assert {name: tuple(value.shape) for name, value in batch.items()} == wants
    assert isinstance(opened.inputs, ImageInput) == (list(wants) == ["pixel_values"])


def test_the_main_output():
    hidden = torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    found = main_output({"last_hidden_state": hidden, "pooler_output": hidden[:, 0]}, mask)
    assert torch.allclose(found[0], hidden[0, :2].mean(0))
    assert torch.allclose(found[1], hidden[1].mean(0))
    assert main_output({"logits": hidden, "last_hidden_state": hidden[:1]}) is hidden
    assert main_output({"last_hidden_state": hidden, "pooler_output": hidden[:, 0]}).shape == (2, 4)
    assert main_output((None, torch.ones(2).long(), hidden)) is hidden
    assert main_output(((None, hidden), hidden[:1])) is hidden  # a block of two streams
    assert main_output({"logits": [hidden, hidden[:1]]}) is hidden  # an output for each head
    with pytest.raises(TypeError, match="no tensor"):
        main_output([None])


def test_a_library_that_pela_does_not_know_is_refused():
    with pytest.raises(RequestError, match="this version of pela knows timm, transformers"):
        libraries.library("jax")


def test_a_module_tells_its_library():
    import timm

    class Own(nn.Module):
        pela_model = "albef"

    assert libraries.of(timm.create_model("test_vit")) == "timm"
    assert libraries.of(bert()) == "transformers"
    assert libraries.of(Own()) == "albef"
    assert libraries.of(nn.Linear(2, 2)) == "torch"


def test_only_models_of_images_with_texts_have_a_view_of_pairs():
    assert find_view(tiny().module) is None
    assert find_view(bert()) is None
    assert find_view(nn.Linear(2, 2)) is None
