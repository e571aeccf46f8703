"""constraints.txt, the lock file for development, holds what pyproject.toml asks for."""

from __future__ import annotations

import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]


def test_every_requirement_is_locked_to_a_version_that_it_allows():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = [line.split("==") for line in lines if not line.startswith("#")]
    locked = {canonicalize_name(name): version for name, version in pairs}
    extras = project["optional-dependencies"]
    # .ci/lock installs [dev], which has all extras but that one: it is for tests of their own.
    some = [r for name, wanted in extras.items() if name != "consumers" for r in wanted]
    wanted = map(Requirement, [*project["dependencies"], *some])
    for requirement in wanted:
        if requirement.name != project["name"]:
            version = locked[canonicalize_name(requirement.name)]
            assert requirement.specifier.contains(version, prereleases=True), requirement
