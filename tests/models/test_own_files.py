"""A model is read from the files of its directory and from no other."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import transformers
from families import BERT
from refusals import refused as refused

INDEX = "model.safetensors.index.json"


@pytest.fixture
def sharded(here) -> Path:
    """A small BERT in several files, and one of them outside of its directory too."""
    config = transformers.BertConfig(**BERT)
    transformers.BertModel(config).save_pretrained("m", max_shard_size="100KB")
    return here / "m"


def last_shard(sharded: Path) -> Path:
    return sorted(sharded.glob("*.safetensors"))[-1]


def rename_in_index(sharded: Path, old: str, new: object) -> None:
    index = json.loads((sharded / INDEX).read_text())
    names = index["weight_map"]
    index["weight_map"] = {k: new if name == old else name for k, name in names.items()}
    (sharded / INDEX).write_text(json.dumps(index))


def test_an_index_that_names_files_of_its_directory_is_followed(pela, sharded):
    code, _, err = pela("report", "m")
    assert code == 0, err


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors", "ABSOLUTE", "sub/x.safetensors", "sub/../x.safetensors", "x.bin",
        "./x.safetensors", "x.safetensors\0", "..", "", ".", "model.safetensors.index.json", 3,
        None, ["x.safetensors"], {"a": "x.safetensors"}, "missing.safetensors", "X.SAFETENSORS",
    ],
)  # fmt: skip
def test_an_index_names_plain_files_of_its_directory_alone(refused, sharded, here, name):
    shard = last_shard(sharded)
    for other in ("outside.safetensors", "m/sub/x.safetensors", "m/x.safetensors", "m/x.bin"):
        (here / other).parent.mkdir(exist_ok=True)
        (here / other).write_bytes(shard.read_bytes())
    name = str(here / "outside.safetensors") if name == "ABSOLUTE" else name
    rename_in_index(sharded, shard.name, name)
    line = refused("report", "m")
    assert "safetensors" in line


def test_what_the_configuration_names_is_a_plain_file_too(pela, refused, sharded, here):
    file, shard = sharded / "config.json", last_shard(sharded)
    (here / "outside.safetensors").write_bytes(shard.read_bytes())
    config = json.loads(file.read_text())
    for name in (
        "../outside.safetensors",
        str(here / "outside.safetensors"),
        "adapter_model.bin",
        3,
    ):
        file.write_text(json.dumps(config | {"transformers_weights": name}))
        assert "transformers_weights names" in refused("report", "m")
    file.write_text(json.dumps(config | {"transformers_weights": INDEX}))
    assert pela("report", "m")[0] == 0


NAMES = ["config.json", "tokenizer.json", "modules.json", "preprocessor_config.json", "WEIGHTS"]


@pytest.mark.parametrize("name", NAMES)
def test_links_that_lead_out_are_not_followed(refused, sharded, here, name):
    file = last_shard(sharded) if name == "WEIGHTS" else sharded / name
    outside = here / "outside"
    outside.write_bytes(file.read_bytes() if file.exists() else b"{}")
    file.unlink(missing_ok=True)
    file.symlink_to(outside)
    assert f"{file.name}: is a link that leads out of the directory" in refused("report", "m")


@pytest.mark.parametrize("name", [*NAMES, INDEX])
def test_a_pipe_in_the_place_of_a_file_is_refused_and_not_waited_for(pela, sharded, name):
    file = last_shard(sharded) if name == "WEIGHTS" else sharded / name
    file.unlink(missing_ok=True)
    os.mkfifo(file)
    code, _, err = pela("report", "m")
    assert code == 2
    assert f"{file.name}: is a pipe or a device" in err


def test_links_within_the_directory_and_of_it_are_followed(pela, sharded, here):
    shard = last_shard(sharded)
    shard.rename(sharded / "blob")
    shard.symlink_to("blob")
    (here / "link").symlink_to("m")
    assert pela("report", "link")[0] == 0


def test_a_link_to_nothing_is_refused(refused, sharded):
    shard = last_shard(sharded)
    shard.unlink()
    for target in ("nothing", shard.name):
        shard.symlink_to(target)
        assert "a link to nothing" in refused("report", "m")
        shard.unlink()


def test_an_artefacts_manifest_lies_in_it(refused, artefact, here):
    (artefact / "pela.json").rename(here / "outside.json")
    (artefact / "pela.json").symlink_to(here / "outside.json")
    assert "is a link that leads out" in refused("report", "a")


def test_an_artefacts_weights_lie_in_it(refused, artefact, here):
    (artefact / "model.safetensors").rename(here / "outside.safetensors")
    (artefact / "model.safetensors").symlink_to(here / "outside.safetensors")
    for args in (("eval", "a"), ("decompose", "a", "--ratio", "0.4", "-o", "b")):
        assert "is a link that leads out" in refused(*args)
