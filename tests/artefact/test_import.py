"""``pela import``: low-rank checkpoints of other code become artefacts with the same outputs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from refusals import refused as refused
from refusals import tree
from safetensors.torch import save_file
from tied_checkpoints import checkpoint
from torch import nn

import pelacli
from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.lowrank import find

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def dense() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=12, **VIT).eval()


def dense_directory(path: Path) -> Path:
    """The architecture, with other weights."""
    torch.manual_seed(1)
    model = timm.create_model("vit_tiny_patch16_224", num_classes=12, **VIT)
    timm.models.save_for_hf(model, path, safe_serialization="both")
    return path


def factorised_by_the_reference(model: nn.Module, c: int = 2) -> nn.Module:
    """What PELA's code makes of a model: r = ⌊ab / c(a + b)⌋, half of each singular value on each
    side, ``Sequential(Linear(in, r), Linear(r, out))`` in the place of each layer but the head."""
    for name, layer in list(model.named_modules()):
        if not isinstance(layer, nn.Linear) or "head" in name:
            continue
        b, a = layer.weight.shape
        r = a * b // (c * (a + b))
        u, s, v = torch.linalg.svd(layer.weight.detach(), full_matrices=False)
        first, second = nn.Linear(a, r, bias=False), nn.Linear(r, b, bias=layer.bias is not None)
        first.weight = nn.Parameter(s[:r, None].sqrt() * v[:r])
        second.weight = nn.Parameter(u[:, :r] * s[:r].sqrt())
        second.bias = layer.bias
        parent, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(parent), leaf, nn.Sequential(first, second))
    return model


def reference_tensors() -> dict[str, torch.Tensor]:
    return factorised_by_the_reference(dense()).state_dict()


def renamed(tensors, down: str, up: str, *, turned: bool = False) -> dict[str, torch.Tensor]:
    """Other names for the matrices; bare ones have their bias at the layer itself."""
    result = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"(.*(?:attn|mlp)\.\w+)\.([01])\.(weight|bias)", name)
        if match is None:
            result[name] = tensor
        elif match[3] == "bias":
            result[f"{match[1]}.bias"] = tensor
        else:
            part = (down, up)[int(match[2])]
            result[f"{match[1]}.{part}"] = tensor.T.contiguous() if turned else tensor
    return result


def test_a_checkpoint_of_the_papers_code_becomes_an_artefact(pela, here):
    model = factorised_by_the_reference(dense())
    torch.save({"model": model.state_dict(), "epoch": 3}, here / "c.pth")
    dense_directory(here / "dense")
    code, out, err = pela("import", "c.pth", "--model", "dense", "-o", "a", "--json")
    assert code == 0, err
    layers = {row["name"]: row for row in json.loads(out)["layers"]}
    assert layers["blocks.0.attn.qkv"]["rank"] == 32 * 96 // (2 * 128)
    ours = pelacli.load("a")
    with torch.no_grad():
        torch.testing.assert_close(ours(X), model(X))
    assert len(find.low_rank_layers(ours)) == 8
    assert json.loads((here / "a" / "pela.json").read_text())["history"][-1]["step"] == "import"
    assert pela("report", "a")[0] == 0


@pytest.mark.parametrize(
    "names",
    [("V", "U", False), ("u", "v", False), ("B", "A", False), ("A", "B", True),
     ("U", "V", True), ("BLinear.weight", "ALinear.weight", False)],
    ids=str,
)  # fmt: skip
def test_pairs_of_other_names_are_told_by_their_shapes(names, pela, here):
    down, up, turned = names
    tensors = renamed(reference_tensors(), down, up, turned=turned)
    save_file(
        {f"module.{name}": t.contiguous().clone() for name, t in tensors.items()},
        here / "c.safetensors",
    )
    dense_directory(here / "dense")
    code, _, err = pela("import", "c.safetensors", "--model", "dense", "-o", "a")
    assert code == 0, err
    model = factorised_by_the_reference(dense())
    with torch.no_grad():
        torch.testing.assert_close(pelacli.load("a")(X), model(X))


def test_pairs_beside_each_other_are_read_as_svd_llm_names_them(pela, here):
    checkpoint("LlamaForCausalLM", here / "dense", "apart", False)
    tensors, expected = {}, loading.open(str(here / "dense"))[0].module
    for name, tensor in copy.deepcopy(expected.state_dict()).items():
        if not re.search(r"_proj\.weight$", name):
            tensors[name] = tensor
            continue
        u, s, v = torch.linalg.svd(tensor, full_matrices=False)
        stem = name.removesuffix("_proj.weight")
        tensors[f"{stem}_u_proj.weight"] = u[:, :7] * s[:7]
        tensors[f"{stem}_v_proj.weight"] = v[:7].clone()
        expected.get_parameter(name).data = (u[:, :7] * s[:7]) @ v[:7]
    save_file({n: t.contiguous() for n, t in tensors.items()}, here / "c.safetensors")
    code, _, err = pela("import", "c.safetensors", "--model", "dense", "-o", "a")
    assert code == 0, err
    ids = torch.arange(3, 13)[None]
    with torch.no_grad():
        ours = pelacli.load("a")(input_ids=ids).logits
        torch.testing.assert_close(ours, expected(input_ids=ids).logits, rtol=1e-4, atol=1e-4)


FIRST = "blocks.0.attn.qkv"


def with_values(tensors):
    return tensors | {f"{FIRST}.2.weight": torch.ones(12)}


def all_square(tensors):
    """One layer alone, square and of full rank: nothing tells which matrix meets the input."""
    first = dense().state_dict() | {"blocks.0.attn.proj.A": torch.eye(32),
                                    "blocks.0.attn.proj.B": torch.eye(32)}  # fmt: skip
    del first["blocks.0.attn.proj.weight"]
    return first


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: dense().state_dict(), "no layer of the model is a pair of matrices"),
        (lambda t: t | {f"{FIRST}.0.weight": torch.ones(13, 32)},
         r"qkv\.0\.weight \[13, 32\] and .*qkv\.1\.weight \[96, 12\]: their product is no matrix"),
        (with_values, r"qkv\.2\.weight: is a vector beside the matrices of blocks\.0\.attn\.qkv"),
        (lambda t: {n: v for n, v in t.items() if n != f"{FIRST}.1.weight"},
         r"blocks\.0\.attn\.qkv: holds .*qkv\.0\.weight.*, and not two matrices"),
        (lambda t: {n: v for n, v in t.items() if n != f"{FIRST}.1.bias"},
         r"its weights lack blocks\.0\.attn\.qkv\.up\.bias"),
        (lambda t: t | {f"{FIRST}.0.bias": torch.ones(12)}, "has two biases"),
        (all_square, "leave open which of them meets the input"),
        (lambda t: t | {"extra.weight": torch.ones(2)}, r"extra\.weight: the model has no such"),
        (lambda t: {n: v for n, v in t.items() if n != "norm.weight"}, r"lack norm\.weight"),
        (lambda t: t | {f"{FIRST}.1.weight": torch.full((96, 12), torch.nan)}, "not finite"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_one_line(change, says, refused, here):
    dense_directory(here / "dense")
    save_file({n: t.contiguous().clone() for n, t in change(reference_tensors()).items()},
              here / "c.safetensors")  # fmt: skip
    line = refused("import", "c.safetensors", "--model", "dense", "-o", "a")
    assert re.search(says, line), line


def test_what_is_no_checkpoint_or_no_dense_model_is_refused(refused, artefact):
    here = artefact.parent
    (here / "bad.pth").write_bytes(b"no pickle")
    save_file({"a": torch.ones(2)}, here / "c.safetensors")
    assert "bad.pth: " in refused("import", "bad.pth", "--model", "a", "-o", "x")
    assert "no such file" in refused("import", "none.pth", "--model", "a", "-o", "x")
    line = refused("import", "c.safetensors", "--model", "a", "-o", "x")
    assert "--model a: is low-rank already; name the dense model" in line
    (here / "x").mkdir()
    (here / "x" / "mine").write_text("mine")
    line = refused("import", "c.safetensors", "--model", "a", "-o", "x")
    assert "x: exists and is not an artefact" in line


# From Python -------------------------------------------------------------------------------------


class Net(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(32, 64), nn.GELU(), nn.Linear(64, 8))


def saved_checkpoint(here: Path) -> dict[str, torch.Tensor]:
    tensors = reference_tensors()
    torch.save(tensors, here / "c.pth")
    return tensors


def test_python_takes_a_name_or_a_module_which_stays_as_it_is(pela, here):
    saved_checkpoint(here)
    dense_directory(here / "dense")
    assert pela("import", "c.pth", "--model", "dense", "-o", "a")[0] == 0
    expected = pelacli.load("a").state_dict()
    model = dense().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for given, path in (("dense", "b"), (here / "dense", here / "c"), (model, "d")):
        imported = pelacli.import_checkpoint(here / "c.pth", path, model=given)
        assert imported.path == Path(path)
        assert imported.ranks["blocks.0.attn.qkv"] == 12
        assert len(imported.ranks) == 8
        ours = pelacli.load(path).state_dict()
        assert all(torch.equal(ours[name], expected[name]) for name in expected | ours)
        assert pelacli.verify(path).whole
    assert model.training
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    history = json.loads((here / "d" / "pela.json").read_text())["history"]
    assert history[-1]["recipe"] == {"checkpoint": "c.pth", "model": "VisionTransformer"}


def test_a_class_of_ones_own_is_imported_and_read_into_one(here):
    model = Net()
    tensors = {name: torch.randn_like(value) for name, value in model.state_dict().items()}
    up, down = torch.randn(64, 5), torch.randn(5, 32)
    tensors["0.weight"] = up @ down
    model.load_state_dict(tensors)
    del tensors["0.weight"]
    torch.save(tensors | {"0.V": down, "0.U": up}, "c.pth")
    assert pelacli.import_checkpoint("c.pth", "a", model=Net()).ranks == {"0": 5}
    x = torch.randn(3, 32)
    with torch.no_grad():
        torch.testing.assert_close(
            pelacli.load("a", model=Net())(x), model(x), rtol=1e-4, atol=1e-4
        )


def low_rank_module() -> nn.Module:
    model = dense()
    pelacli.decompose(model, 0.6)
    return model


@pytest.mark.parametrize(
    ("file", "path", "model", "says"),
    [
        ("none.pth", "x", dense, "none.pth: there is no such file"),
        ("c.pth", "x", low_rank_module, "model: is low-rank already; give the dense model"),
        ("c.pth", "x", lambda: None, "model: is a NoneType, not an nn.Module"),
        ("c.pth", "x", lambda: nn.Module, "model: is the class itself"),
        ("c.pth", "x", Net, r"c\.pth"),
        ("c.pth", "taken", dense, "taken: exists and is not an artefact"),
        ("c.pth", "", dense, "path: is empty"),
        (3, "x", dense, "path: expected text or a Path, not a int"),
        ("c.pth", "x", lambda: "vit_tni_patch16_224", "unknown model; .*vit_tiny_patch16_224"),
    ],
)
def test_what_python_can_not_import_is_refused_and_leaves_everything(file, path, model, says, here):
    saved_checkpoint(here)
    (here / "taken").mkdir()
    (here / "taken" / "mine").write_text("mine")
    before = tree(here)
    with pytest.raises(RequestError, match=says):
        pelacli.import_checkpoint(file, path, model=model())
    assert tree(here) == before
