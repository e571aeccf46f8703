"""Packages import in one order, no files import each other in a circle, and what answers at once
loads no torch."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from structure import circles, files, graph, imported, libraries

import pelacli

ROOT = Path(pelacli.__file__).parent
# From the bottom up: a file imports from its own package, and from those to the left of it.
_LEFT_TO_RIGHT = (
    "version errors messages system console distillation ranks recipe manifest planning report "
    "lowrank factorize models data tasks measure train artefact exports steps api cli "
    "__main__ __init__"
)
ORDER = _LEFT_TO_RIGHT.split()
TORCH_FREE = [*ORDER[: ORDER.index("lowrank")], "cli", "__main__", "__init__"]
HEAVY = {"torch", "timm", "transformers", "accelerate", "datasets", "torchmetrics"}


def package_of(file: Path) -> str:
    """The package of a file below the root, or the file itself at the root."""
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_package_has_its_place_in_the_order():
    assert {package_of(file) for file in files(ROOT)} == set(ORDER)


def test_every_package_is_installed():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    packages = {p.parent.relative_to(ROOT.parent) for p in ROOT.rglob("__init__.py")}
    assert listed == {".".join(p.parts) for p in packages} | {"pelacli._recipes"}


def test_packages_import_only_those_before_them():
    wrong = [
        f"{file.relative_to(ROOT)} imports {target.relative_to(ROOT)}"
        for file, targets in graph(ROOT).items()
        for target in targets
        if ORDER.index(package_of(target)) > ORDER.index(package_of(file))
    ]
    assert not wrong


def test_no_files_import_each_other_in_a_circle():
    names = [[str(file.relative_to(ROOT)) for file in circle] for circle in circles(graph(ROOT))]
    assert not names


def test_registries_that_import_by_name_close_no_circle():
    by_name = {f for f in files(ROOT) if "import_module" in f.read_text(encoding="utf-8")}
    by_name.remove(ROOT / "system" / "extras.py")  # imports what others have made
    assert by_name == {
        ROOT / name / "registry.py"
        for name in ("distillation", "ranks/budgets", "ranks/policies", "tasks")
    }
    imports = graph(ROOT)
    for registry in by_name:
        imports[registry] |= frozenset(registry.parent.glob("*.py")) - {registry}
    names = [[str(file.relative_to(ROOT)) for file in circle] for circle in circles(imports)]
    assert not names


def test_every_package_says_what_belongs_in_it():
    for file in ROOT.rglob("__init__.py"):
        assert file.read_text().startswith('"""'), file


def test_a_circle_is_seen_through_an_import_inside_a_function(tmp_path):
    package = tmp_path / "house"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text("from house.two import f\n")
    (package / "two.py").write_text("def f():\n    from house import one\n    return one\n")
    assert circles(graph(package)) == [[package / "one.py", package / "two.py"]]


@pytest.mark.parametrize("package", TORCH_FREE)
def test_torch_free_packages_load_nothing_heavy(package):
    reached = [file for file in files(ROOT) if package_of(file) == package]
    for file in reached:  # grows while it is walked
        assert not libraries(file) & HEAVY, file
        later = imported(file, ROOT, top_level_only=True)
        reached += [target for target in later if target not in reached]


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--help"], 0),
        (["decompose", "--help"], 0),
        (["--version"], 0),
        (["recipes", "list"], 0),
        (["recipes", "check", "nothing.toml"], 2),
        (["decompose", "vit_base", "--ratio", "7"], 2),
        (["recipes", "check", "bad.toml"], 2),
        (["recipes", "schema"], 0),
        (["run", "bad.toml"], 2),
        (["report"], 2),
        (["report", "a"], 0),
        (["report", "a", "--by", "layer", "--format", "markdown"], 0),
        (["report", "a", "--sweep", "0.9..0.5"], 0),
        (["report", "a", "--sweep", "x..y"], 2),
        (["report", "nothing_like_it", "--sweep", "0.9..0.5"], 2),
        (["decompose", "a", "--ratio", "0.6", "--dry-run"], 0),
    ],
)
def test_quick_answers_load_no_torch(args, code, artefact, tmp_path):
    (tmp_path / "bad.toml").write_text('model = "vit_base"\noutput = "r"\nmodle = 3\n')
    script = (
        "import sys\n"
        "from pelacli.__main__ import main\n"
        "try:\n    main()\n"
        "except SystemExit as end:\n    code = end.code or 0\n"
        f"heavy = {HEAVY!r} & set(sys.modules)\n"
        "print(code, sorted(heavy), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *args], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.stderr.splitlines()[-1] == f"{code} []"
