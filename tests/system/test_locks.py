"""One process at a time writes to an output, and whoever has died holds it no longer."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys

import pytest

from pelacli.system import locks
from pelacli.system.locks import LockedError, holding

# Hold an output until standard input ends.
HOLD = (
    "import sys; from pathlib import Path; from pelacli.system.locks import holding\n"
    "with holding(Path('out')): print('held', flush=True); sys.stdin.read()"
)


@pytest.fixture
def other(here):
    """Another process that holds ``out``."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, "finetune", "r.toml"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


def refusal(output) -> str:
    with pytest.raises(LockedError) as caught, holding(output):
        pass
    assert caught.value.exit_code == 1
    return str(caught.value)


def pretend(output, **changes) -> None:
    """The file of a holder that has not given its lock back."""
    holder = {**locks._self(), "pid": 1, **changes}
    output.with_name(f".{output.name}.lock").write_text(json.dumps(holder))


def test_the_second_is_told_who_the_first_is(here, other):
    message = refusal(here / "out")
    assert f"process {other.pid} on " in message
    assert "(pela finetune r.toml, since 2" in message
    assert "wait until it has ended" in message
    with holding(here / "another"):
        pass


def test_a_killed_holder_holds_nothing(here, other):
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with holding(here / "out"):
        pass
    assert not list(here.iterdir())


def test_one_process_cannot_hold_an_output_twice(here):
    with holding(here / "out"):
        refusal(here / "out")
    with holding(here / "out"):
        pass


def test_what_a_link_points_to_is_held(here):
    (here / "out").mkdir()
    (here / "link").symlink_to("out")
    with holding(here / "link"):
        refusal(here / "out")


def test_folders_that_were_made_for_it_go_again_when_nothing_came_there(here):
    with pytest.raises(KeyError), holding(here / "a" / "b" / "out"):
        raise KeyError
    assert not list(here.iterdir())
    with holding(here / "a" / "b" / "out"):
        (here / "a" / "mine").touch()
    assert [path.name for path in here.rglob("*")] == ["a", "mine"]


def test_a_holder_on_another_host_that_gave_nothing_back_is_asked_about(here):
    pretend(here / "out", host="elsewhere", boot="another")
    message = refusal(here / "out")
    assert "on elsewhere" in message
    assert f"if it has ended, remove {here / '.out.lock'}" in message
    (here / ".out.lock").unlink()
    with holding(here / "out"):
        pass


@pytest.mark.parametrize("changes", [{}, {"boot": "before"}, {"host": "a-container-here"}])
def test_a_holder_of_this_machine_whose_lock_is_free_has_died(here, changes):
    pretend(here / "out", **changes)
    with holding(here / "out"):
        pass


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": null}', "[" * 4096])
def test_a_damaged_file_of_a_holder_is_no_obstacle(here, content):
    (here / ".out.lock").write_text(content)
    with holding(here / "out"):
        pass


def test_without_locks_of_the_system_the_name_in_the_file_decides(here, monkeypatch, other):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOTSUP, "not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    assert f"process {other.pid}" in refusal(here / "out")
    os.kill(other.pid, signal.SIGKILL)
    other.wait()
    with holding(here / "out"):
        pass
