"""A function is called once a library is imported, whenever that is."""

from __future__ import annotations

import importlib
import sys

import pytest

from pelacli.system.after_import import after_import


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A package called ``shop`` with a module ``shop.till``, not imported yet."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text("")
    (tmp_path / "shop" / "till.py").write_text("coins = [1]\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield
    for name in ("shop", "shop.till"):
        sys.modules.pop(name, None)


def add_a_coin():
    sys.modules["shop.till"].coins.append(2)


@pytest.mark.usefixtures("library")
def test_it_is_called_once_after_the_module_has_run():
    after_import("shop.till", add_a_coin)
    assert "shop" not in sys.modules
    importlib.import_module("shop")
    assert "shop.till" not in sys.modules
    assert importlib.import_module("shop.till").coins == [1, 2]
    del sys.modules["shop.till"]
    assert importlib.import_module("shop.till").coins == [1]


@pytest.mark.usefixtures("library")
def test_it_is_called_now_where_the_module_is_imported():
    importlib.import_module("shop.till")
    after_import("shop.till", add_a_coin)
    assert sys.modules["shop.till"].coins == [1, 2]


@pytest.mark.usefixtures("library")
def test_a_module_that_does_not_exist_is_missing_as_before():
    after_import("shop.attic", add_a_coin)
    with pytest.raises(ModuleNotFoundError, match=r"shop\.attic"):
        importlib.import_module("shop.attic")
