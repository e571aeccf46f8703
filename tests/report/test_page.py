"""The HTML page: it holds what is recorded, needs no network, and takes no name for markup."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import numpy as np
import pytest

from pelacli.manifest.document import Count, LayerRecord, Manifest, SourceRecord, StepRecord
from pelacli.manifest.evaluations import EvaluationRecord, Timed
from pelacli.planning.stored import About, Spectra
from pelacli.ranks.spectrum import Spectrum
from pelacli.report.curves import Course
from pelacli.report.page import labels, render, scales, tradeoff
from pelacli.report.page.render import Content
from pelacli.report.page.tradeoff import Point
from pelacli.report.subject import Subject, megabytes

HOSTILE = [
    "</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "a\x00\x07\x1b[31mb",
    "]]><![CDATA[", "<!--", "\u202eevil", "{{ 7*7 }}", "&amp;", "'\"`", "a\nb", "</style>",
    "\ud800", "<title>", "javascript:alert(1)", "</svg><p>", "</pre></details>", "x" * 300,
]  # fmt: skip
VOID = {"meta", "input", "br", "wbr"}


def manifest(names=("blocks.0.fc1", "blocks.1.fc1", "head"), label="vit", after=60):
    params = Count(before=100, after=after)
    layers = [
        LayerRecord(name=name, shape=(8, 8), rank=3, form="pivots", energy=0.9, params=params)
        for name in names
    ]
    layers[-1] = layers[-1].model_copy(
        update={"rank": None, "form": None, "reason": "output head", "energy": None}
    )
    step = StepRecord(step="decompose", recipe={"model": label, "decompose": {"ratio": "1/2"}})
    return Manifest(
        source=SourceRecord(model=label, library="timm", architecture=label), library="timm",
        policy="energy", scope="model", unit="params", ratio="0.5", energy=0.9,
        params=params, layers=layers, history=[step],
    )  # fmt: skip


def evaluated(accuracy, drop, max_drop=None, data="digits"):
    return EvaluationRecord(
        data=data, split="validation", task="image-classification", main_metric="accuracy",
        metrics={"accuracy": accuracy}, latency_ms=4.0, drop=drop, max_drop=max_drop,
        timed=Timed(batch_size=8, device="cpu", model="Some CPU", threads=2),
        baseline={"artefact": "dense", "metrics": {"accuracy": 95.0}, "latency_ms": 8.0},
    )  # fmt: skip


class Tags(HTMLParser):
    """What a browser makes of the page: open tags, text, attributes; that tags close in order."""

    def __init__(self, page):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def plots(page):
    return [ET.fromstring(svg) for svg in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


@pytest.fixture
def page():
    subjects = [
        Subject("runs/a", manifest(), 240, [evaluated(93.5, 1.5, 2.0)]),
        Subject("runs/b", manifest(after=30), 120, [evaluated(80.25, 14.75, 2.0)]),
    ]
    return render.render(Content(subjects))


def test_the_summary_stands_first_with_each_models_figures(page):
    table = page[page.index("<table") : page.index("</table>")]
    words = " ".join(re.sub(r"<[^>]*>", " ", table).split())
    assert "vit (dense)" in words
    assert re.search(r"1 runs/a .* 93\.5 drop 1\.50 4 ms 2\.00 × dense speed passed \(≤ 2\)", words)
    assert re.search(r"2 runs/b .* 80\.25 drop 14\.75 4 ms .* failed \(≤ 2\)", words)
    assert page.index("Summary") < page.index("Quality and size") < page.index("Layers")
    assert "batch of 8 on Some CPU, 2 threads" in page


def test_models_of_one_name_are_no_models_of_one_original(page):
    assert "<h1>2 models made from vit</h1>" in page
    other = manifest()
    other.params.before += 1  # as that of another directory of this name
    page = render.render(Content([Subject("a", manifest(), 240), Subject("b", other, 240)]))
    assert "<h1>2 models</h1>" in page


def test_the_page_loads_nothing(page):
    tags = Tags(page)
    assert tags.tags.count("script") == 1
    assert not {"link", "img", "iframe", "object", "base", "form"} & set(tags.tags)
    assert not [v for k, v in tags.attributes if k in ("src", "xlink:href") or k.startswith("on")]
    assert all(v.startswith("#") for k, v in tags.attributes if k == "href")
    assert "@import" not in page
    assert "url(" not in page
    assert any("default-src 'none'" in v for k, v in tags.attributes if k == "content")


def test_every_layer_is_in_the_table_with_what_it_is_sorted_by(page):
    for name in ("blocks.0.fc1", "blocks.1.fc1", "head"):
        assert f"<td>{name.replace('.', '.<wbr>')}</td>" in page  # breaks at dots alone
    assert 'data-form="pivots"' in page
    assert "dense: output head" in page
    assert 'data-value="60"' in page


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_is_taken_for_markup(name):
    course = Course(2, 1.0, False, {f"metrics/{name}": [(0, 1.0), (2, 0.5)]})
    record = evaluated(90.0, 1.0, 2.0, data=name).model_copy(
        update={
            "main_metric": name,
            "metrics": {name: 90.0},
            "baseline": {"artefact": name, "metrics": {name: 95.0}, "latency_ms": 8.0},
        }
    )
    subject = Subject(name, manifest((f"{name}.0", f"{name}.1", "z"), name), 99, [record], course)
    history = subject.manifest.history[0]
    history.metrics[name] = name
    history.versions[name] = name
    history.recipe[name] = name
    history.recipe["none"] = None
    harmless = render.render(Content([Subject("a", manifest(), 99, [evaluated(1, 2, 3)], course)]))
    page = render.render(Content([subject], {name: course}))
    tags = Tags(page)
    assert set(tags.tags) == set(Tags(harmless).tags)
    assert tags.tags.count("script") == 1
    assert "\x00" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    page.encode()  # no lone surrogates
    if name.isprintable():
        assert name in "".join(tags.text).replace("\n", "")
    assert plots(page)


def test_plots_say_what_they_show_and_count(page):
    for svg in plots(page):
        assert svg.get("role") == "img"
        assert svg[0].tag == "title"
        assert svg[0].text
        assert svg[1].tag == "desc"
        assert svg[1].text
    texts = [text.text for text in plots(page)[0].iter("text")]
    assert "size, MB" in texts
    assert "accuracy (higher is better)" in texts
    assert {"1", "2", "dense"} <= set(texts)


def test_spectra_are_drawn_with_their_cut():
    energies = np.geomspace(1, 1e-4, 8)
    spectra = Spectra(
        [Spectrum(name, (8, 8), energies) for name in ("blocks.0.fc1", "blocks.1.fc1")],
        About(dense=manifest(), tokens={}, fixed_params=0),
    )
    page = render.render(Content([Subject("a", manifest(), 99, spectra=spectra)]))
    section = page[page.index("Spectra with the cut") :]
    (svg,) = plots(section[: section.index("</section>")])
    cuts = [mark for mark in svg.iter("circle") if "cut" in mark.get("class")]
    assert len(cuts) == 2
    assert float(cuts[0].get("cx")) == pytest.approx(50 + 3 / 8 * (300 - 64), abs=0.1)
    assert "rank 3 of 8" in cuts[0][0].text


def test_a_course_begins_at_step_0():
    course = Course(20, 1.0, False, {"metrics/kl": [(0, 0.5), (10, 0.2), (20, 0.1)]})
    page = render.render(Content([Subject("a", manifest(), 99, course=course)]))
    section = page[page.index("<h3>Training") :]
    (svg,) = plots(section[: section.index("</section>")])
    assert [line for line in svg.iter("line") if line.get("class") == "line start"]
    hints = [title.text for title in svg.iter("title")]
    assert "step 0: 0.5" in hints
    assert "best: 0.1 at step 20" in hints


@pytest.mark.parametrize(
    "subject",
    [
        Subject("dense", manifest(("head",))),
        Subject("empty", manifest().model_copy(update={"layers": [], "history": []}), 0),
        Subject("odd", manifest().model_copy(update={"params": Count(before=0, after=0)}), 10),
        Subject("nan", manifest(), 9, [evaluated(float("nan"), float("nan"), 1.0)]),
        Subject("old", manifest(), 9, [EvaluationRecord()]),
    ],
    ids=lambda subject: subject.label,
)
def test_what_is_not_recorded_is_left_out(subject):
    page = render.render(Content([subject, subject]))
    Tags(page)
    summary = page[page.index("<table") : page.index("</table>")]
    assert summary.count("<tr") == (3 if subject.is_dense else 4)


def test_trials_of_a_search_are_drawn():
    tried = manifest()
    tried.history[0].metrics = {
        "metric": "accuracy", "max_drop": 1.0,
        "curve": [
            {"asked": None, "params": 100, "score": 95.0},
            {"asked": "0.5", "params": 50, "score": 94.0},
            {"asked": "0.4", "params": "?", "score": None},
        ],
    }  # fmt: skip
    figures = tradeoff.figures([Subject("a", tried, 240)], [])
    assert [row["size, MB"] for row in figures[0].table] == ["0.0002", "0.0004"]


def test_the_front_holds_those_that_none_betters():
    points = [Point(s, v, "", "") for s, v in [(1, 5), (2, 4), (3, 8), (3, 9), (4, 9), (5, 10)]]
    assert [(p.size, p.value) for p in tradeoff.front(points, True)] == [(1, 5), (3, 9), (5, 10)]
    assert [(p.size, p.value) for p in tradeoff.front(points, False)] == [(1, 5), (2, 4)]


def test_labels_cover_neither_each_other_nor_points():
    points = [(100 + 6 * (n % 4), 100 + 5 * (n // 4)) for n in range(12)]
    middles = labels.placed(points, [(18.0, 14.0)] * 12, [], (0, 0, 300, 200))
    for n, (x, y) in enumerate(middles):
        assert all(abs(x - a) >= 18 or abs(y - b) >= 14 for a, b in middles[:n]), n
        assert 9 <= x <= 291
        assert 7 <= y <= 193


def test_axes_have_round_values_within_them():
    assert scales.around([3.1, 9.7], 0, 100).ticks() == [4.0, 6.0, 8.0, 10.0]
    assert scales.around([0.02, 40.0], 0, 100, log=True).ticks() == [0.1, 1.0, 10.0]
    assert scales.around([5.0], 0, 100).ticks()
    assert scales.around([], 0, 100).ticks()
    assert scales.around([2.0, 2.1], 0, 100, log=True).ticks()
    scale = scales.around([10.0, 20.0], 0, 100, zero=True)
    assert scale(0.0) == 0.0
    assert [scales.label(v) for v in (0, 2.5, 1500, 0.05, 1e-6, 2e7)] == [
        "0", "2.5", "1,500", "0.05", "10⁻⁶", "2·10⁷",
    ]  # fmt: skip


def test_sizes_are_in_megabytes():
    known = {None: "–", 22_050_000: "22.1 MB", 810_000: "0.810 MB", 1_843_000_000: "1,843 MB",
             4_000: "0.004 MB", 999_600_000: "1,000 MB"}  # fmt: skip
    assert {count: megabytes(count) for count in known} == known


def test_the_command_writes_a_page_and_prints_the_tables_too(pela, artefact):
    code, out, err = pela("report", "a", "--html", "page.html")
    assert (code, err) == (0, "")
    assert out.endswith("written to page.html\n")
    assert " kind " in out
    page = (artefact.parent / "page.html").read_text()
    Tags(page)
    assert "Spectra with the cut" in page
    assert re.search("What other ratios of .* would give", page)
    listed = json.loads(pela("report", "a", "--html", "page.html", "--json")[1])
    shown = page.replace("<wbr>", "")
    assert all(f"<td>{layer['name']}</td>" in shown for layer in listed[0]["layers"])
    sweep = pela("report", "a", "--html", "page.html", "--sweep", "0.9,0.8")
    assert sweep[0] == 0
    assert (artefact.parent / "page.html").read_text() != page


def test_the_page_is_written_before_the_reader_of_the_tables_may_be_gone(
    pela, artefact, monkeypatch
):
    def gone(*_, **__):
        raise BrokenPipeError

    monkeypatch.setattr("pelacli.cli.reports.print_report", gone)
    monkeypatch.setattr("sys.stderr", open("/dev/null", "w"))  # noqa: SIM115
    assert pela("report", "a", "--html", "page.html")[0] == 0
    assert (artefact.parent / "page.html").exists()


def test_a_file_that_is_no_page_of_ours_is_left_as_it_was(pela, artefact):
    foreign = artefact.parent / "mine.html"
    foreign.write_text("<!DOCTYPE html><p>mine")
    before = (artefact / "pela.json").read_bytes()
    for target in ("mine.html", "a/pela.json", "a", "mine.html/x.html"):
        code, out, err = pela("report", "a", "--html", target)
        assert (code, out) == (2, ""), target
        assert len(err.splitlines()) == 1
    assert foreign.read_text() == "<!DOCTYPE html><p>mine"
    assert (artefact / "pela.json").read_bytes() == before
    assert pela("report", "a", "--html", "x.html", "--curves")[0] == 2


def test_figures_of_eval_come_into_the_page(pela, artefact, monkeypatch):
    monkeypatch.setattr("pelacli.steps.latency.SECONDS", 0.02)
    ask = ("eval", "a", "--against", "test_vit", "--weights", "random")
    assert pela(*ask)[0] == 0
    assert pela("report", "a", "--html", "page.html")[0] == 0
    page = (artefact.parent / "page.html").read_text()
    assert re.search(r"[\d.]+ ms<small>[\d.]+ × dense speed", page)
    artefact.chmod(0o500)  # a root user may write all the same
    try:
        assert pela(*ask, "--no-latency")[0] == 0
    finally:
        artefact.chmod(0o700)


def test_eval_and_report_call_the_bytes_of_the_files_the_size(pela, artefact):
    evaluated = json.loads(pela("eval", "a", "--no-latency", "--json")[1])[0]["bytes"]
    reported = json.loads(pela("report", "a", "--json")[1])[0]["bytes"]
    assert evaluated == reported == (artefact / "model.safetensors").stat().st_size


def test_held_back_errors_are_a_column_and_plots_where_they_are_known():
    known = manifest()
    old = render.render(Content([Subject("a", known)]))
    assert "held-back error" not in old.lower()
    known.layers[0].held_back_error, known.layers[1].held_back_error = 0.25, 1.5
    page = render.render(Content([Subject("a", known), Subject("old", manifest())]))
    Tags(page)
    assert page.count(">held-back error</th>") == 1
    assert '<td class="number" data-value="0.25">0.25</td>' in page
    section = page[page.index("Held-back error across depth") :]
    (svg,) = plots(section[: section.index("</section>")])
    first, second = (float(bar.get("height")) for bar in svg.iter("rect"))
    assert second == pytest.approx(6 * first, abs=0.5)
    assert "held-back error 1.5" in "".join(t.text for t in svg.iter("title"))
    for table in re.findall(r'<table class="layers">.*?</table>', page, re.DOTALL):
        head, row = table.split("</tr>")[:2]
        assert head.count("<th ") == row.count("<td")


def test_the_dense_models_size_is_what_eval_found_where_it_compared_the_two():
    def size(**baseline):
        record = EvaluationRecord(baseline={"artefact": "dense", **baseline})
        return Subject("a", manifest(), 240, [EvaluationRecord(), record]).dense_bytes

    assert size(params=100, bytes=403) == 403
    assert size(params=99, bytes=403) == size(params=100) == size(params=100, bytes=None) == 400
