"""Files that are not TOML are refused in one line, and a key is found by its line."""

from __future__ import annotations

import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe_text import TOP, refused

from pelacli.errors import RequestError
from pelacli.recipe.reading import load


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("\nmodel = vit\n", "2: not valid TOML: invalid value; text and fractions need quotes"),
        (
            TOP + "[decompose]\nratio = 2/3\n",
            "4: not valid TOML: expected newline or end of document after a statement; "
            "text and fractions need quotes",
        ),
        (TOP + "\nmodel = 'b'\n\n[data]\n", "4: not valid TOML: this key is there already"),
        ("a = 1\nb = [\n1,\n", "3: not valid TOML: invalid value"),
        ("\x00\x01\x02", "1: not valid TOML: invalid statement"),
    ],
)
def test_a_syntax_error_is_named_by_its_line(text: str, line: str) -> None:
    assert refused(text) == f"x.toml:{line}"


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\x89PNG\r\n\x1a\n\x00\xff", "x.toml: not a text file; a recipe is TOML in UTF-8"),
        (b"a = " + b"9" * 5000, "x.toml: not valid TOML: a number is too long or a list too deep"),
        (b"a = " + b"[" * 9000, "x.toml: not valid TOML: a number is too long or a list too deep"),
    ],
)
def test_a_file_that_is_no_toml_is_refused(content: bytes, line: str) -> None:
    Path("x.toml").write_bytes(content)
    with pytest.raises(RequestError) as caught:
        load("x.toml")
    assert str(caught.value) == line


def test_no_file_a_directory_and_an_unreadable_file_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(RequestError) as caught:
        load("none.toml")
    line = "none.toml: there is no such recipe; `pela recipes list` shows some"
    assert str(caught.value) == line
    with pytest.raises(RequestError) as caught:
        load(".")
    assert str(caught.value) == ".: is a directory; name the recipe file in it"

    def denied(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", denied)
    with pytest.raises(RequestError) as caught:
        load("x.toml")
    assert str(caught.value) == "x.toml: can't be read: Permission denied"


def test_an_item_of_a_list_over_several_lines_has_its_own_line() -> None:
    text = TOP + "[decompose]\nexclude = [ # a\n  'a',\n\n  '(',\n  'b',\n]\nmin_rank = -1\n"
    assert refused(text).startswith("x.toml:7: decompose.exclude[1]: '(' is no")
    good = text.replace("'('", "'c'")
    assert refused(good).startswith("x.toml:10: decompose.min_rank: -1 is")


def test_a_key_begins_where_its_list_begins() -> None:
    text = TOP + "[decompose]\n\n# ranks\nmin_rank = [\n  1,\n]\nmax_rank = 2\n"
    assert refused(text).startswith("x.toml:6: decompose.min_rank: expected a whole number")


def test_what_looks_like_a_key_inside_a_long_text_is_none() -> None:
    text = 'output = "o"\ntask = """\n[data]\nseed = "a"\n"""\nmodel = "m"\nseed = -1\n'
    assert refused(text) == "x.toml:7: seed: -1 is out of range; at least 0"


def test_a_key_begins_where_its_long_text_begins() -> None:
    text = TOP + "\nseed = '''\n1\n2\n'''\ntask = 'a'\n"
    assert refused(text).startswith("x.toml:4: seed: expected a whole number, not the text")


@pytest.mark.parametrize(
    "value",
    [
        '"""\n"a""""', "\'\'\'\n\'a\'\'\'\'", '"a[\\""', "'['", '"""\n\\"""\n"""', '[ # [\n "]" ]',
        "{ a = ['{'] }",
        '""""""', "''", "[[1,\n2],\n[3]]",
    ],
)  # fmt: skip
def test_brackets_in_texts_and_comments_are_none(value: str) -> None:
    text = f"# [ {{\n{TOP}task_args.x = {value}\n[data] # ]\n\nbad_key = 1\n"
    place = text.split("bad_key")[0].count("\n") + 1
    assert f"x.toml:{place}: data.bad_key: " in refused(text)


@pytest.mark.parametrize("value", ["[\n{}]", '"""\n{}"""'])
def test_a_mistake_in_a_long_file_is_found_soon(value: str) -> None:
    long = value.format("1,\n" * 3000)
    began = time.process_time()
    assert refused(f"{TOP}task_args.x = {long}\nbad_key = 1\n").startswith("x.toml:300")
    assert time.process_time() - began < 5.0  # a list of 3,000 lines took more than a minute


def test_unicode_separators_do_not_end_a_line() -> None:
    text = TOP + "# a\u2028b\u0085c\n\nseed = -1\n"
    assert refused(text) == "x.toml:5: seed: -1 is out of range; at least 0"


CHUNKS = [
    "# a comment with key = 1 and [section]",
    "",
    "[data]\ndataset = 'digits'\naugment.mixup = 0.5",
    "[decompose]\nexclude = [\n  'a', # one\n  'b]',\n]\npin = { 'a.b' = 3 }",
    "[pretrain]\ntaps = ['x',\n'y']",
    "[pretrain.loss]\ntask = 0.5",
    "[finetune]\nopt = '''\nbad_key = 1\n'''",
    "[eval]",
]


@given(st.permutations(CHUNKS), st.data())
def test_a_key_is_found_wherever_its_section_stands(
    chunks: list[str], choice: st.DataObject
) -> None:
    n = choice.draw(st.sampled_from([i for i, c in enumerate(chunks) if c.startswith("[")]))
    chunks = [TOP.rstrip(), *chunks[:n], chunks[n] + "\nbad_key = 1", *chunks[n + 1 :]]
    text = "\n".join(chunks)
    place = len("\n".join(chunks[: n + 2]).split("\n"))  # it is the last line of its chunk
    assert refused(text).startswith(f"x.toml:{place}: {chunks[n + 1][1:].split(']')[0]}.bad_key: ")


def test_a_long_file_is_searched_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    text = TOP + "[decompose.pin]\n" + "".join(f"'layer{n}' = 3\n" for n in range(500)) + "b = -1\n"
    calls = 0
    parse = tomllib.loads

    def counted(text: str) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        return parse(text)

    monkeypatch.setattr(tomllib, "loads", counted)
    assert refused(text).startswith("x.toml:504: decompose.pin.b: -1 is no rank")
    assert calls < 30
