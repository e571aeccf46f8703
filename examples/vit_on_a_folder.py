"""Cut an image classifier on a folder of images, and measure what is left of it.

    python examples/vit_on_a_folder.py IMAGES --model vit_base_patch16_224 --ratio 0.5

IMAGES holds a folder per class, in the order of the model's classes: a part of ImageNet's
validation set, or images of your own for a model that was fine-tuned on them. Half of them are
calibrated on, without their labels; the other half is judged.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import timm
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder

import pelacli


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("images", help="a folder with a folder per class")
    parser.add_argument("--model", default="vit_base_patch16_224", help="timm's name")
    parser.add_argument("--random", action="store_true", help="random weights, to try it offline")
    parser.add_argument("--ratio", default="0.5", help="parameters after / before")
    parser.add_argument("--samples", type=int, default=256, help="images to calibrate on")
    parser.add_argument("--output", default="smaller")
    args = parser.parse_args(argv)

    # 1. The model, and images as it wants them.
    model = timm.create_model(args.model, pretrained=not args.random).eval()
    transform = create_transform(**resolve_model_data_config(model))
    images = ImageFolder(args.images, transform)
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0)).tolist()
    half = len(order) // 2
    known = DataLoader(Subset(images, order[:half][: args.samples]), batch_size=32)
    unseen = DataLoader(Subset(images, order[half:]), batch_size=32)

    # 2. What the dense model answers.
    before, labels = answers(model, unseen)

    # 3. Cut it, in place. The labels that the loader gives are left out.
    plan = pelacli.decompose(model, ratio=args.ratio, batches=known)
    print(plan)

    # 4. What is left.
    after, _ = answers(model, unseen)
    print(f"accuracy {percent(before == labels)} → {percent(after == labels)}")
    print(f"same class as the dense model: {percent(before == after)}")

    # 5. Keep it. `pela report` shows it, `pela pretrain` heals it.
    pelacli.save(model, args.output)
    again = pelacli.load(args.output)
    assert torch.equal(answers(again.eval(), unseen)[0], after)
    print(f"written to {args.output}")


@torch.no_grad()
def answers(model: nn.Module, images: DataLoader) -> tuple[torch.Tensor, torch.Tensor]:
    """(the class that the model gives each image, the image's own)."""
    pairs = [(model(batch).argmax(-1), labels) for batch, labels in images]
    classes, labels = zip(*pairs, strict=True)
    return torch.cat(classes), torch.cat(labels)


def percent(right: torch.Tensor) -> str:
    return f"{100 * right.double().mean():.1f} %"


if __name__ == "__main__":
    main()
