"""pela.json is read back as it was written, ignores keys it does not know, and refuses the rest."""

import json

import pytest

from pelacli.errors import RequestError
from pelacli.manifest import document as manifest_document
from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord, StepRecord
from pelacli.version import __version__


@pytest.fixture
def record():
    return Manifest(
        source=SourceRecord(
            model="vit_base", library="timm", architecture="vit_base_patch16_224",
            weights="random", digest=None,
        ),
        library="timm",
        policy="energy",
        scope="model",
        ratio="2/3",
        energy=0.75,
        params=Count(before=100, after=60),
        flops=Count(before=200, after=120),
        layers=[
            LayerRecord(name="fc1", shape=(4, 6), rank=2, energy=0.5,
                        params=Count(before=24, after=20), flops=Count(before=48, after=40)),
            LayerRecord(name="head", shape=(3, 6), reason="output head",
                        params=Count(before=18, after=18)),
        ],
        history=[
            StepRecord(step="decompose", recipe={"decompose": {"ratio": "2/3"}}, seed=3,
                       versions={"torch": "2.0"}, metrics={"energy": 0.75, "samples": 0},
                       seconds=1.5, inputs="ab", fingerprint="cd"),
        ],
    )  # fmt: skip


@pytest.fixture
def artefact(record, tmp_path):
    (tmp_path / "pela.json").write_text(manifest_document.dumps(record), encoding="utf-8")
    return tmp_path


def edit(artefact, change):
    file = artefact / "pela.json"
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))


def refusal(directory):
    with pytest.raises(RequestError) as caught:
        manifest_document.read(directory)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_manifest_is_read_back_as_it_was_written(record, artefact):
    assert manifest_document.read(artefact) == record
    assert record.layers[0].shape == (4, 6)
    document = json.loads((artefact / "pela.json").read_text())
    assert next(iter(document)) == "format"
    assert document["format"] == manifest_document.FORMAT
    assert document["pela"] == __version__


def test_the_same_manifest_has_the_same_bytes(record):
    text = manifest_document.dumps(record)
    assert manifest_document.dumps(Manifest.model_validate_json(text)) == text
    assert manifest_document.dumps(record.model_copy(deep=True)) == text
    assert text.endswith("}\n")


def test_numbers_that_json_lacks_become_null(record, artefact):
    record.history[0].metrics = {"loss": float("nan"), "best": float("inf")}
    text = manifest_document.dumps(record)
    assert json.loads(text, parse_constant=pytest.fail)["history"][0]["metrics"] == {
        "loss": None,
        "best": None,
    }


def test_keys_of_a_later_pela_are_ignored(record, artefact):
    def add(document):
        document["colour"] = "blue"
        document["layers"][0]["sparsity"] = 0.5

    edit(artefact, add)
    assert manifest_document.read(artefact) == record


def test_what_is_no_artefact_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        assert refusal(path) == (
            f"{path}: not an artefact: there is no pela.json; `pela decompose` makes artefacts"
        )
        assert not manifest_document.is_artefact(path)
    file = tmp_path / "model.safetensors"
    file.touch()
    assert "not an artefact" in refusal(file)
    assert not manifest_document.is_artefact(file)


def test_an_artefact_is_known_by_path_or_text(artefact):
    assert manifest_document.is_artefact(artefact)
    assert manifest_document.is_artefact(str(artefact))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"format": 1, "pela', "not valid JSON"),
        (b"", "not valid JSON"),
        (b"\xff\xfe\x00", "not a text in UTF-8"),
        (b"[]", 'it has no "format"'),
        (b"{}", 'it has no "format"'),
        (b'{"format": "1"}', 'it has no "format"'),
        (b'{"format": true}', 'it has no "format"'),
    ],
)
def test_a_broken_file_is_named(tmp_path, content, message):
    (tmp_path / "pela.json").write_bytes(content)
    text = refusal(tmp_path)
    assert text.startswith(f"{tmp_path / 'pela.json'}: ")
    assert message in text


def test_a_layer_without_a_form_is_in_factors(artefact):
    def without_form(document):
        for layer in document["layers"]:
            del layer["form"]

    edit(artefact, without_form)  # as older artefacts are
    layers = manifest_document.read(artefact).layers
    assert {layer.rank is not None: layer.form for layer in layers} == {
        True: "factors", False: None,
    }  # fmt: skip
    edit(artefact, lambda document: document["layers"][0].update(rank=3, form="svd"))
    assert "layers.0.form: Input should be 'factors' or 'pivots'" in refusal(artefact)


def test_a_newer_format_asks_for_an_upgrade(artefact):
    edit(artefact, lambda document: document.update(format=99, pela="7.1", params="new"))
    text = refusal(artefact)
    assert "format 99, written by pela 7.1" in text
    assert "upgrade" in text


@pytest.mark.parametrize(
    ("change", "place"),
    [
        (lambda d: d["params"].pop("after"), "params.after: Field required"),
        (lambda d: d["layers"][1].update(rank="two"), "layers.1.rank: "),
        (lambda d: d["layers"][0].update(shape=[4]), "layers.0.shape.1: "),
        (lambda d: d.pop("source"), "source: Field required"),
    ],
)
def test_a_wrong_field_is_named(artefact, change, place):
    edit(artefact, change)
    assert f"pela.json: {place}" in refusal(artefact)
