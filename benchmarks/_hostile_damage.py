"""Ways to damage a file, drawn by a seeded chance."""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

_MANY = 10**9
VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 10**30, -(2**63), 2**64, _MANY, 20_000, 1.5, 1e308, 1e-320,
    float("nan"), float("inf"), -float("inf"), "x", "", " ", "3", "1e999", "nan", [], {}, [1],
    [None], {"a": None}, [[1, 2], [3]], [0] * 50, "\0", "../../etc/passwd", "/etc/passwd",
    "../outside.safetensors", "y" * 10_000, "\x1b[2J\x1b]0;x\x07", "\u202e", "\ud800",
    "a\nb\rpela: error: x", "{{ 7 * 7 }}", "evil.py", "somebody/evil", "torch.nn.Module",
    "os.system", "F8_E4M3", "I64", "pickle", "😀" * 300,
]  # fmt: skip
KEYS: dict[str, Any] = {
    "auto_map": {"AutoConfig": "evil.C", "AutoModel": "evil.M", "AutoTokenizer": ["evil.T", None]},
    "attn_implementation": "somebody/kernel", "transformers_weights": "../outside.safetensors",
    "custom_pipelines": {"x": {"impl": "evil.P"}}, "trust_remote_code": True,
    "pretrained_cfg": {"file": "/etc/passwd", "url": "http://localhost:1/x"},
    "quantization_config": {"quant_method": "evil"}, "__class__": "x", "checkpoint_path": "x.pth",
    "tokenizer_class": "Evil", "image_processor_type": "Evil", "model_type": "evil",
    "architectures": ["Evil"], "_name_or_path": "../outside", "dtype": "evil", "format": 99,
}  # fmt: skip
EVIL = "open('EXECUTED', 'w').close()\n"

Damage = Callable[[random.Random, Path], None]


def bytes_changed(chance: random.Random, file: Path) -> None:
    """Bits, cuts, insertions, and ranges that are zero, doubled or random."""
    raw = bytearray(file.read_bytes())
    at = chance.randrange(len(raw) + 1)
    end = min(len(raw), at + chance.choice([1, 2, 8, 64, len(raw)]))
    kind = chance.choice(
        ("flip", "flip", "cut", "zero", "noise", "double", "insert", "drop", "none")
    )
    if kind == "flip":
        for _ in range(chance.choice((1, 1, 1, 8))):
            if raw:
                raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    elif kind == "cut":
        del raw[at:]
    elif kind == "zero":
        raw[at:end] = bytes(end - at)
    elif kind == "noise":
        raw[at:end] = chance.randbytes(end - at)
    elif kind == "double":
        raw[at:at] = raw[at:end]
    elif kind == "insert":
        raw[at:at] = chance.choice(
            (b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xed\xa0\x80", b'"', b"{")
        )
    elif kind == "drop":
        del raw[at:end]
    else:
        raw = bytearray()
    file.write_bytes(raw)


def text_changed(chance: random.Random, file: Path) -> None:
    """Other encodings, other documents, depth, and one value of a line replaced."""
    text = file.read_bytes().decode("utf-8", "replace")
    kind = chance.choice(("encoding", "other", "deep", "value", "value", "line", "line"))
    if kind == "encoding":
        file.write_bytes(text.encode(chance.choice(("utf-16", "utf-32", "utf-7", "cp037"))))
    elif kind == "other":
        whole = ("[]", "3", "null", "{}", "NaN", '"x"', "<html>", " \n", "9" * 6000, "[[[]]]")
        file.write_text(chance.choice(whole))
    elif kind == "deep":
        depth = chance.choice((300, 900, 100_000))
        file.write_text(chance.choice(("[" * depth, '{"a":' * depth, "[" * depth + "]" * depth)))
    else:
        lines = text.splitlines() or [""]
        at = chance.randrange(len(lines))
        head, _, _ = lines[at].partition("=" if "=" in lines[at] else ",")
        new = json.dumps(chance.choice(VALUES))
        lines[at] = f"{head}= {new}" if kind == "value" else chance.choice((lines[at - 1], "", new))
        file.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))


def json_changed(chance: random.Random, file: Path) -> None:
    """A value of a JSON document replaced, left out, added or given twice."""
    try:
        document = json.loads(file.read_bytes())
    except ValueError:
        return bytes_changed(chance, file)
    file.write_bytes(_written(chance, _changed(chance, document)))
    return None


def header_changed(chance: random.Random, file: Path) -> None:
    """The header of a safetensors file changed as JSON, or its length, or a whole tensor."""
    raw = file.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header, body = raw[8 : 8 + length], raw[8 + length :]
    kind = chance.choice(("json", "json", "json", "length", "body"))
    if kind == "length":
        length = chance.choice((0, 1, length - 1, length + 1, 2**31, 2**63, 2**64 - 1, len(raw)))
        file.write_bytes(length.to_bytes(8, "little") + raw[8:])
        return
    if kind == "body":
        value = chance.choice((b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\1\0\0\0"))
        start = 4 * chance.randrange(max(len(body) // 4, 1))
        count = chance.choice((1, 4, (len(body) - start) // 4))
        body = body[:start] + value * count + body[start + 4 * count :]
    else:
        header = _written(chance, _changed(chance, json.loads(header)))
        header += b" " * (-len(header) % 8)
    file.write_bytes(len(header).to_bytes(8, "little") + header + body)


def case_of(file: Path) -> Path:
    """The folder of the input that a file belongs to."""
    return next(folder for folder in file.parents if folder.name == "case")


def kind_changed(chance: random.Random, file: Path) -> None:
    """Something else than a file in its place, such as a link that leads out, or nothing."""
    raw = file.read_bytes()
    file.unlink()
    kind = chance.choice(("out", "nothing", "circle", "pipe", "folder", "gone", "zero", "inside"))
    if kind == "out":
        outside = case_of(file).with_name("outside")
        outside.mkdir(exist_ok=True)
        (outside / file.name).write_bytes(raw)
        file.symlink_to(outside / file.name)
    elif kind == "nothing":
        file.symlink_to("nothing")
    elif kind == "circle":
        file.symlink_to(file.name)
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "zero":
        file.symlink_to("/dev/zero")
    elif kind == "inside":
        (file.parent / "blob").write_bytes(raw)
        file.symlink_to("blob")


def damages(file: Path) -> list[Damage]:
    """The ways to damage a file of this ending, the likelier ones more often."""
    ways: list[Damage] = [bytes_changed, bytes_changed, kind_changed]
    if file.suffix == ".safetensors":
        return [*ways, header_changed, header_changed, header_changed]
    if file.suffix == ".json":
        return [*ways, text_changed, *[json_changed] * 6]
    if file.suffix in (".toml", ".csv", ".jsonl", ".txt"):
        return [*ways, text_changed, text_changed, text_changed]
    return ways


def _changed(chance: random.Random, document: Any) -> Any:
    document = copy.deepcopy(document)
    for _ in range(chance.choice((1, 1, 1, 2, 5))):
        spots = list(_spots(document))
        if not spots or chance.random() < 0.1:
            if isinstance(document, dict):
                key = chance.choice(list(KEYS))
                document[key] = copy.deepcopy(KEYS[key])
            continue
        owner, key = chance.choice(spots)
        if chance.random() < 0.2:
            del owner[key]
        elif chance.random() < 0.2 and isinstance(owner, dict):
            owner[chance.choice(("x" * 5000, "\x1b[31m", "", "\ud800", "a\nb"))] = owner.pop(key)
        else:
            owner[key] = copy.deepcopy(chance.choice(VALUES))
    return document


def _spots(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each part of a document, as its owner and its key."""
    pairs = list(value.items()) if isinstance(value, dict) else []
    pairs = list(enumerate(value)) if isinstance(value, list) else pairs
    for key, part in pairs:
        yield value, key
        yield from _spots(part)


def _written(chance: random.Random, document: Any) -> bytes:
    text = json.dumps(document, ensure_ascii=chance.random() < 0.5)
    if chance.random() < 0.05 and text.startswith("{") and len(text) > 2:  # a key twice
        text = "{" + text[1:-1] + ", " + text[1:]
    return text.encode("utf-8", "surrogatepass")
