"""SIGTERM and SIGHUP end the command line by an exception, so that drafts go."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from pelacli.artefact import card
from pelacli.system import termination


@pytest.fixture
def handlers():
    """The handlers as they were, afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_while_the_artefact_is_written_leaves_nothing(
    here, pela, checkpoint, handlers, monkeypatch, name
):
    number = getattr(signal, name)
    for known in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(known, signal.SIG_DFL)
    monkeypatch.setattr(card, "model_card", lambda *_: os.kill(os.getpid(), number))
    code, out, err = pela(
        "decompose", checkpoint, "--arch", "test_vit", "--ratio", "0.5", "-o", "a"
    )
    assert code == 128 + number
    assert out == ""
    assert err.splitlines()[-1] in (f"pela: error: stopped by {name}", "pela: error: interrupted")
    assert "Traceback" not in err
    assert not list(here.iterdir())


def test_a_signal_that_is_ignored_stays_so(handlers):
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    termination.raise_on_signals()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_while_python_ends_leaves_no_traceback(name):
    program = (
        "import atexit, os, signal\n"
        "from pelacli.system import termination\n"
        "termination.raise_on_signals()\n"
        f"atexit.register(os.kill, os.getpid(), signal.{name})\n"
        "termination.end_quietly()\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode == -getattr(signal, name)
