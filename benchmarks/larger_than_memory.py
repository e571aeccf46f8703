"""Factorise a random Llama of 1.1B parameters in bf16 with less memory than its weights take.

    python benchmarks/larger_than_memory.py FOLDER [--limit-mib 1600] [--ratio 0.8]
    python benchmarks/larger_than_memory.py FOLDER --calibrate TEXTS TOKENIZER --limit-mib 2600

FOLDER gets the checkpoint (2.2 GB, in shards of 500 MB) and the result. The command runs under
RLIMIT_DATA; what it took at most is printed, and then, by count, what larger models need.
TOKENIZER is a directory with a tokenizer of at most 32,000 tokens, whose files the checkpoint gets.
Calibrated, the weights alone would take 4.4 GB, as they are computed in float32.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn
from transformers import AutoTokenizer

from pelacli.factorize import needs
from pelacli.factorize.spectra import workspace
from pelacli.lowrank.layer import Layer

MIB = 2**20
BYTES = 2  # of a number in bf16
LENGTH, SEQUENCES = 2048, 8
# (hidden, intermediate, blocks, key-value width, vocabulary), as their config.json say
SHAPES = {
    "1.1B": (2048, 5632, 22, 256, 32000),
    "7B": (4096, 11008, 32, 4096, 32000),
    "70B": (8192, 28672, 80, 1024, 32000),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit-mib", type=int, default=1600)
    parser.add_argument("--ratio", default="0.8")
    parser.add_argument("--calibrate", nargs=2, metavar=("TEXTS", "TOKENIZER"))
    parser.add_argument("--samples", type=int, default=18)
    settings = parser.parse_args()
    model = settings.folder / "model"
    if not (model / "config.json").is_file():
        subprocess.run([sys.executable, "-c", _MAKE, str(model)], check=True)
    options: list[str] = []
    if settings.calibrate:
        texts, tokenizer = settings.calibrate
        AutoTokenizer.from_pretrained(tokenizer).save_pretrained(model)
        options = ["--calibrate", texts, "--samples", str(settings.samples)]
    size = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    start = time.perf_counter()
    code, peak = _limited(
        settings.limit_mib * MIB,
        [sys.executable, "-m", "pelacli", "decompose", str(model), "--ratio", settings.ratio,
         "-o", str(settings.folder / "small"), *options],
    )  # fmt: skip
    seconds = time.perf_counter() - start
    print(f"weights {size / MIB:,.0f} MiB, limit on data {settings.limit_mib:,} MiB, exit {code}")
    print(f"peak of anonymous memory {peak / MIB:,.0f} MiB, {seconds:,.0f} s")
    for name in SHAPES:
        print(json.dumps(counted(name)))


def _limited(limit: int, command: list[str]) -> tuple[int, int]:
    """(exit code, peak of anonymous memory, sampled, in bytes) of a command whose data may take no
    more than the limit."""
    child = subprocess.Popen(
        command, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    )
    peak = 0
    while child.poll() is None:
        try:
            lines = Path(f"/proc/{child.pid}/status").read_text().splitlines()
        except OSError:
            continue
        sizes = [int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon:")]
        peak = max(peak, *sizes, 0)
        time.sleep(0.05)
    return child.returncode, peak


def counted(name: str) -> dict[str, object]:
    """What a Llama of these shapes needs beside the interpreter, by count and not measured.

    Plain: memory for a layer's weight and its workspace, or for an embedding, which is read whole;
    on disk the result, at most as large as the weights, and the eigenvectors in float32.
    Calibrated, block by block: the embedding and the output head, one block and its sums, all in
    float32, and of 8 sequences of 2,048 tokens what a block's backward pass keeps of one and what
    its correction holds, a gigabyte or one sequence. On disk each block's states and gradients,
    sums and factors.
    """
    hidden, wide, blocks, narrow, vocabulary = SHAPES[name]
    layers = [(hidden, hidden)] * 2 + [(narrow, hidden)] * 2
    layers += [(wide, hidden)] * 2 + [(hidden, wide)]
    params = blocks * sum(out * in_ for out, in_ in layers) + 2 * vocabulary * hidden
    largest = max(BYTES * out * in_ + workspace((out, in_), False) for out, in_ in layers)
    shapes = [Layer(str(i), nn.Module(), shape, "linear") for i, shape in enumerate(layers)]
    ids = [{"input_ids": torch.zeros(1, LENGTH, dtype=torch.long)}] * SEQUENCES
    block = 4 * sum(layer.params for layer in shapes)
    needed = needs.calibrated(
        [shapes], {layer.name: LENGTH for layer in shapes}, ids,
        correct=True, vocabulary=vocabulary, block=block,
    )  # fmt: skip
    assert needed is not None
    states = 4 * SEQUENCES * LENGTH * hidden
    sums = 4 * blocks * sum(2 * min(shape) ** 2 for shape in layers)
    vectors = 4 * blocks * sum(_kept(out, in_) * min(out, in_) for out, in_ in layers)
    return {
        "model": name,
        "weights_gb": round(BYTES * params / 1e9, 1),
        "plain_memory_gb": round(max(largest, BYTES * vocabulary * hidden) / 1e9, 2),
        "plain_disk_gb": round((BYTES * params + vectors) / 1e9, 1),
        "plain_forward_passes": 1,  # of one sample, in which FLOPs are counted
        "calibrated_memory_gb": round((needed.peak + 8 * vocabulary * hidden) / 1e9, 1),
        "calibrated_disk_gb": round(
            (BYTES * params + vectors + 4 * params + sums + (blocks + 4) * states) / 1e9, 1
        ),
        "calibrated_tokens": SEQUENCES * LENGTH,
    }


def _kept(out: int, in_: int) -> int:
    """Eigenvectors that are kept of a layer: those below break-even."""
    return (out * in_ - 1) // (out + in_) + 1


_MAKE = """
import sys, torch
from transformers import LlamaConfig, LlamaForCausalLM
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
model = LlamaForCausalLM(LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
    num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048,
    tie_word_embeddings=False, dtype="bfloat16"))
model.save_pretrained(sys.argv[1], max_shard_size="500MB")
"""


if __name__ == "__main__":
    main()
