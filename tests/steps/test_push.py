"""An artefact goes to the hub whole, with a card for its readers, or not at all."""

from __future__ import annotations

import itertools
import json
import shutil

import fake_hub
import huggingface_hub.constants
import pytest
from generated_text import save_model
from huggingface_hub import metadata_load

from pelacli.manifest import document, evaluations
from pelacli.manifest.evaluations import EvaluationRecord
from pelacli.system import bytes_done

WHAT_IS_WRITTEN = ("README.md", "config.json", "model.safetensors", "pela.json")


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The folder of a small hub; the token may write to it."""
    root = tmp_path / "hub"
    root.mkdir()
    with fake_hub.in_this_process(root, monkeypatch):
        yield root


def test_all_files_of_the_artefact_go_and_no_others(hub, artefact, pela):
    (artefact / "secrets.env").write_text("TOKEN=1")
    (artefact / "checkpoints").mkdir()
    (artefact / "checkpoints" / "optimizer.safetensors").write_bytes(b"1")
    code, out, err = pela("push", artefact, "me/small", "--json", "-v")
    assert code == 0, err
    assert "and 1 more: not of the artefact, and stays here" in " ".join(err.split())
    assert fake_hub.TOKEN not in out + err
    done = json.loads(out)
    there = {p.relative_to(hub / "me/small").as_posix() for p in (hub / "me/small").rglob("*")}
    assert there == {*WHAT_IS_WRITTEN, "spectra.safetensors"} == {*done["files"]}
    for name in there - {"README.md"}:
        assert (hub / "me/small" / name).read_bytes() == (artefact / name).read_bytes()
    assert (done["private"], done["revision"]) == (False, "main")


def test_how_far_an_upload_is_shows_in_what_leaves_the_machine(hub, artefact, pela, monkeypatch):
    class Watcher:
        def __init__(self):
            self.totals, self.done = [], []

        def begin(self, part, total, unit):
            self.totals.append(total)

        def advance(self, n):
            pass

        def reach(self, done, total):
            self.done.append(done)

    sent = itertools.count(1_000_000, 1000)
    monkeypatch.setattr("pelacli.steps.push._sent", lambda: next(sent))
    monkeypatch.setattr(bytes_done, "_SECONDS", 1e-4)
    with bytes_done.watched_by(watcher := Watcher()):
        code, out, _ = pela("push", artefact, "me/small", "--json")
    assert code == 0
    assert watcher.totals[-2:] == [json.loads(out)["bytes"], None]
    assert watcher.done[:2] == [1000, 2000]


def test_a_new_repository_is_private_where_that_is_asked_for(hub, artefact, pela):
    assert pela("push", artefact, "me/hidden", "--private")[0] == 0
    assert (hub / "me/hidden/.private").exists()
    assert pela("push", artefact, "me/open")[0] == 0
    code, _, err = pela("push", artefact, "me/open", "--private")
    assert code == 2
    assert "is public" in err


def test_a_branch_is_made_and_the_main_one_stays(hub, artefact, pela):
    repo = hub / "me/small"
    repo.mkdir(parents=True)
    (repo / "LICENSE").write_text("mine")
    assert pela("push", artefact, "me/small", "--revision", "v2")[0] == 0
    assert [file.name for file in repo.iterdir()] == ["LICENSE"]
    card = (hub / "me/small@v2/README.md").read_text()
    assert 'pelacli.load("me/small@v2")' in card


def test_weights_of_an_earlier_artefact_go_and_what_is_the_users_own_stays(hub, artefact, pela):
    assert pela("push", artefact, "me/small")[0] == 0
    repo = hub / "me/small"
    (repo / "model-00001-of-00002.safetensors").write_bytes(b"old")
    (repo / "picture.png").write_bytes(b"mine")
    assert pela("push", artefact, "me/small")[0] == 0
    assert not (repo / "model-00001-of-00002.safetensors").exists()
    assert (repo / "picture.png").exists()


def test_a_model_that_pela_did_not_write_is_left_alone(hub, artefact, pela):
    (hub / "me/other").mkdir(parents=True)
    (hub / "me/other/pytorch_model.bin").write_bytes(b"theirs")
    code, _, err = pela("push", artefact, "me/other")
    assert code == 2
    assert "that pela did not write" in err
    assert [file.name for file in (hub / "me/other").iterdir()] == ["pytorch_model.bin"]


def test_a_damaged_artefact_is_not_pushed(hub, artefact, pela):
    (artefact / "model.safetensors").write_bytes(b"cut off")
    code, _, err = pela("push", artefact, "me/small")
    assert code == 1
    assert "model.safetensors" in err
    assert not (hub / "me/small").exists()


@pytest.mark.parametrize(
    ("token", "says"),
    [
        (None, "set HF_TOKEN"),
        ("hf_unknown", "does not take the token"),
        (fake_hub.READER, "take one with write permission"),
        ("hf_\u00e9_not_ascii", "the upload failed"),
    ],
)
def test_what_a_token_may_not_do_is_one_line_without_the_token(
    hub, artefact, pela, monkeypatch, tmp_path, token, says
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    monkeypatch.setenv("HF_TOKEN", token or "")
    code, out, err = pela("push", artefact, "me/small", "--debug")
    assert code in (1, 2)
    last = err.splitlines()[-1]
    assert says in last
    if token:
        assert token not in out + last
    assert not (hub / "me/small").exists()


@pytest.mark.parametrize("repo", ["small", "me/small/more", "me/small@v2", "me/", "me/a b", "./me"])
def test_a_repository_has_an_owner_and_a_name(hub, artefact, pela, repo):
    code, _, err = pela("push", artefact, repo)
    assert code == 2
    assert err.startswith(f"pela: error: {repo}: ")


def test_no_hub_is_one_line(hub, artefact, pela, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    code, _, err = pela("push", artefact, "me/small")
    assert code == 1
    assert "the upload failed" in err


def test_the_card_says_how_to_read_it_how_good_it_is_and_what_the_licence_is(hub, here, pela):
    save_model("bert", "SequenceClassification", here / "bert")
    (here / "bert/README.md").write_text("---\nlicense: apache-2.0\n---\n")
    code, _, err = pela(
        "decompose", here / "bert", "--ratio", "0.6", "--scope", "layers", "-o", "a"
    )
    assert code == 0, err
    record = EvaluationRecord(
        data="reviews", task="text-classification", main_metric="accuracy",
        metrics={"accuracy": 91.25}, baseline={"metrics": {"accuracy": 92.5}}, drop=1.25,
    )  # fmt: skip
    evaluations.append(here / "a", record)
    assert document.read(here / "a").source.licence == {"license": "apache-2.0"}
    assert pela("push", "a", "me/small")[0] == 0
    file = hub / "me/small/README.md"
    card = file.read_text()
    assert metadata_load(file)["license"] == "apache-2.0"
    assert 'BertForSequenceClassification.from_pretrained("me/small")' in card
    assert "| 91.25 |" in card
    assert "| 92.5 |" in card
    assert 'ratio = "0.6"' in card
    assert str(here) not in card


def test_a_card_that_somebody_wrote_goes_as_it_is(hub, artefact, pela):
    (artefact / "README.md").write_text("Our model.")
    assert pela("push", artefact, "me/small")[0] == 0
    assert (hub / "me/small/README.md").read_text() == "Our model."


def test_an_unknown_licence_and_paths_of_the_machine_are_pointed_out(hub, artefact, pela):
    _, _, err = pela("push", artefact, "me/small", "-v")
    flat = " ".join(err.split())
    assert "the licence of" in flat
    assert "names paths of this machine" in flat


def test_a_run_directory_stands_for_its_last_step(hub, artefact, pela, here):
    shutil.copytree(artefact, here / "runs/x/decompose")
    assert pela("push", "runs/x", "me/small")[0] == 0
    code, _, err = pela("push", "runs", "me/other")
    assert code == 2
    assert "not an artefact" in err
