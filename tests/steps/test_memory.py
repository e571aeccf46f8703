"""What calibration needs is said before it begins, and refused where it is too much."""

from __future__ import annotations

import pytest
from generated_text import FILLERS, save_model

from pelacli.system import memory


@pytest.fixture
def texts(here):
    """A language model's directory, and a file of texts."""
    save_model("llama", "CausalLM", here / "lm")
    (here / "a.txt").write_text("\n".join(" ".join(FILLERS[:8]) for _ in range(80)))
    return ("decompose", "lm", "--ratio", "0.8", "--calibrate", "a.txt", "--samples", 64, "-o", "b")


def test_what_it_needs_is_said(pela, texts):
    code, _, err = pela(*texts, "--verbose")
    assert code == 0
    assert "beside the model's" in err
    assert "are free" in err


@pytest.mark.parametrize("flags", [(), ("-q",)])
def test_a_log_has_what_much_work_needs_too(pela, texts, monkeypatch, flags):
    monkeypatch.setattr(memory, "LARGE", 1)
    assert ("beside the model's" in pela(*texts, *flags)[2]) == (flags == ())
    said = pela("eval", "b", "--against", "lm", "--no-latency", *flags)[2]
    assert ("the weights take " in said) == (flags == ())


def test_too_little_memory_is_one_line_with_the_remedy(pela, texts, here, monkeypatch):
    monkeypatch.setattr(memory, "available", lambda: 1000)
    code, _, err = pela(*texts)
    assert code == 2
    assert "calibration on 64 samples needs about" in err
    assert "run it where more is free" in err
    assert "Traceback" not in err
    assert not (here / "b").exists()
