"""The pages of the documentation, and what stands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
# The log and the cases are records of their day: what they quote may be gone.
GUIDES = [page for page in PAGES if page.parent.name not in ("log", "cases")]


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        words: what stands behind the fence: the language, and perhaps "excerpt".
        text: without the indentation of its fence.
    """

    page: Path
    line: int
    words: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks(language: str, pages: list[Path] = GUIDES) -> list[Block]:
    """All blocks in a language."""
    known = [block for page in pages for block in _blocks(page)]
    return [block for block in known if block.words[:1] == (language,)]


def _blocks(page: Path) -> Iterator[Block]:
    lines = page.read_text(encoding="utf-8").splitlines()
    numbered = iter(enumerate(lines, 1))
    for number, line in numbered:
        fence = re.fullmatch(r"( *)```(.*)", line)
        if fence is None:
            continue
        indent, words = len(fence[1]), tuple(fence[2].split())
        inside: list[str] = []
        for _, other in numbered:
            if other.strip() == "```":
                break
            inside.append(other[indent:])
        yield Block(page, number, words, "\n".join(inside) + "\n")


def without_blocks(page: Path) -> str:
    """The text of a page, its fenced blocks left out."""
    return re.sub(r"^ *```.*?^ *```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)


def without_code(page: Path) -> str:
    """The text of a page, all its code left out."""
    return re.sub(r"`[^`\n]*`", "", without_blocks(page))
