"""The structure of the package, read from its source: who imports whom, and how large things are.

``python tests/structure.py [PACKAGE]`` prints the figures of a package directory, ``pelacli``
beside the tests by default; it also works on an older checkout.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

# Names that could be anything's.
VAGUE = frozenset(("found", "place", "places", "told", "there"))

Graph = dict[Path, frozenset[Path]]


def files(package: Path) -> list[Path]:
    """All Python files of the package, in order of their paths."""
    return sorted(package.rglob("*.py"))


def imported(file: Path, package: Path, *, top_level_only: bool = False) -> frozenset[Path]:
    """The package's own files that a file imports, wherever the import stands.

    Args:
        top_level_only: leave out imports inside functions and those for type checkers.
    """
    names = {name for _, name in _imports(file, top_level_only)}
    paths = (_file_of(name, package) for name in names)
    return frozenset(path for path in paths if path is not None and path != file)


def libraries(file: Path) -> frozenset[str]:
    """The top-level packages that are imported as soon as the file is."""
    return frozenset(name.partition(".")[0] for _, name in _imports(file, True))


def graph(package: Path) -> Graph:
    """Each file with the package's files that it imports."""
    return {file: imported(file, package) for file in files(package)}


def circles(imports: Graph) -> list[list[Path]]:
    """Groups of files that import each other in a circle: the strongly connected components of more
    than one file (Tarjan 1972)."""
    numbers: dict[Path, int] = {}
    lowest: dict[Path, int] = {}
    stack: list[Path] = []
    groups: list[list[Path]] = []

    def visit(file: Path) -> None:
        numbers[file] = lowest[file] = len(numbers)
        stack.append(file)
        for target in imports[file]:
            if target not in numbers:
                visit(target)
                lowest[file] = min(lowest[file], lowest[target])
            elif target in stack:
                lowest[file] = min(lowest[file], numbers[target])
        if lowest[file] == numbers[file]:
            group = [stack.pop()]
            while group[-1] != file:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for file in imports:
        if file not in numbers:
            visit(file)
    return groups


def functions(file: Path) -> Iterator[tuple[int, str]]:
    """(lines, name) of every function of a file."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            yield node.end_lineno - node.lineno + 1, f"{file.stem}.{node.name}"


def names(file: Path) -> Iterator[tuple[int, str]]:
    """(line, name) of whatever a file gives a name to: variables, parameters, attributes, functions
    and classes."""
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id if isinstance(node, ast.Name) else node.attr
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name


def _imports(file: Path, top_level_only: bool) -> Iterator[tuple[ast.stmt, str]]:
    """Every import statement with the dotted names that it may load."""
    pending: list[ast.AST] = [ast.parse(file.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if top_level_only and (isinstance(node, ast.FunctionDef) or _for_type_checkers(node)):
            continue
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            # "from a import b": b may be a file of the package a, or a name in the file a.
            yield from ((node, f"{node.module}.{alias.name}") for alias in node.names)
        pending += ast.iter_child_nodes(node)


def _for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)


def _file_of(name: str, package: Path) -> Path | None:
    """The file that holds a dotted name of the package; None for another library's name."""
    parts = name.split(".")
    if parts[0] != package.name:
        return None
    for length in range(len(parts), 0, -1):
        base = package.parent.joinpath(*parts[:length])
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if path.is_file():
                return path
    return None


def main(package: Path) -> None:
    """Print the figures."""
    paths = files(package)
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    longest = sorted((f for path in paths for f in functions(path)), reverse=True)
    groups = circles(graph(package))
    print(
        f"files              {len(paths)}, of which at the root {len(list(package.glob('*.py')))}"
    )
    print(f"lines              {sum(lines.values()):,}")
    print(f"longest file       {max(lines.values())}: {max(lines, key=lambda p: lines[p]).name}")
    print(f"longest functions  {', '.join(f'{name} {count}' for count, name in longest[:5])}")
    print(f"circles            {len(groups)}, of {sum(map(len, groups))} files")
    for group in groups:
        print("  " + ", ".join(str(path.relative_to(package)) for path in group))
    vague = [
        f"{path.relative_to(package)}:{line} {name}"
        for path in paths
        for line, name in names(path)
        if name.strip("_").lower() in VAGUE
    ]
    print(f"vague names        {len(vague)}{': ' if vague else ''}{', '.join(vague[:3])}")


if __name__ == "__main__":
    here = Path(__file__).resolve().parents[1] / "pelacli"
    main(Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else here)
