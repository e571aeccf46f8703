"""Imports go down only, steps do not know each other, and what is torch-free stays so."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import pelacli

ROOT = Path(pelacli.__file__).parent

# From the bottom up. A module imports from lower tiers only; a package is one room.
TIERS = [
    {"errors", "fields"},
    {
        "aliases", "atomic", "console", "heap", "manifest", "plans", "policies", "processes",
        "recipe", "search",
    },
    {"devices", "factored", "refusals"},
    {"fingerprint", "ranks", "recipe_file", "rundir", "tables"},
    {"card", "curves", "gallery", "planning", "spectra_file"},
    {"replan"},
    {"parallel", "products", "sweep"},
    {
        "factorize", "journal", "lean", "loader", "losses", "lowrank", "pair_losses", "shelf",
        "sources", "stopping",
    },
    {"calls", "formats", "models", "residual"},
    {
        "agreement", "calibrate", "checkpoint", "data", "flops", "holding", "latency", "lockstep",
        "optim", "taps",
    },
    {"artefact", "correct", "engine", "record", "tasks", "train"},
    {"api", "evaluation", "trained"},
    {"quality"},
    {"steps"},
    {"pipeline"},
    {"options", "requests", "results"},
    {"cli"},
    {"__main__"},
]  # fmt: skip
LEVEL = {name: level for level, names in enumerate(TIERS) for name in names}
TORCH_FREE = [
    "__main__", "aliases", "atomic", "card", "cli", "console", "curves", "errors", "fields",
    "fingerprint", "gallery", "heap", "manifest", "options", "pipeline", "planning", "plans",
    "policies", "processes", "ranks", "recipe", "recipe_file", "refusals", "replan", "requests",
    "results", "rundir", "search", "spectra_file", "sweep", "tables",
]  # fmt: skip
HEAVY = {"torch", "timm", "transformers", "accelerate", "datasets", "torchmetrics"}


def files() -> list[Path]:
    return sorted(p for p in ROOT.rglob("*.py") if p != ROOT / "__init__.py")


def room(path: Path) -> str:
    part = path.relative_to(ROOT).parts[0]
    return part.removesuffix(".py")


@functools.cache
def imported(path: Path, top_level: bool) -> frozenset[str]:
    """Dotted names that a file imports, those for type checkers left out."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            return
        if top_level and isinstance(node, ast.FunctionDef):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module in ("pelacli", "pelacli.steps", "pelacli.models"):
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
            else:
                found.add(node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return frozenset(found)


def test_every_module_has_its_place():
    assert {room(path) for path in files()} == set(LEVEL)


def test_every_package_is_installed():
    project = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())
    listed = set(project["tool"]["setuptools"]["packages"])
    there = {p.parent.relative_to(ROOT.parent) for p in ROOT.rglob("__init__.py")}
    assert listed == {".".join(p.parts) for p in there} | {"pelacli._recipes"}


@pytest.mark.parametrize("path", files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down(path):
    for name in imported(path, top_level=False):
        parts = name.split(".")
        if parts[0] != "pelacli" or len(parts) < 2 or parts[1] not in LEVEL:
            continue
        if room(path) == "steps" and parts[1] == "steps":
            raise AssertionError(f"{path.name} imports another step: {name}")
        if parts[1] != room(path):
            assert LEVEL[parts[1]] < LEVEL[room(path)], f"{path.name} imports {name}"


def test_torch_free_modules_import_nothing_heavy():
    def reach(path: Path, seen: set[Path]) -> set[str]:
        if path in seen:
            return set()
        seen.add(path)
        found: set[str] = set()
        for name in imported(path, top_level=True):
            parts = name.split(".")
            if parts[0] == "pelacli" and len(parts) > 1:
                target = ROOT / f"{parts[1]}.py"
                found |= reach(target, seen) if target.exists() else {f"pelacli.{parts[1]}"}
            else:
                found.add(parts[0])
        return found

    for name in TORCH_FREE:
        heavy = reach(ROOT / f"{name}.py", set()) & (HEAVY | {"pelacli.models", "pelacli.steps"})
        assert not heavy, f"{name} reaches {heavy}"


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
