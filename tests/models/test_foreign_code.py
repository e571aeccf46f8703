"""Nothing that a stranger's files name is run, and nobody is asked whether it may be."""

from __future__ import annotations

import ast
import io
import json
import pickle
import sys
from pathlib import Path

import pytest
import torch
import transformers
from families import BERT
from refusals import refused as refused

import pelacli

PACKAGE = Path(pelacli.__file__).parent
# Calls that would run what a file names, or unpickle it, unless they are told not to.
SAFE = {
    "from_pretrained": ("trust_remote_code", False),
    "from_config": ("trust_remote_code", False),
    "load": ("weights_only", True),
}
OWN = ("timm_adapter", "adapter", "hf_adapter")  # pela's functions of the same names


def calls(text: str):
    """Calls of other libraries that open a stranger's file, as (call, (argument, value))."""
    if not any(f"{name}(" in text for name in SAFE):
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of = ast.unparse(node.func.value)
            if node.func.attr == "load" and of not in ("torch", "pickle", "np", "numpy", "joblib"):
                continue
            if node.func.attr in SAFE and of not in OWN:
                yield node, SAFE[node.func.attr]


def test_every_call_that_opens_a_file_of_a_library_forbids_code():
    seen = 0
    for file in PACKAGE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        assert "pickle.load" not in text, file
        for call, (name, value) in calls(text):
            given = {k.arg: k.value for k in call.keywords}
            where = f"{file.relative_to(PACKAGE)}:{call.lineno}"
            assert name in given, where
            assert ast.literal_eval(given[name]) is value, where
            seen += 1
    assert seen >= 10


class Yes(io.StringIO):
    """Standard input of somebody who answers yes to everything."""

    asked = False

    def readline(self, *_):
        type(self).asked = True
        return "y\n"


@pytest.fixture
def evil(here, monkeypatch) -> Path:
    """A small BERT beside code that leaves a trace when it runs, and a user who would allow it."""
    config = transformers.BertConfig(**BERT)
    transformers.BertForSequenceClassification(config).save_pretrained("evil")
    trace = here / "trace"
    (here / "evil" / "code.py").write_text(
        f"open({str(trace)!r}, 'w').close()\n"
        "from transformers import BertConfig, BertModel, BertTokenizer\n"
        "class C(BertConfig):\n    model_type = 'evil'\n"
    )
    monkeypatch.setattr(Yes, "asked", False)
    monkeypatch.setattr(sys, "stdin", Yes())
    yield here / "evil"
    assert not trace.exists()
    assert not Yes.asked


def edit(file: Path, **changes: object) -> None:
    old = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(old | changes))


AUTO = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", "code.T"]}


@pytest.mark.parametrize(
    "args",
    [
        ("report", "evil"),
        ("eval", "evil"),
        ("decompose", "evil", "--ratio", "0.8", "-o", "out"),
        ("decompose", "evil", "--weights", "random", "--ratio", "0.8", "-o", "out"),
        ("decompose", "bert", "--weights", "evil", "--ratio", "0.8", "-o", "out"),
    ],
)
def test_a_type_that_needs_code_of_its_own_is_refused(refused, evil, args):
    edit(evil / "config.json", model_type="evil", auto_map=AUTO)
    assert "pela never runs the code that auto_map names" in refused(*args)


def test_recipes_refuse_it_too(refused, evil, here):
    edit(evil / "config.json", model_type="evil", auto_map=AUTO)
    for section in ("decompose]\nratio = 0.5", "pretrain]\nepochs = 1"):
        (here / "r.toml").write_text(
            f'model = "evil"\noutput = "run"\n[data]\ntrain = "x"\ndataset = "x"\n[{section}\n'
        )
        assert "pela never runs the code" in refused("run", "r.toml")


@pytest.mark.parametrize(
    "file", ["config.json", "tokenizer_config.json", "preprocessor_config.json"]
)
def test_code_beside_a_known_type_is_left_alone(pela, evil, file):
    edit(evil / "tokenizer.json")
    edit(evil / file, auto_map=AUTO | {"AutoImageProcessor": "code.P"}, tokenizer_class="Evil")
    code, _, err = pela("decompose", "evil", "--ratio", "0.8", "--dry-run")
    assert code in (0, 2), err
    assert "Traceback" not in err


def test_a_kernel_from_the_hub_is_refused(refused, evil):
    for key in ("attn_implementation", "_attn_implementation"):
        edit(evil / "config.json", **{key: "somebody/attention"})
        assert f"{key} is 'somebody/attention'" in refused("report", "evil")
        edit(evil / "config.json", **{key: None})
    edit(evil / "config.json", text_config={"attn_implementation": {"": "somebody/attention:f"}})
    assert "a kernel from the hub" in refused("report", "evil")


class Trap:
    """Leaves a trace when it is unpickled."""

    def __reduce__(self):
        return (open, ("trace", "w"))


def test_pickles_beside_a_model_are_not_opened(pela, evil):
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "m.pkl", "x.npy"):
        (evil / name).write_bytes(pickle.dumps(Trap()))
    code, _, err = pela("decompose", "evil", "--ratio", "0.8", "--dry-run")
    assert code == 0, err


def test_a_directory_of_pickles_alone_is_refused(refused, evil):
    (evil / "model.safetensors").unlink()
    torch.save({"a": Trap()}, evil / "pytorch_model.bin")
    (evil / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "pytorch_model.bin"}})
    )
    refused("decompose", "evil", "--ratio", "0.8")
    (evil / "model.safetensors.index.json").unlink()
    assert "pela never unpickles" in refused("decompose", "evil", "--ratio", "0.8")


def test_a_named_pickle_is_read_for_its_tensors_alone(refused, here):
    torch.save({"a": Trap()}, here / "albef.pth")
    args = ("decompose", "albef", "--weights", "albef.pth", "--ratio", "0.8")
    assert "holds more than tensors" in refused(*args)
    assert not (here / "trace").exists()


def test_arguments_that_lead_timm_to_other_files_are_refused(refused):
    args = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.8")
    for key in ("checkpoint_path", "cache_dir"):
        assert f"model_args.{key}: is no argument" in refused(
            *args, "--set", f"model_args.{key}=x.pth"
        )
