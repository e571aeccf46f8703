"""What goes along from a model's directory into an artefact, and what stays."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest
import timm
from generated_text import save_model, write
from timm.models import _hub

from pelacli.artefact import loading
from pelacli.errors import RequestError
from pelacli.models import carried as carried_module
from pelacli.models import heads, opening
from pelacli.models.carried import carried

KNOWN = [
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "merges.txt", "vocab.txt", "spiece.model", "source.spm", "target.spm",
    "qwen.tiktoken", "tekken.json", "bpe.codes", "chat_template.jinja", "chat_template.json",
    "additional_chat_templates/tool_use.jinja", "preprocessor_config.json",
    "video_preprocessor_config.json", "processor_config.json", "generation_config.json",
    "LICENSE", "LICENSE.txt", "NOTICE", "modules.json", "config_sentence_transformers.json",
    "sentence_bert_config.json", "1_Pooling/config.json",
]  # fmt: skip
LEFT = [
    "checkpoint-500/trainer_state.json", "checkpoint-500/tokenizer.json", "wandb/run.json",
    "runs/events.txt", "train.ipynb", "train.log", "notes.txt", "results.json", "all_results.json",
    "trainer_state.json", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth",
    "pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack",
    "onnx/model.onnx", "onnx/config.json", "openvino/openvino_model.xml", "rust_model.ot",
    "model.safetensors.index.json", "config.json", "pela.json", "README.md", ".git/config",
    ".gitattributes", "data.txt", "predictions.json", "modeling_custom.py", "adapter_config.json",
    "secrets.json", "metrics.jsonl", "2_Other/config.json",
]  # fmt: skip


def test_known_names_go_along_and_nothing_else(tmp_path):
    for name in [*KNOWN, *LEFT]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("[]")
    assert sorted(carried(tmp_path)) == sorted(KNOWN)


def test_names_of_the_tokenizers_own_files_go_along(tmp_path):
    class Own:
        vocab_files_names: ClassVar = {"vocab_file": "syllables.bin", "config": "config.json"}

    for name in ("syllables.bin", "config.json", "other.bin"):
        (tmp_path / name).write_text("x")
    assert carried(tmp_path, Own()) == {"syllables.bin": b"x"}


def test_links_are_followed_within_the_directory_and_the_hubs_cache_alone(tmp_path, monkeypatch):
    notes = []
    monkeypatch.setattr(carried_module, "warn", notes.append)
    (tmp_path / "private.txt").write_text("private")
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "words").write_text("a")
    (folder / "vocab.txt").symlink_to("words")
    (folder / "tokenizer.json").symlink_to(tmp_path / "private.txt")
    (folder / "merges.txt").symlink_to("nowhere")
    assert carried(folder) == {"vocab.txt": b"a"}
    assert [note.partition(": is a link")[0] for note in notes] == [f"{folder}/tokenizer.json"]
    cache = tmp_path / "models--a--b"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "123").write_text("b")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "vocab.txt").symlink_to("../../blobs/123")
    (cache / "snapshots" / "abc" / "tokenizer.json").symlink_to(tmp_path / "private.txt")
    assert carried(cache / "snapshots" / "abc") == {"vocab.txt": b"b"}


def test_modules_json_leads_to_no_file_outside(tmp_path):
    (tmp_path / "config.json").write_text("private")
    path = save_model("bert", "", tmp_path / "model")
    for folder in ("..", "1_Pooling/../..", str(tmp_path)):
        rows = [{"path": folder, "type": "sentence_transformers.models.Pooling"}]
        (path / "modules.json").write_text(json.dumps(rows))
        assert not any("config.json" in name.split("/") for name in carried(path)), folder
        with pytest.raises(RequestError, match="leads out of the directory"):
            opening.open(str(path))


def test_an_artefact_holds_no_checkpoints_logs_or_pickles(pela, here):
    save_model("bert", "", here / "model")
    for name in LEFT:
        if name not in (
            "config.json",
            "pela.json",
            "model.safetensors.index.json",
            "adapter_config.json",
            "adapter_model.safetensors",
        ):
            (here / "model" / name).parent.mkdir(parents=True, exist_ok=True)
            (here / "model" / name).write_text("{}")
    code, _, err = pela("decompose", "model", "--ratio", "0.6", "--scope", "layers", "-o", "a")
    assert code == 0, err
    names = {p.relative_to("a").as_posix() for p in Path("a").rglob("*") if p.is_file()}
    assert names == {
        "model.safetensors", "config.json", "pela.json", "README.md", "spectra.safetensors",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip


def test_a_classifier_made_of_a_sentence_encoder_does_not_claim_to_be_one(pela, here):
    path = save_model("bert", "", here / "model")
    rows = [
        {"path": folder, "type": f"sentence_transformers.models.{kind}"}
        for folder, kind in (("", "Transformer"), ("1_Pooling", "Pooling"))
    ]
    (path / "modules.json").write_text(json.dumps(rows))
    (path / "config_sentence_transformers.json").write_text("{}")
    (path / "sentence_bert_config.json").write_text('{"max_seq_length": 20}')
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text("{}")
    rows = [{"text": f"w{i} k{i}", "label": "ab"[i % 2]} for i in range(8)]
    for split in ("train", "validation"):
        write(here / "data" / f"{split}.jsonl", rows)
    Path("r.toml").write_text(
        'model = "model"\noutput = "run"\ntask = "text-classification"\n'
        '[data]\ndataset = "data"\nbatch_size = 4\n[decompose]\nratio = 0.6\nscope = "layers"\n'
        "[finetune]\nsteps = 1\n"
    )
    code, _, err = pela("run", "r.toml")
    assert code == 0, err
    encoder, classifier = (loading.load(Path("run") / n) for n in ("decompose", "finetune"))
    assert {"modules.json", "1_Pooling/config.json"} <= encoder.opened.carried.keys()
    assert not {
        "modules.json", "1_Pooling/config.json", "config_sentence_transformers.json",
    } & classifier.opened.carried.keys()  # fmt: skip
    assert classifier.opened.inputs.max_length == encoder.opened.inputs.max_length == 20


def test_what_generates_nothing_carries_no_generation_config(tmp_path):
    save_model("gpt2", "CausalLM", tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text("{}")
    opened = opening.open(str(tmp_path / "m"))
    assert "generation_config.json" in opened.carried
    classifier = heads.with_head(opened, "SequenceClassification", 0, ["a", "b"])
    assert "generation_config.json" not in classifier.carried
    assert "tokenizer.json" in classifier.carried


def test_terms_of_use_go_along_with_a_timm_model(pela, here):
    model = timm.create_model("test_vit", num_classes=3)
    _hub.save_for_hf(model, here / "m", safe_serialization="both")
    (here / "m" / "LICENSE").write_text("terms")
    code, _, err = pela("decompose", "m", "--ratio", "0.6", "-o", "a")
    assert code == 0, err
    assert (here / "a" / "LICENSE").read_text() == "terms"
    assert not (here / "a" / "pytorch_model.bin").exists()
