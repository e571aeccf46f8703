"""How much memory this process may still take. No torch.

A machine's free memory is not all: a container has a limit of its own (a cgroup), and so may the
process (``ulimit``). Where one is overrun the kernel ends the process without a word, so it is
asked for before the work.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

# From so many bytes on, work says before it begins what memory it will take.
LARGE = 1_000_000_000

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")


def available() -> int:
    """Bytes that this process may still take: the least of what the machine has free, what its
    cgroups leave and what its own limits do."""
    free = int(psutil.virtual_memory().available)
    return max(0, min([free, *_in_cgroups(), *_in_own_limits()]))


def text(size: float) -> str:
    """A number of bytes for people: "3.1 GB", or "250 MB" below 1 GB."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{max(size / 1e6, 1):.0f} MB"


def _in_own_limits() -> Iterator[int]:
    """What ``ulimit -v`` and ``ulimit -d`` leave."""
    if resource is None:
        return
    used = psutil.Process().memory_info()
    for name, taken in (("RLIMIT_AS", used.vms), ("RLIMIT_DATA", getattr(used, "data", None))):
        limit = resource.getrlimit(getattr(resource, name))[0]
        if limit != resource.RLIM_INFINITY and taken is not None:
            yield limit - taken


def _in_cgroups(root: Path = _CGROUPS, own: Path = _OWN_CGROUPS) -> Iterator[int]:
    """What the cgroups that this process is in leave, of either version of them.

    Args:
        root: where they are mounted.
        own: the file that lists those of this process: "number:controllers:path" each.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:  # not Linux
        return
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            yield from _up(root, path, _VERSION_2)
        elif "memory" in controllers.split(","):
            yield from _up(root / "memory", path, _VERSION_1)


@dataclass(frozen=True)
class _Names:
    """What a version of cgroups calls its files, and its figures in memory.stat."""

    limit: str
    usage: str
    inactive: str
    active: str
    mapped: str


_VERSION_1 = _Names(
    "memory.limit_in_bytes",
    "memory.usage_in_bytes",
    "total_inactive_file",
    "total_active_file",
    "total_mapped_file",
)
_VERSION_2 = _Names("memory.max", "memory.current", "inactive_file", "active_file", "file_mapped")


def _up(mount: Path, path: str, names: _Names) -> Iterator[int]:
    """What a cgroup and those around it leave. A container may see its own as the mount itself."""
    folder = mount / path.strip("/")
    for group in (folder, *folder.parents):
        most, taken = _number(group / names.limit), _number(group / names.usage)
        if most is not None and taken is not None:
            yield most - taken + _given_up(_figures(group / "memory.stat"), names)
        if group == mount:
            break


def _number(file: Path) -> int | None:
    """The number in a file; None where it has "max", or is not there."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return None


def _given_up(figures: Mapping[str, int], names: _Names) -> int:
    """Bytes of files' contents that the kernel keeps for later and gives up when memory is short.

    Weights that were read twice are among the active ones. Of these, what is mapped is in use:
    libraries, and tensors that lie in their files.
    """
    inactive, active, mapped = (
        figures.get(name, 0) for name in (names.inactive, names.active, names.mapped)
    )
    return max(inactive, inactive + active - mapped)


def _figures(file: Path) -> dict[str, int]:
    """A file of lines of a name and a number each; empty where there is none that can be read."""
    try:
        pairs = [line.split() for line in file.read_text().splitlines()]
        return {name: int(number) for name, number in pairs}
    except (OSError, ValueError):
        return {}
