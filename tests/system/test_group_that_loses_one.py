"""One of a launcher's processes fails or dies: the reason is said in one line, and all end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from launched import by_torchrun

import pelacli.__main__
from pelacli.cli import failures
from pelacli.errors import DropError, RequestError
from pelacli.system import by_first, processes, reasons
from pelacli.system.termination import Terminated

GLOO = RuntimeError(
    "[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:561] Connection closed by peer "
    "[127.0.0.1]:44454. This is typically caused by a remote worker crashing."
)


class DistBackendError(RuntimeError):
    """Named as torch's own."""


@pytest.mark.parametrize("error", [GLOO, DistBackendError("NCCL communicator was aborted")])
def test_lost_contact_is_said_plainly_and_only_where_there_are_others(monkeypatch, error):
    monkeypatch.setenv("WORLD_SIZE", "2")
    said = failures.describe(error)
    assert said.exit_code == 1
    assert said.message.startswith("another process of this run has ended")
    monkeypatch.delenv("WORLD_SIZE")
    assert "unexpected" in failures.describe(error).message


def test_another_error_under_a_launcher_keeps_its_words(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "a matrix" in failures.describe(RuntimeError("a matrix of 3 rows")).message


def test_a_process_without_a_group_ends_in_the_usual_way(monkeypatch):
    processes.end_with_group(1)
    monkeypatch.setenv("WORLD_SIZE", "2")  # started, and has not met the others
    processes.end_with_group(1)


@pytest.fixture
def at_rank(monkeypatch):
    """Be one process after the other, of those that share what their launcher keeps."""
    store = torch.distributed.HashStore()
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(reasons, "_store", lambda: store)
    return lambda rank: monkeypatch.setattr(processes, "rank_and_size", lambda: (rank, 2))


def said(error):
    failure = failures.in_group(error, failures.describe(error))
    return failure.message, failure.exit_code


REFUSAL, GATE = RequestError("no plan meets it"), DropError("loses too much", {})


@pytest.mark.parametrize(("error", "code"), [(REFUSAL, 2), (GATE, 3)])
@pytest.mark.parametrize("then", [GLOO, Terminated(signal.SIGTERM), "the same"], ids=str)
def test_what_one_process_has_said_no_other_says_and_all_end_alike(at_rank, error, code, then):
    at_rank(1)
    assert said(error) == (str(error), code)
    at_rank(0)
    assert said(error if then == "the same" else then) == ("", code)
    at_rank(1)
    assert said(error) == (str(error), code)  # its own is no other's


def test_another_reason_is_said_too_and_that_of_the_first_counts(at_rank):
    at_rank(0)
    said(REFUSAL)
    at_rank(1)
    assert said(GATE) == (str(GATE), 3)
    assert said(GLOO) == ("", 2)


def test_of_a_process_that_was_killed_no_reason_is_known(at_rank):
    at_rank(0)
    assert said(GLOO)[0].startswith("another process of this run has ended")
    assert said(Terminated(signal.SIGTERM))[0] == "stopped by SIGTERM"


def test_where_who_kept_the_reasons_has_ended_each_says_its_own(monkeypatch):
    class Ended(torch.distributed.HashStore):
        def _fail(self, *_):
            raise torch.distributed.DistNetworkError("Broken pipe")

        check = compare_set = _fail

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(reasons, "_store", Ended)
    assert said(REFUSAL) == (str(REFUSAL), 2)
    assert said(GLOO)[0].startswith("another process of this run has ended")


def test_processes_meet_before_the_first_one_works_alone(monkeypatch):
    """Else those who wait would not learn why it fails."""
    did = []
    monkeypatch.setattr(processes, "meet", lambda device: did.append(device))
    by_first.done(lambda: did.append("work"), "cpu")
    assert did == ["cpu", "work"]


@pytest.mark.slow
def test_what_the_first_of_two_refuses_is_said_once_and_is_the_exit_code_of_both(tmp_path):
    command, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    said = [line for line in done.stderr.splitlines() if line.startswith("pela: error: ")]
    assert len(said) == 1, done.stderr
    assert "ratio 0.01 cannot be met" in said[0]
    assert done.stderr.count("exitcode  : 2 ") == 2, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("dying", [0, 1])
def test_one_of_two_dies_and_the_other_ends_with_one_line(tmp_path, dying):
    command, environment = by_torchrun(__file__, tmp_path, 2, OMP_NUM_THREADS="1", DYING=str(dying))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("pela: error: ")]
    assert len(said) == 1, done.stderr
    assert "another process of this run has ended" in said[0] or "stopped by SIGTERM" in said[0]
    assert not (tmp_path / "teardown").exists()  # Python has not taken torch apart
    assert (tmp_path / "atexit").exists()


def refuse() -> None:
    raise RequestError("ratio 0.01 cannot be met")


def child(folder: Path) -> None:
    """Meet the other, and wait for it; one of them is killed then."""
    import atexit

    class Late:
        def __del__(self) -> None:
            (folder / "teardown").touch()

    sys.late = Late()
    atexit.register((folder / "atexit").touch)

    def run() -> None:
        if "DYING" not in os.environ:
            by_first.done(refuse, "cpu")
        processes.join("cpu")
        processes.all_gather(1)
        if os.environ["RANK"] == os.environ["DYING"]:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.all_gather(2)

    pelacli.__main__._run = run
    pelacli.__main__.main()


if __name__ == "__main__":
    child(Path(sys.argv[1]))
