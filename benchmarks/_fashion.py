"""Fashion-MNIST as the folders of images that pela reads, from the idx files of its package."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
from _subjects import idx
from numpy.typing import NDArray
from PIL import Image

FASHION = Path("/usr/share/datasets/fashion-mnist")  # of Debian's dataset-fashion-mnist
VALIDATION = 500  # images that training is watched on; rates are chosen by them, never by the test


def folders(source: Path, target: Path, *, train: int, tests: int) -> Path:
    """Write ``train/``, ``validation/`` and ``test/`` with a folder per class, unless they are.

    Training images are the first of the shuffled training set, validation images the last; the
    tests are drawn from the test set. The shuffles are those of `_subjects.idx_images`, so that its
    probe is tested on the same images.

    Returns:
        The folder; its name tells how many images it holds, so that other numbers get another.
    """
    whole = target / f"fashion-{train}-{tests}"
    if whole.is_dir():
        return whole
    part = whole.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    images, labels = idx(source, "train")
    order = np.random.default_rng(0).permutation(len(images))
    held_out = min(VALIDATION, len(images) // 5)
    _write(part / "train", images, labels, order[:-held_out][:train])
    _write(part / "validation", images, labels, order[-held_out:])
    images, labels = idx(source, "t10k")
    _write(part / "test", images, labels, np.random.default_rng(1).permutation(len(images))[:tests])
    part.rename(whole)
    return whole


def _write(
    folder: Path, images: NDArray[np.uint8], labels: NDArray[np.uint8], chosen: NDArray[np.int64]
) -> None:
    for name in np.unique(labels):
        (folder / str(name)).mkdir(parents=True, exist_ok=True)
    for i in chosen:
        Image.fromarray(images[i]).save(folder / str(labels[i]) / f"{i}.png")


def tiny(folder: Path) -> Path:
    """scikit-learn's digits as such idx files: for a quick run, with no package at hand."""
    import gzip

    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.pad(np.kron(digits.images, np.ones((3, 3))), ((0, 0), (2, 2), (2, 2)))
    images = (pixels * (255 / 16)).astype(np.uint8)
    for split, some in (("train", slice(0, 1200)), ("t10k", slice(1200, 1400))):
        for kind, header, values in (
            ("images-idx3", 16, images[some]),
            ("labels-idx1", 8, digits.target[some].astype(np.uint8)),
        ):
            content = gzip.compress(bytes(header) + values.tobytes(), 1)
            (folder / f"{split}-{kind}-ubyte.gz").write_bytes(content)
    return folder
