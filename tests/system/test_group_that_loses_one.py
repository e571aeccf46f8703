"""One of a launcher's processes dies: the others say so in one line, and end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from launched import by_torchrun

import pelacli.__main__
from pelacli.cli import failures
from pelacli.system import processes

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


def child(folder: Path) -> None:
    """Meet the other, and wait for it; one of them is killed then."""
    import atexit

    class Late:
        def __del__(self) -> None:
            (folder / "teardown").touch()

    sys.late = Late()
    atexit.register((folder / "atexit").touch)

    def run() -> None:
        processes.join("cpu")
        processes.all_gather(1)
        if os.environ["RANK"] == os.environ["DYING"]:
            os.kill(os.getpid(), signal.SIGKILL)
        processes.all_gather(2)

    pelacli.__main__._run = run
    pelacli.__main__.main()


if __name__ == "__main__":
    child(Path(sys.argv[1]))
