"""What a dead process has left goes, and what a living one is writing stays."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from pelacli.system import leftovers


def dead() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def left(path, pid, suffix="tmp", host=leftovers._HOST):
    """A draft of a process: a folder with a file."""
    folder = path.with_name(f".{path.name}.{host}-{pid}.0a1b2c3d.{suffix}")
    folder.mkdir()
    (folder / "model.safetensors").write_text("much")
    return folder


def age(folder, seconds):
    then = time.time() - seconds
    for part in [folder, *folder.iterdir()]:
        os.utime(part, (then, then))


def test_a_dead_processs_draft_goes_and_a_living_ones_stays(tmp_path):
    gone, parent = left(tmp_path / "out", dead()), left(tmp_path / "out", os.getppid())
    own = left(tmp_path / "out", os.getpid())
    leftovers.clear(tmp_path / "out")
    assert not gone.exists()
    assert parent.exists()
    assert own.exists()


def test_the_draft_of_another_process_that_had_the_same_number_goes(tmp_path):
    """In containers every process has the same number."""
    before = left(tmp_path / "out", os.getpid())
    age(before, 1e6)
    leftovers.clear(tmp_path / "out")
    assert not before.exists()


@pytest.mark.parametrize("seconds", [60, 7200])
def test_another_hosts_draft_goes_when_nobody_has_written_to_it_for_an_hour(tmp_path, seconds):
    folder = left(tmp_path / "out", 1, host="elsewhere")
    age(folder, seconds)
    leftovers.clear(tmp_path / "out")
    assert folder.exists() == (seconds < 3600)


def test_drafts_of_other_outputs_and_a_users_hidden_files_stay(tmp_path):
    pid = dead()
    others = [left(tmp_path / name, pid) for name in ("out.b", "ou", "b")]
    mine = [tmp_path / name for name in (".out.tmp", ".out.notes.tmp", "out.tmp", ".out")]
    for path in mine:
        path.touch()
        os.utime(path, (0, 0))
    leftovers.clear(tmp_path / "out")
    assert all(path.exists() for path in others + mine)


def test_who_was_killed_between_two_renames_gets_the_old_one_back(tmp_path):
    old = left(tmp_path / "out", dead(), "old")
    leftovers.clear(tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_text() == "much"
    assert not old.exists()
    old = left(tmp_path / "out", dead(), "old")  # the new one is there
    leftovers.clear(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_discarded_never_lies_there_by_half(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    folder.mkdir()
    seen = []
    monkeypatch.setattr(leftovers, "remove", lambda path: seen.append((path, folder.exists())))
    leftovers.discard(folder)
    [(doomed, is_there)] = seen
    assert doomed.is_dir()
    assert not is_there
    leftovers.discard(folder)  # nothing there
