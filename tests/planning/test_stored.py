"""Stored spectra: what is in the file, strict reading, and planning again without the model."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from safetensors.torch import load_file

import pelacli
from pelacli.errors import PelaError, RequestError
from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord
from pelacli.planning import stored as planning_stored
from pelacli.planning.stored import About, Spectra
from pelacli.ranks.spectrum import Spectrum
from pelacli.steps import report
from pelacli.system import files

KEY = "pela_spectra"


def record(*layers: tuple[str, tuple[int, int]], rest: int = 10) -> Manifest:
    rows = [
        LayerRecord(name=name, shape=(out, in_), params=Count(before=out * in_, after=out * in_))
        for name, (out, in_) in layers
    ]
    total = sum(row.params.before for row in rows) + rest
    return Manifest(
        source=SourceRecord(model="toy", library="timm", digest="d1"),
        library="timm",
        params=Count(before=total, after=total),
        layers=rows,
    )


@pytest.fixture
def toy() -> Spectra:
    """Two layers that may be factorised, in an order that is not the alphabet's, and a head."""
    dense = record(("b", (3, 5)), ("a", (4, 2)), ("head", (2, 2)))
    layers = [
        Spectrum("b", (3, 5), np.array([4.0, 1 / 3, 1e-300]), 197.0),
        Spectrum("a", (4, 2), np.array([2.5, 0.0]), 49.25),
    ]
    about = About(
        dense=dense,
        inputs="d2",
        tokens={s.name: s.tokens for s in layers},
        fixed_params=14,
        fixed_flops=8,
        obstacles={"head": 4, "norm": 10},
        samples=256,
        section={"ratio": "2/3", "pin": {"^a$": 1}},
    )
    return Spectra(layers, about)


def same(left: Spectra, right: Spectra) -> bool:
    return left.about == right.about and [
        (s.name, s.shape, s.energies.tobytes(), s.tokens) for s in left.layers
    ] == [(s.name, s.shape, s.energies.tobytes(), s.tokens) for s in right.layers]


def test_what_is_saved_is_loaded_to_the_last_bit(toy, tmp_path):
    planning_stored.save(toy, tmp_path / "new" / "s.safetensors")
    back = planning_stored.load(tmp_path / "new" / "s.safetensors")
    assert same(back, toy)
    assert back.layers[0].energies.dtype == np.float64
    assert planning_stored.dumps(back) == planning_stored.dumps(toy)
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["s.safetensors"]


def test_it_is_a_safetensors_file_that_others_can_read(toy, tmp_path):
    planning_stored.save(toy, tmp_path / "s")
    with safe_open(tmp_path / "s", framework="numpy") as file:
        assert set(file.keys()) == {"a", "b"}
        assert list(file.metadata()) == [KEY]
        assert file.get_tensor("b").tolist() == [4.0, 1 / 3, 1e-300]


def edited(toy: Spectra, path, **changes):
    """The file with keys of its header changed."""
    header = json.loads(toy.about.model_dump_json()) | changes
    save_file({s.name: s.energies for s in toy.layers}, path, {KEY: json.dumps(header)})


def test_a_file_that_is_not_as_it_was_written_is_refused_in_one_line(toy, tmp_path):
    path = tmp_path / "s"

    def says(words: str) -> None:
        with pytest.raises(RequestError) as refused:
            planning_stored.load(path)
        text = str(refused.value)
        assert words in text
        assert text.startswith(f"{path}: ")
        assert "\n" not in text

    whole = planning_stored.dumps(toy)
    for size in (0, 7, 100, len(whole) - 1):
        path.write_bytes(whole[:size])
        says("not a whole file of spectra")
    path.write_text("years of work")
    says("not a whole file of spectra")
    path.unlink()
    says("not a whole file of spectra")

    tensors = {s.name: s.energies for s in toy.layers}
    save_file(tensors, path)
    says("holds no spectra")
    save_file(tensors, path, {KEY: "{"})
    says("header")
    save_file(tensors, path, {KEY: "[]"})
    says("header")
    edited(toy, path, format=planning_stored.FORMAT + 1, pela="9.9", dense=None)
    says("written by pela 9.9")
    edited(toy, path, format=None)
    says("header.format")
    edited(toy, path, fixed_params=-1)
    says("header.fixed_params")
    edited(toy, path, dense={})
    says("header.dense")
    edited(toy, path, tokens={"a": 1.0})
    says("its layers are not those of its header")
    edited(toy, path, tokens={"a": 1.0, "b": 1.0, "c": 1.0})
    says("its layers are not those of its header")
    edited(toy, path, dense=json.loads(record(("b", (3, 5))).model_dump_json()))
    says("its layers are not those of its header")
    edited(toy, path, dense=json.loads(record(("b", (2, 5)), ("a", (4, 2))).model_dump_json()))
    says("b: (3,) energies for a layer of shape (2, 5)")
    header = {KEY: toy.about.model_dump_json()}
    for energies, words in [
        (np.array([1.0, 2.0]), "non-increasing"),
        (np.array([1.0, -1.0]), "not negative"),
        (np.array([np.nan, 0.0]), "not finite"),
        (np.array([1.0, 0.5], np.float32), "a: energies are no float64"),
    ]:
        save_file(tensors | {"a": energies}, path, header)
        says(words)
    edited(toy, path, later="news")
    assert same(planning_stored.load(path), toy)


def test_a_path_that_holds_something_else_is_refused_and_kept(toy, tmp_path):
    (tmp_path / "text").write_text("years of work")
    save_file({"w": np.ones(2)}, tmp_path / "w.safetensors")
    (tmp_path / "folder").mkdir()
    for name in ("text", "w.safetensors", "folder"):
        with pytest.raises(RequestError, match=f"{name}: exists and holds no spectra"):
            planning_stored.save(toy, tmp_path / name)
    with pytest.raises(RequestError, match="text is a file, not a directory"):
        planning_stored.save(toy, tmp_path / "text" / "s")
    assert (tmp_path / "text").read_text() == "years of work"


def test_a_failure_half_way_leaves_the_old_one(toy, tmp_path, monkeypatch):
    path = tmp_path / "s"
    planning_stored.save(toy, path)
    old = path.read_bytes()

    def fails(_path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files, "_sync", fails)
    with pytest.raises(PelaError, match="s: can't be written: No space left on device"):
        planning_stored.save(Spectra(toy.layers[:1], toy.about), path)
    assert path.read_bytes() == old
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_stays_and_everyone_may_read_what_the_umask_allows(toy, tmp_path):
    planning_stored.save(toy, tmp_path / "s")
    (tmp_path / "link").symlink_to("s")
    planning_stored.save(toy, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    mask = os.umask(0)
    os.umask(mask)
    assert (tmp_path / "s").stat().st_mode & 0o777 == 0o666 & ~mask


def test_an_artefact_carries_its_spectra(artefact, checkpoint):
    spectra = planning_stored.load(artefact / "spectra.safetensors")
    tensors = load_file(checkpoint)
    about = spectra.about
    total = sum(t.numel() for t in tensors.values())
    assert about.dense.params.before == about.dense.params.after == total
    assert {s.name for s in spectra.layers} == {
        name.removesuffix(".weight")
        for name, t in tensors.items()
        if t.ndim == 2 and name != "head.weight"
    }
    for s in spectra.layers:
        weight = tensors[f"{s.name}.weight"].double().numpy()
        values = np.linalg.svd(weight, compute_uv=False)
        np.testing.assert_allclose(s.energies, values**2, rtol=1e-4, atol=1e-6 * values[0] ** 2)
    assert about.fixed_params == total - sum(s.shape[0] * s.shape[1] for s in spectra.layers)
    assert sum(about.obstacles.values()) == about.fixed_params
    assert about.obstacles["head"] == 7 * 64 + 7
    stored = json.loads((artefact / "pela.json").read_text())
    assert about.dense.source.model_dump() == stored["source"]
    assert about.inputs == stored["history"][-1]["inputs"] == stored["source"]["digest"]
    assert about.samples == 0
    # It is no part of the model.
    with torch.no_grad():
        pelacli.load(artefact)(torch.randn(1, 3, 160, 160))
    (artefact / "spectra.safetensors").unlink()
    pelacli.load(artefact)


def test_spectra_of_an_artefact_are_its_own_file(artefact, tmp_path):
    own = artefact / "spectra.safetensors"
    assert planning_stored.find(str(artefact)) == own
    own.rename(tmp_path / "elsewhere")
    own.symlink_to(tmp_path / "elsewhere")
    for read in (planning_stored.find, report._spectra):
        with pytest.raises(RequestError, match="leads out"):
            read(str(artefact))
    assert planning_stored.find(str(own)) == own  # whoever names a link means it


def test_the_digest_of_an_artefact_is_that_of_its_weights(artefact):
    from pelacli.manifest import digests

    before = digests.weights_digest(artefact)
    assert before == digests.digest_file(artefact / "model.safetensors")
    (artefact / "spectra.safetensors").unlink()
    assert digests.weights_digest(artefact) == before


def document(answer):
    code, out, err = answer
    assert code == 0, err
    return {k: v for k, v in json.loads(out).items() if k != "seconds"}


@pytest.mark.parametrize(
    "flags",
    [
        ["--ratio", "0.4"],
        ["--ratio", "2/3", "--scope", "layers", "--policy", "uniform"],
        ["--ratio", "0.6", "--multiple", "8", "--min-rank", "3", "--max-rank", "40"],
        ["--threshold", "0.8"],
        ["--energy", "0.9"],
        ["--ratio", "0.6", "--unit", "flops"],
        ["--ratio", "0.7", "--pin", r"blocks\.0\.=dense", "--pin", "attn.proj=5"],
    ],
)
def test_stored_spectra_give_the_same_plan_as_their_model(pela, artefact, checkpoint, flags):
    ask = ("--dry-run", "--json", *flags)
    whole = document(pela("decompose", checkpoint, "--arch", "test_vit", *ask))
    assert document(pela("decompose", "a", *ask)) == whole


def test_spectra_beside_a_dry_run_give_plans_that_decompose_takes(pela, here, checkpoint):
    for n in range(8):
        pixels = np.random.default_rng(n).integers(0, 256, (160, 160, 3), np.uint8)
        (here / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(here / "images" / f"{n}.png")
    model = ("decompose", checkpoint, "--arch", "test_vit")
    calibrated = ("--calibrate", "images", "--samples", "6", "--exclude", "blocks.1.mlp")
    side = here / "deep" / "s"
    # It may be written again, and beside an artefact, but by default nothing else is written.
    for ratio in ("0.6", "0.5"):
        ask = ("--ratio", ratio, "--dry-run", "--json", "--spectra", side)
        whole = document(pela(*model, *calibrated, *ask))
    assert sorted(p.name for p in here.iterdir()) == ["deep", "images"]
    stored = planning_stored.load(side)
    assert stored.about.samples == 6
    assert all(s.tokens == 101 for s in stored.layers)  # 10 × 10 patches and the class token

    again = document(pela("decompose", side, "--ratio", "0.5", "--dry-run", "--json"))
    assert again == whole
    assert again["calibrated"]
    smaller = document(pela("decompose", side, "--ratio", "0.4", "--dry-run", "--json"))
    (here / "plan.json").write_text(json.dumps(smaller))
    assert (
        document(pela("decompose", side, "--plan", "plan.json", "--dry-run", "--json"))["layers"]
        == (smaller["layers"])
    )
    made = document(pela(*model, *calibrated, "--plan", "plan.json", "-o", "b", "--json"))
    assert [(la["rank"], la["energy"]) for la in made["layers"]] == [
        (la["rank"], la["energy"]) for la in smaller["layers"]
    ]
    assert made["params"] == smaller["params"]
    assert (here / "b" / "spectra.safetensors").is_file()


def test_stored_settings_hold_but_for_the_budget_that_is_given(pela, here, checkpoint):
    model = ("decompose", checkpoint, "--arch", "test_vit", "--dry-run", "--json")
    document(pela(*model, "--threshold", "0.9", "--multiple", "4", "--spectra", "s"))
    again = document(pela("decompose", "s", "--ratio", "0.6", "--dry-run", "--json"))
    assert again["policy"] == "energy"
    assert again == document(pela(*model, "--ratio", "0.6", "--multiple", "4"))
    assert {la["rank"] % 4 for la in again["layers"] if la["rank"]} == {0}
    asked = ("--ratio", "0.6", "--dry-run", "--json", "--set", "decompose.multiple=1")
    assert document(pela("decompose", "s", *asked)) == document(pela(*model, "--ratio", "0.6"))


def test_a_request_that_spectra_can_not_answer_is_refused_in_one_line(pela, artefact, here):
    shutil.copy(artefact / "spectra.safetensors", here / "s")
    shutil.copytree(artefact, here / "healed")
    (here / "healed" / "spectra.safetensors").unlink()
    (here / "torn").mkdir()
    shutil.copy(artefact / "pela.json", here / "torn")
    (here / "torn" / "spectra.safetensors").write_bytes((here / "s").read_bytes()[:-9])
    (here / "text").write_text("years of work")
    before = {path: path.read_bytes() for path in here.rglob("*") if path.is_file()}
    dry = ("--ratio", "0.5", "--dry-run")
    new = ("decompose", "test_vit", "--weights", "random", *dry)
    for args, says in [
        (("decompose", "s", "--ratio", "0.5"), "s: holds spectra, no weights; plan with --dry-run"),
        (("decompose", "s", "--dry-run"), "needs --ratio"),
        (("decompose", "s", *dry, "--calibrate", "x"), "leave it out"),
        (("decompose", "s", *dry, "--set", 'decompose.include=["x"]'), "leave it out"),
        (("decompose", "s", *dry, "--weights", "random"), "leave --weights out"),
        (("decompose", "s", *dry, "--spectra", "t"), "leave --spectra out"),
        (("decompose", "s", "--max-drop", "1", "--dry-run"), "leave it out"),
        (("decompose", "s", *dry, "--pin", "zzz=3"), "'zzz': matches no layer"),
        (("decompose", "s", *dry, "--policy", "best"), "none of energy, uniform, threshold"),
        (("decompose", "s", "--ratio", "2", "--dry-run"), "--ratio: 2 is out of range"),
        (("decompose", "s", "--ratio", "0.01", "--dry-run"), "the smallest possible is"),
        (("decompose", "a", "--ratio", "0.5"), "low-rank already"),
        (("decompose", "healed", *dry), "low-rank already"),
        (("decompose", "torn", *dry), "torn/spectra.safetensors: not a whole file of spectra"),
        ((*new, "--spectra", "text"), "text: exists and holds no spectra"),
        ((*new, "--spectra", "text/s"), "text is a file"),
        ((*new, "--spectra", "a"), "a: exists and holds no spectra"),
    ]:
        code, out, err = pela(*args)
        assert (code, out) == (2, ""), err
        assert says in err
        assert err.startswith("pela: error: ")
        assert err.count("\n") == 1
    assert {path: path.read_bytes() for path in here.rglob("*") if path.is_file()} == before
