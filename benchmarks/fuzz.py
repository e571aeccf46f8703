"""Readers of strangers' files, driven by coverage with atheris.

    pip install atheris
    python benchmarks/fuzz.py recipe -runs=100000

The first argument is recipe, plan, manifest, header (of safetensors), index (of shards) or spectra;
the others are libFuzzer's. Half of the changes are libFuzzer's own, half those of `hostile.py`,
which keep JSON whole. Each input is written to a file and read by pela. It has to be accepted, or
refused by a `RequestError` of one line of at most 1,000 characters, within ten seconds. Else the
run ends, and leaves the input as ``crash-…`` or ``timeout-…``; ``python benchmarks/fuzz.py recipe
crash-…`` reads it again.
"""

from __future__ import annotations

import json
import os
import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import _hostile_damage as damage
import atheris
import numpy as np

os.environ["HF_HUB_OFFLINE"] = "1"
with atheris.instrument_imports(include=["pelacli"]):
    from pelacli.errors import RequestError
    from pelacli.manifest import document
    from pelacli.models import plain_reading, weight_files
    from pelacli.models.hf import weight_choice
    from pelacli.planning import stored
    from pelacli.ranks import plan_file
    from pelacli.ranks.spectrum import Spectrum
    from pelacli.recipe import reading

LONGEST = 1000  # characters of a refusal
LIMITS = ("-max_len=20000", "-timeout=10", "-rss_limit_mb=4096")


def header(file: Path) -> None:
    """All that is read of a file of weights before its values."""
    weight_files.shapes(file)
    weight_files.types(file)
    plain_reading.bytes_in_float32(file)


def manifest(file: Path) -> None:
    document.read(file.parent)
    document.is_as_written(file.parent)


def index(file: Path) -> None:
    weight_choice.files_of(file.parent, None)


# What is read → (the file's name, its reader).
READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "recipe": ("r.toml", reading.load),
    "plan": ("plan.json", plan_file.read),
    "manifest": ("pela.json", manifest),
    "header": ("model.safetensors", header),
    "index": ("model.safetensors.index.json", index),
    "spectra": ("spectra.safetensors", stored.load),
}


def examples(kind: str) -> list[bytes]:
    """Whole files to begin with."""
    layer = {"name": "a", "shape": [4, 4], "kind": "linear", "rank": 2, "form": "factors",
             "energy": 0.9, "params": {"before": 16, "after": 8}}  # fmt: skip
    source = {"model": "m", "library": "timm", "licence": {"license": "mit"}}
    step = {"step": "decompose", "recipe": {"model": "m"}, "seed": 1, "versions": {"torch": "2"}}
    record = {"format": 1, "pela": "0.1", "source": source, "library": "timm", "layers": [layer],
              "params": {"before": 16, "after": 8}, "tied": {"b": "a"}, "history": [step],
              "files": {"config.json": {"size": 3, "sha256": "x"}}, "digest": "x"}  # fmt: skip
    tensors = {
        "__metadata__": {"format": "pt"},
        "a": {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16]},
        "b": {"dtype": "I64", "shape": [], "data_offsets": [16, 24]},
    }
    plan = {"policy": "energy", "ratio": "1/2", "unit": "params", "limit": 9, "energy": 0.5}
    recipe = Path(__file__).parents[1] / "recipes" / "quickstart.toml"
    found = {
        "recipe": [recipe.read_bytes()],
        "plan": [json.dumps(plan | {"layers": layers}).encode() for layers in ([layer], {"a": {
            "shape": [4, 4], "rank": None, "reason": "why"}})],
        "manifest": [json.dumps(record).encode()],
        "header": [_safetensors(tensors, bytes(24))],
        "index": [b'{"metadata": {"total_size": 3}, "weight_map": {"a": "a.safetensors"}}'],
        "spectra": [stored.dumps(_spectra(record))],
    }  # fmt: skip
    return found[kind]


def _spectra(record: dict[str, object]) -> stored.Spectra:
    about = stored.About(
        dense=document.Manifest.model_validate(record), inputs="x", tokens={"a": 9.0},
        fixed_params=1, fixed_flops=1, obstacles={}, samples=1, section={"ratio": "1/2"},
    )  # fmt: skip
    energies = np.array([4.0, 3.0, 2.0, 1.0])
    return stored.Spectra([Spectrum("a", (4, 4), energies, 9.0)], about)


def _safetensors(header: dict[str, object], body: bytes) -> bytes:
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + body


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else ""
    if kind not in READERS:
        raise SystemExit(f"name one of {', '.join(READERS)}")
    name, read = READERS[kind]
    with tempfile.TemporaryDirectory(prefix="pela-fuzz-") as folder:
        root = Path(folder)
        file, corpus, scratch = root / "case" / name, root / "corpus", root / name
        file.parent.mkdir()
        corpus.mkdir()
        for number, example in enumerate(examples(kind)):
            (corpus / str(number)).write_bytes(example)

        def test_one(data: bytes) -> None:
            file.write_bytes(data)
            try:
                read(file)
            except RequestError as error:
                said = str(error)
                assert len(said) <= LONGEST, said
                assert "\n" not in said, said

        def mutated(data: bytes, longest: int, seed: int) -> bytes:
            chance = random.Random(seed)
            if chance.random() < 0.5:
                return bytes(atheris.Mutate(data, longest))
            scratch.write_bytes(data)
            try:
                chance.choice(ways)(chance, scratch)
            except Exception:  # it is no JSON any more, or too deep
                return bytes(atheris.Mutate(data, longest))
            return scratch.read_bytes()[:longest]

        ways = [way for way in damage.damages(scratch) if way is not damage.kind_changed]
        names = [one for one in sys.argv[2:] if not one.startswith("-")]
        arguments = [sys.argv[0], *LIMITS, *sys.argv[2:], *([] if names else [str(corpus)])]
        atheris.Setup(arguments, test_one, custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
