"""Cut a causal language model on plain text, and compare the perplexities.

    python examples/language_model.py TEXT.txt --model HuggingFaceTB/SmolLM2-135M --ratio 0.8

The first half of TEXT.txt is calibrated on, block by block; the second half is judged. Some 65,000
tokens or more to calibrate on are well spent: see docs/language-models.md.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import pelacli


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("text", type=Path, help="a text file")
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M")
    parser.add_argument("--ratio", default="0.8", help="parameters of the whole model")
    parser.add_argument("--block", type=int, default=512, help="tokens of a sample")
    parser.add_argument("--samples", type=int, default=128, help="blocks to calibrate on")
    parser.add_argument("--output", default="smaller-lm")
    args = parser.parse_args(argv)

    # 1. The model, and the text in blocks of tokens.
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    ids = tokenizer(args.text.read_text(encoding="utf-8"), return_tensors="pt").input_ids[0]
    blocks = ids[: len(ids) // args.block * args.block].view(-1, args.block)
    half = len(blocks) // 2
    known, unseen = blocks[:half][: args.samples], blocks[half:]

    # 2. The dense model's perplexity on the second half.
    print(f"dense: perplexity {perplexity(model, unseen):.2f}")

    # 3. Cut it, in place. No labels: the model draws its own next tokens.
    batches = [{"input_ids": part} for part in known.split(2)]
    plan = pelacli.decompose(model, ratio=args.ratio, batches=batches)
    print(plan)
    after = perplexity(model, unseen)
    print(f"cut: perplexity {after:.2f}")

    # 4. Keep it. After `import pelacli` transformers opens it like any other model.
    model.save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    again = AutoModelForCausalLM.from_pretrained(args.output, dtype=torch.float32).eval()
    assert math.isclose(perplexity(again, unseen), after, rel_tol=1e-4)

    # 5. And it writes.
    written = again.generate(unseen[:1, :8], max_new_tokens=16, do_sample=False)
    print(tokenizer.decode(written[0]))
    print(f"written to {args.output}")


@torch.no_grad()
def perplexity(model: nn.Module, blocks: torch.Tensor) -> float:
    losses = [model(input_ids=block[None], labels=block[None]).loss for block in blocks]
    return math.exp(torch.stack(losses).double().mean())


if __name__ == "__main__":
    main()
