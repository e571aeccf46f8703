"""What the documentation shows of the Python interface is what it does."""

from __future__ import annotations

import doctest
import inspect
import re
from pathlib import Path

import pytest
import timm
import torch
from torch import nn

import pelacli

FUNCTIONS = ("decompose", "export", "import_checkpoint", "load", "plan", "save", "verify")


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_has_an_example_that_runs(here, name):
    function = getattr(pelacli, name)
    names = {"pelacli": pelacli, "timm": timm, "torch": torch, "nn": nn}
    (test,) = doctest.DocTestFinder(recurse=False).find(function, name, globs=names)
    assert test.examples
    torch.manual_seed(0)
    runner = doctest.DocTestRunner(optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert runner.run(test).failed == 0


@pytest.mark.parametrize("name", FUNCTIONS)
def test_every_public_function_says_what_it_takes_gives_and_raises(name):
    function = getattr(pelacli, name)
    text = inspect.getdoc(function)
    assert "Args:" in text
    assert "Raises:" in text
    assert "Returns:" in text or inspect.signature(function).return_annotation == "None"
    if name != "plan":  # which refers to decompose
        for parameter in inspect.signature(function).parameters:
            assert re.search(rf"\b{parameter}\b", text), parameter


def test_what_is_public_is_there_and_documented():
    assert set(pelacli.__all__) == {*FUNCTIONS, "PelaError", "RequestError", "Plan", "__version__"}
    for name in set(pelacli.__all__) - {"__version__"}:
        assert getattr(pelacli, name).__doc__
    assert issubclass(pelacli.RequestError, pelacli.PelaError)
    with pytest.raises(AttributeError, match="has no attribute 'decompse'"):
        pelacli.decompse  # noqa: B018


def test_the_documentations_python_runs(here):
    """With tiny models in place of the real ones."""
    page = Path(pelacli.__file__).parents[1] / "docs" / "reference" / "python.md"
    first, own = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)

    class MyNet(nn.Sequential):
        def __init__(self, width):
            super().__init__(nn.Linear(8, width), nn.GELU(), nn.Linear(width, 8))

    names = {
        "batches": [torch.randn(2, 3, 160, 160)], "loader": [torch.randn(4, 8)], "MyNet": MyNet,
        "pelacli": pelacli,
    }  # fmt: skip
    first = first.replace('"vit_base_patch16_224", pretrained=True', '"test_vit"')
    exec(first.replace("ratio=0.5", "ratio=0.6"), names)
    exec(own, names)
    assert isinstance(names["model"], MyNet)
    assert (here / "vit_base-half").is_dir()
