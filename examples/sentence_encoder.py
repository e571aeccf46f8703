"""Cut a sentence encoder on plain sentences, and compare its embeddings with those it gave before.

    python examples/sentence_encoder.py SENTENCES.txt --model sentence-transformers/all-MiniLM-L6-v2

SENTENCES.txt has a sentence a line. The first half is calibrated on; on the second half the old and
the new embeddings are compared.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from sentence_transformers import SentenceTransformer

import pelacli


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("sentences", type=Path, help="a text file, a sentence a line")
    parser.add_argument("--model", default="sentence-transformers/all-MiniLM-L6-v2")
    parser.add_argument("--ratio", default="0.8", help="parameters of the layers, after / before")
    parser.add_argument("--samples", type=int, default=512, help="sentences to calibrate on")
    parser.add_argument("--output", default="smaller-encoder")
    args = parser.parse_args(argv)

    # 1. The encoder. Its first module is the transformer, which holds the layers.
    encoder = SentenceTransformer(args.model, device="cpu")
    transformer = encoder[0].auto_model
    lines = args.sentences.read_text(encoding="utf-8").splitlines()
    half = len(lines) // 2
    known, unseen = lines[:half][: args.samples], lines[half:]

    # 2. What it says of sentences that are not calibrated on.
    before = encoder.encode(unseen, convert_to_tensor=True)

    # 3. Batches of tokens, as the transformer takes them; no labels.
    parts = [known[i : i + 32] for i in range(0, len(known), 32)]
    batches = [encoder.tokenizer(part, padding=True, truncation=True, return_tensors="pt")
               for part in parts]  # fmt: skip

    # 4. Cut the transformer inside the encoder, in place.
    plan = pelacli.decompose(
        transformer, ratio=args.ratio, scope="layers", batches=[dict(batch) for batch in batches]
    )
    print(plan)

    # 5. How far the embeddings have moved, and how alike the similarities are.
    after = encoder.encode(unseen, convert_to_tensor=True)
    cosine = torch.cosine_similarity(before, after).mean()
    print(f"mean cosine to the dense embeddings: {cosine:.4f}")
    print(f"rank correlation of all similarities: {100 * spearman(before, after):.2f}")

    # 6. Keep it, with tokenizer and pooling. After `import pelacli` it opens like any other.
    encoder.save_pretrained(args.output)
    again = SentenceTransformer(args.output, device="cpu").encode(unseen, convert_to_tensor=True)
    assert torch.allclose(again, after, atol=1e-5)
    print(f"written to {args.output}")


def spearman(first: torch.Tensor, second: torch.Tensor) -> float:
    """Rank correlation of the cosines of all pairs, in two sets of embeddings."""
    pairs = torch.triu_indices(len(first), len(first), offset=1)
    ranks = []
    for vectors in (first, second):
        vectors = torch.nn.functional.normalize(vectors, dim=-1)
        cosines = (vectors @ vectors.T)[pairs[0], pairs[1]]
        ranks.append(cosines.argsort().argsort().double())
    return float(torch.corrcoef(torch.stack(ranks))[0, 1])


if __name__ == "__main__":
    main()
