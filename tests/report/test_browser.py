"""The HTML page in a real browser: its own script runs under its own policy, sorts and filters."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import subprocess

import pytest

from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord
from pelacli.report.page import render
from pelacli.report.page.render import Content
from pelacli.report.subject import Subject

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="there is no Chromium"),
]

# What a person does with the table of layers; what is seen each time goes into the title.
DRIVER = """
const table = document.querySelector("table.layers"), seen = {};
const rows = () => [...table.tBodies[0].rows].filter((row) => row.getClientRects().length);
const note = (what) => (seen[what] = rows().map((row) => row.cells[0].textContent));
const head = (name) => [...table.tHead.rows[0].cells].find((h) => h.textContent === name);
const button = (name) => head(name).querySelector("[role=button]");
const search = document.querySelector(".tools input");
const form = document.querySelector(".tools select");
const type = (text) => { search.value = text; search.dispatchEvent(new Event("input")); };
const choose = (text) => { form.value = text; form.dispatchEvent(new Event("change")); };
note("start");
for (const name of ["held-back error", "rank", "layer"]) {
  button(name).click(); note(name + " up");
  button(name).click(); note(name + " down");
}
seen.sorted = ["layer", "rank"].map((name) => head(name).getAttribute("aria-sort")).join(" ");
button("energy lost").dispatchEvent(new KeyboardEvent("keydown", {key: "Enter"})); note("by key");
type("FC1"); note("name"); seen.count = document.querySelector(".tools output").textContent;
choose("pivots"); note("name and form");
type(""); note("form");
type("<b>"); note("nothing");
choose(""); type("10"); note("ten");
seen.wide = document.documentElement.scrollWidth > innerWidth;
document.title = JSON.stringify(seen);
"""


def layer(name, rank, form, energy, error):
    params = Count(before=64, after=60)
    return LayerRecord(
        name=name, shape=(8, 8), rank=rank, form=form, energy=energy, held_back_error=error,
        params=params,
    )  # fmt: skip


@pytest.fixture(scope="module", params=[(1280, 900), (390, 800)], ids=["wide", "phone"])
def seen(request, tmp_path_factory):
    layers = [
        layer("b.2.fc1", 10, "pivots", 0.9, 0.5),
        layer("b.10.fc1", 9, "factors", 0.7, 1.25),
        layer("b.1.fc2", 100, "pivots", 0.8, 1e-7),
        layer("head", None, None, None, None),
    ]
    manifest = Manifest(
        source=SourceRecord(model="m", library="timm"), library="timm", layers=layers,
        params=Count(before=100, after=80),
    )  # fmt: skip
    page = render.render(Content([Subject("m", manifest, 99)]))
    digest = base64.b64encode(hashlib.sha256(DRIVER.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    page = page.replace("</body>", f"<script>{DRIVER}</script></body>")
    folder = tmp_path_factory.mktemp("browser")
    (folder / "page.html").write_text(page)
    width, height = request.param
    run = subprocess.run(
        [
            BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu",
            f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}",
            "--dump-dom", (folder / "page.html").as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    title = re.search("<title>(.*?)</title>", run.stdout, re.DOTALL).group(1)
    return json.loads(title.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))


def test_columns_sort_both_ways_and_what_is_unknown_stays_last(seen):
    assert seen["start"] == ["b.2.fc1", "b.10.fc1", "b.1.fc2", "head"]
    assert seen["held-back error up"] == ["b.1.fc2", "b.2.fc1", "b.10.fc1", "head"]
    assert seen["held-back error down"] == ["b.10.fc1", "b.2.fc1", "b.1.fc2", "head"]
    assert seen["rank up"] == ["b.10.fc1", "b.2.fc1", "b.1.fc2", "head"]
    assert seen["rank down"] == ["b.1.fc2", "b.2.fc1", "b.10.fc1", "head"]
    assert seen["layer up"] == ["b.1.fc2", "b.2.fc1", "b.10.fc1", "head"]  # 10 after 2
    assert seen["layer down"] == ["head", "b.10.fc1", "b.2.fc1", "b.1.fc2"]
    assert seen["sorted"] == "descending "
    assert seen["by key"] == ["b.2.fc1", "b.1.fc2", "b.10.fc1", "head"]


def test_rows_are_filtered_by_name_and_form_together(seen):
    assert seen["name"] == ["b.2.fc1", "b.10.fc1"]
    assert seen["count"] == "2 of 4 layers"
    assert seen["name and form"] == ["b.2.fc1"]
    assert seen["form"] == ["b.2.fc1", "b.1.fc2"]
    assert seen["nothing"] == []
    assert seen["ten"] == ["b.10.fc1"]


def test_the_page_is_no_wider_than_the_screen(seen):
    assert not seen["wide"]
