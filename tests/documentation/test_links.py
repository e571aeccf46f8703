"""Links between pages lead somewhere."""

from __future__ import annotations

import re
import unicodedata

import pytest
from documentation.pages import PAGES, ROOT, without_blocks, without_code

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"")


def anchors(page):
    """What GitHub and MyST call the headings of a page."""
    for heading in re.findall(r"^#+ (.*)$", without_blocks(page), re.M):
        words = unicodedata.normalize("NFC", re.sub(r"[`*]", "", heading)).lower()
        yield re.sub(r"[^\w\- ]", "", words).strip().replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_links_lead_to_files_and_headings_that_exist(page):
    for found in LINK.findall(without_code(page)):
        target = "".join(found)
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in set(anchors(file)), f"{page}: {target}"


def test_every_page_is_in_the_navigation():
    """Sphinx says so too, but only when the site is built."""
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    titled = re.sub(r"^.* <(.*)>$", r"\1", index, flags=re.M)
    entries = [line for line in titled.splitlines() if re.fullmatch(r"[\w/*\[\]-]+", line)]
    docs = ROOT / "docs"
    named = {path for entry in entries for path in docs.glob(f"{entry}.md")}
    assert set(docs.rglob("*.md")) - named == {docs / "index.md"}
