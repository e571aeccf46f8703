"""What only some work needs is an extra; where it is missing, a line names it."""

from __future__ import annotations

import ast
import sys
import tomllib
from pathlib import Path

import drawn_boxes
import pytest
from tiny_detectors import detection_data, tiny_detector

from pelacli.data import hub, sources
from pelacli.data.formats import hub_objects, hub_rows, masks
from pelacli.errors import PackageError, RequestError
from pelacli.system import extras
from pelacli.tasks import registry
from pelacli.tasks.common.labels import open_with_or_without

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("package", "extra"), extras.EXTRAS.items())
def test_every_extra_brings_its_package(package, extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert any(text.startswith(package) for text in project["optional-dependencies"][extra])
    assert not any(text.startswith(package) for text in project["dependencies"])
    assert extra in project["optional-dependencies"]["test"][0]


def test_nothing_imports_an_extra_before_it_is_needed():
    """But the file that reads shards, which is imported where they are read."""
    for file in (ROOT / "pelacli").rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            names = [alias.name for alias in getattr(node, "names", [])]
            modules = [getattr(node, "module", None) or "", *names]
            imported = {module.partition(".")[0] for module in modules} & extras.EXTRAS.keys()
            assert not imported or file.name == "shards.py", file


@pytest.mark.parametrize(
    ("spec", "package"), [("hfds/owner/name", "datasets"), ("wds/shards", "webdataset")]
)
def test_a_missing_package_is_named_with_its_extra(pela, here, monkeypatch, spec, package):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.delitem(sys.modules, "pelacli.data.shards", raising=False)
    cut = ("decompose", "test_vit", "--weights", "random", "--ratio", "0.5", "--dry-run")
    code, _, err = pela(*cut, "--calibrate", spec)
    assert code == 2, err
    assert f"needs {package}: pip install 'pelacli[{extras.EXTRAS[package]}]'" in err


READERS = {
    "images": lambda: sources.open_source("hfds/a/b", "train", training=False, unlabelled=True),
    "masks": lambda: masks.open_masks("hfds/a/b", "train"),
    "objects": lambda: hub_objects.find("hfds/a/b", "train", "corners"),
    "rows": lambda: hub_rows.rows("hfds/a/b", "train", {}),
    "splits": lambda: hub.check_split("hfds/a/b", "train"),
}


@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_the_hub_names_it(monkeypatch, reader):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(PackageError, match="needs datasets"):
        READERS[reader]()


def test_a_detector_is_not_trained_where_it_can_not_be_judged(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    data = detection_data(drawn_boxes.write(tmp_path / "boxes", {"train": 2}))
    inputs = tiny_detector("yolos").inputs
    with pytest.raises(PackageError, match="needs pycocotools"):
        registry.get("detection").open(data, "train", inputs=inputs)
    assert registry.get("detection").open(data, "train", inputs=inputs, unlabelled=True)


def test_a_package_that_is_missing_is_no_reason_to_go_on_without_labels():
    def open_split(unlabelled):
        if not unlabelled:
            raise PackageError("needs pycocotools")
        return []

    with pytest.raises(PackageError):
        open_with_or_without(open_split)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("raise ValueError('numpy.dtype size changed')", "ValueError: numpy.dtype size changed"),
    ],
)
def test_a_package_that_is_there_and_broken_shows_its_own_error(monkeypatch, tmp_path, code, says):
    (tmp_path / "webdataset.py").write_text(code)
    monkeypatch.delitem(sys.modules, "webdataset", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(PackageError, match=f"can't be loaded .{says}.: pip install --force-rein"):
        extras.require("webdataset", "wds/shards")
    sys.modules.pop("webdataset", None)


def test_another_missing_package_of_a_dataset_is_named_too(monkeypatch):
    import datasets

    def fails(*_):
        raise ImportError("To decode this, install torchcodec")

    monkeypatch.setattr(datasets, "get_dataset_split_names", fails)
    with pytest.raises(RequestError, match=r"needs another package.+torchcodec"):
        hub.open_split("hfds/owner/name", "train")
