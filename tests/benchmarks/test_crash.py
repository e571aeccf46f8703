"""kill -9 before every operation on files: the old artefact is there whole, or the new one, and the
next command leaves nothing else."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest
import timm
import torch

import pelacli
from pelacli.artefact import loading, saving
from pelacli.manifest import digests
from pelacli.recipe import layout
from pelacli.steps import outputs
from pelacli.steps.verify import verify
from pelacli.system import locks

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def kills(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import _kills

    return _kills


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(".*")]


def test_saving_that_is_killed_before_any_operation_leaves_the_old_or_the_new(here, kills):
    model = timm.create_model("test_vit", num_classes=3)
    pelacli.decompose(model, ratio=0.5)
    pelacli.save(model, "old")
    (here / "old" / "notes.txt").write_text("a user's")
    artefact = loading.load(here / "old")
    old = digests.weights_digest(here / "old")
    with torch.no_grad():
        artefact.module.norm.weight.add_(1)

    def save() -> None:
        with outputs.writing(target):
            saving.save(artefact.opened, artefact.manifest, target)

    target = here / "a"
    shutil.copytree("old", target)
    operations = kills.count_operations(save, here)
    seen = set()
    for number in range(1, operations + 1):
        shutil.rmtree(target)
        shutil.copytree("old", target)
        code = kills.killed_before_operation(number, save, here)
        assert code < 0, number
        assert verify(target).whole, number
        assert (target / "notes.txt").is_file()
        seen.add(digests.weights_digest(target))
        with outputs.writing(target):  # as whoever writes there next
            pass
        assert not hidden(here), number
    save()
    assert seen == {old, digests.weights_digest(target)}
    assert operations > 10


def test_removing_a_working_folder_that_is_killed_leaves_all_of_it_or_none(here, kills):
    output = here / "run"
    work = layout.workplace(output)

    def fill() -> None:
        for name in ("checkpoints/step-1", "checkpoints/step-2"):
            (work / name).mkdir(parents=True)
            (work / name / "state.json").write_text("{}")
        (work / outputs.FINGERPRINT).write_text("of a recipe")

    fill()
    from pelacli.system import leftovers

    operations = kills.count_operations(lambda: leftovers.discard(work), here)
    for number in range(1, operations + 1):
        shutil.rmtree(work, ignore_errors=True)
        fill()
        kills.killed_before_operation(number, lambda: leftovers.discard(work), here)
        assert not work.exists() or len(list(work.rglob("*"))) == 6, number
        with outputs.writing(output):
            pass
        assert not hidden(here), number


def test_the_long_form_counts_what_is_wrong(tmp_path, kills, capsys):
    """A case of the benchmark whose command leaves a traceback and other weights."""
    import crash

    start = tmp_path / "start"
    start.mkdir()
    case = crash.Case("broken", ("verify", "nowhere"), "nowhere")
    tally = crash.Tally(0.01, "weights")
    crash.disturb(case, tally, {"": start}, tmp_path / "kill", crash.random.Random(0))
    assert tally.kills == 1
    assert any("then it ends with 2" in problem for problem in tally.problems)
    crash.print_tallies({"broken": tally})
    assert "| broken |" in capsys.readouterr().out
    assert "crash" in sys.modules


@pytest.mark.parametrize("call", ["signal.signal", "os.chdir"])
def test_a_child_that_is_interrupted_early_does_not_go_on_as_its_parent(
    tmp_path, kills, monkeypatch, call
):
    """Before it is a command yet: such a child was a second copy of the test run."""

    def interrupted(*_):
        raise KeyboardInterrupt

    parent = os.getpid()
    module, name = call.split(".")
    monkeypatch.setattr(getattr(kills, module), name, interrupted)
    try:
        child = kills.start(("verify", "x"), tmp_path, tmp_path / "log")
    except BaseException:
        if os.getpid() != parent:
            os._exit(99)
        raise
    assert kills.wait(child) == 1


@pytest.mark.parametrize("number", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_wait_until_the_command_listens_to_them(tmp_path, kills, number):
    number = signal.Signals[number]
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())

    def early() -> None:
        os.kill(os.getpid(), number)

    child = kills.start(("--version",), tmp_path, tmp_path / "log", early)
    assert kills.wait(child) == 128 + number  # earlier it has no exit code, or a traceback
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


def test_a_child_that_is_killed_at_once_has_said_nothing(tmp_path, kills, monkeypatch):
    monkeypatch.setattr(kills, "_become", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    child = kills.start(("--version",), tmp_path, tmp_path / "log")
    assert kills.wait(child) == -signal.SIGKILL
    assert (tmp_path / "log").read_text() == ""


def test_two_at_once_has_two_recipes_of_one_output_for_each_kind_of_pair(tmp_path, kills):
    import crash
    import two_at_once

    start = tmp_path / "start"
    start.mkdir()
    for name in ("r", "plain"):
        (start / f"{name}.toml").write_text(crash.RECIPE)
    for kind in two_at_once.PAIRS:
        case, first, second = two_at_once.commands(kind)
        assert (first == second) == (not case.replaces)
        folder = two_at_once.folder_of(case, {case.before: start}, tmp_path / kind)
        both = [(folder / name).read_text() for name in ("r.toml", "r2.toml")]
        assert both[0] != both[1]
        assert all('output = "run"' in text for text in both)


def test_a_process_waits_at_the_gate_with_the_output_in_its_hands(here, kills):
    """So the second of two at once certainly starts while the first holds the output."""
    gate = kills.Gate(here / "run" / "decompose")
    child = os.fork()
    if child == 0:
        try:
            gate.keep()
            for output in ("elsewhere", "run/decompose"):
                with locks.holding(Path(output)):
                    pass
            os._exit(0)
        finally:  # whatever came: it must not go on as a second test run
            os._exit(1)
    assert gate.is_held()
    with pytest.raises(locks.LockedError, match=f"process {child} on "), locks.holding(gate.output):
        pass
    with locks.holding(here / "elsewhere"):
        pass
    gate.let_go()
    assert kills.wait(child) == 0
    with locks.holding(gate.output):
        pass


def test_a_process_that_ends_before_the_gate_never_held_the_output(here, kills):
    gate = kills.Gate(here / "run")
    child = os.fork()
    if child == 0:
        try:
            gate.keep()
        finally:
            os._exit(3)
    assert not gate.is_held()
    gate.let_go()
    assert kills.wait(child) == 3
