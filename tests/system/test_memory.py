"""What limits a process's memory."""

from __future__ import annotations

import pytest

from pelacli.system import memory

MB = 10**6


def group(folder, names, most, taken, cache, active=0, mapped=0):
    """A cgroup's files."""
    folder.mkdir(parents=True)
    limit, usage, inactive, in_use, in_tables = names
    (folder / limit).write_text(f"{most}\n")
    (folder / usage).write_text(f"{taken}\n")
    (folder / "memory.stat").write_text(
        f"anon 5\n{inactive} {cache}\n{in_use} {active}\n{in_tables} {mapped}\n"
    )


V1 = (
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "total_active_file",
    "total_mapped_file",
)
V2 = ("memory.max", "memory.current", "inactive_file", "active_file", "file_mapped")


@pytest.mark.parametrize(
    ("lines", "mount", "names"),
    [("0::/job/step\n", ".", V2), ("4:memory:/job/step\n", "memory", V1)],
)
def test_the_tightest_of_nested_cgroups_counts_and_files_kept_for_later_do_not(
    tmp_path, lines, mount, names
):
    (own := tmp_path / "own").write_text(lines)
    group(tmp_path / mount / "job", names, 900 * MB, 300 * MB, 50 * MB)
    group(tmp_path / mount / "job" / "step", names, 800 * MB, 100 * MB, 0)
    assert min(memory._in_cgroups(tmp_path, own)) == 650 * MB


@pytest.mark.parametrize(("mount", "names"), [(".", V2), ("memory", V1)])
@pytest.mark.parametrize(
    ("mapped", "left"),
    [(0, 470), (100, 370), (400, 220)],  # of 20 MB inactive and 250 MB active
)
def test_weights_that_were_read_twice_are_given_up_but_not_what_is_mapped(
    tmp_path, mount, names, mapped, left
):
    """The kernel counts a file that is read again as active, and gives it up all the same."""
    (own := tmp_path / "own").write_text("0::/job\n" if names is V2 else "4:memory:/job\n")
    group(tmp_path / mount / "job", names, 900 * MB, 700 * MB, 20 * MB, 250 * MB, mapped * MB)
    assert min(memory._in_cgroups(tmp_path, own)) == left * MB


def test_a_container_sees_its_own_cgroup_as_the_mount(tmp_path):
    (own := tmp_path / "own").write_text("0::/somewhere/outside\n")
    group(tmp_path / "cgroup", V2, 700 * MB, 200 * MB, 0)
    assert list(memory._in_cgroups(tmp_path / "cgroup", own)) == [500 * MB]


def test_a_cgroup_without_a_limit_limits_nothing(tmp_path):
    (own := tmp_path / "own").write_text("0::/job\n2:cpu:/\n")
    group(tmp_path / "job", V2, "max", 200 * MB, 0)
    assert list(memory._in_cgroups(tmp_path, own)) == []
    assert list(memory._in_cgroups(tmp_path, tmp_path / "missing")) == []


def test_a_limit_of_the_process_counts(monkeypatch):
    pytest.importorskip("resource")
    limits = {"RLIMIT_DATA": memory.psutil.Process().memory_info().data + 200 * MB}
    real = memory.resource.getrlimit
    monkeypatch.setattr(
        memory.resource,
        "getrlimit",
        lambda which: (
            (limits["RLIMIT_DATA"], -1) if which == memory.resource.RLIMIT_DATA else real(which)
        ),
    )
    assert memory.available() <= 200 * MB


def test_sizes_are_said_in_two_figures():
    assert [memory.text(size) for size in (3.14e9, 250e6, 3)] == ["3.1 GB", "250 MB", "1 MB"]
