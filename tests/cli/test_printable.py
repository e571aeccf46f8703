"""Whatever a stranger's files call things, nothing but text reaches the terminal and the card."""

from __future__ import annotations

import json
import re
import unicodedata
from pathlib import Path

import pytest
from refusals import refused as refused

from pelacli.manifest import document

EVIL = "fc\x1b[2J\x1b]0;t\x07\u202e\r\npela: error: fake\u2028<script>|x"


def codes(text: str) -> set[str]:
    kinds = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}
    return {c for c in text if c not in "\n" and unicodedata.category(c) in kinds}


@pytest.fixture
def renamed(artefact) -> Path:
    """An artefact whose manifest gives its model and its first layer names that hold codes."""
    content = json.loads((artefact / document.FILE).read_text())
    content["layers"][0]["name"] = content["source"]["model"] = EVIL
    content["layers"][0]["reason"] = content["layers"][0]["kind"] = EVIL
    content["history"][0]["metrics"]["note"] = EVIL
    content["policy"] = EVIL
    (artefact / document.FILE).write_text(json.dumps(content))
    return artefact


@pytest.mark.parametrize(
    "form", [(), ("--json",), ("--format", "csv"), ("--format", "markdown"), ("--by", "layer")]
)
def test_reports_print_text_alone(pela, renamed, form):
    code, out, err = pela("report", "a", *form)
    assert code == 0, err
    assert not codes(out + err)
    assert not any(line.startswith("pela: error") for line in (out + err).splitlines())


def test_errors_and_notes_print_text_alone(pela, renamed):
    for args in (("eval", "a"), ("decompose", "a", "--ratio", "0.4", "-o", "b"), ("report", EVIL)):
        code, out, err = pela(*args)
        assert code == 2
        assert not codes(out + err)
        assert err.count("\n") == 1


def test_the_card_holds_text_alone(renamed):
    from pelacli.artefact import card

    text = card.model_card(document.read(renamed), card.Reading())
    assert not codes(text)
    layers = text.partition("## Layers")[2]
    as_code = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)  # is shown as it is written
    assert "<script" not in as_code.sub("", layers)


def test_a_name_that_is_no_text_is_refused(refused, here, checkpoint):
    name = b"caf\xe9".decode("utf-8", "surrogateescape")
    for args in ((name, "-o", "a"), (checkpoint, "-o", name)):
        line = refused("decompose", *args, "--arch", "test_vit", "--ratio", "0.6")
        assert "caf\\udce9: is no name in UTF-8" in line


@pytest.mark.parametrize("name", ["a\x1b[31mb", "\u202ea", "a\nb", "x" * 200])
def test_a_model_of_any_name_is_decomposed(pela, here, checkpoint, name):
    folder = Path(name)
    folder.mkdir()
    (folder / "v.safetensors").write_bytes(checkpoint.read_bytes())
    model = folder / "v.safetensors"
    args = (model, "--arch", "test_vit", "--ratio", "0.6", "-o", folder / "out")
    code, out, err = pela("decompose", *args)
    assert code == 0, err
    assert not codes(out + err)
    code, out, err = pela("report", folder / "out")
    assert code == 0, err
    assert not codes(out + err)
