"""What `rank_policies.py` measures: a model, its samples, how good a compressed one still is."""

from __future__ import annotations

import gzip
import hashlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pelacli.data import dataset as data_dataset
from pelacli.data.dataset import Dataset
from pelacli.data.loader import loader
from pelacli.factorize.batches import cut
from pelacli.lowrank.replace import Parts, replaced
from pelacli.measure.held_back import HeldBack
from pelacli.models import heads
from pelacli.models import inputs as models_inputs
from pelacli.models.opened import OpenModel
from pelacli.models.prediction import predict
from pelacli.models.token_head import TokenHead, token_head

BATCH = 50
PROBE_IMAGES = 4000


@dataclass
class Subject:
    """A dense model with a test.

    Attributes:
        calibration: (samples, seed) → batches that are in no test and in no probe's training set.
        score: outputs of the test samples → figures; ``metric`` is in points.
        dense: the dense model's outputs of the test samples, [n, D].
    """

    opened: OpenModel
    metric: str
    calibration: Callable[[int, int], list[Any]]
    test: list[Any]
    score: Callable[[Tensor], dict[str, float]]
    dense: Tensor

    head: None = None

    @property
    def dense_metric(self) -> float:
        return self.score(self.dense)["metric"]

    @property
    def tests(self) -> int:
        return len(self.dense)

    def measure(self, factors: Mapping[str, Parts]) -> dict[str, float]:
        """The figures of the model with these factors."""
        with replaced(self.opened.module, factors):
            return self.measure_module(self.opened.module)

    def measure_module(self, module: nn.Module) -> dict[str, float]:
        """The figures of a module: those of ``score``, and the relative error of its outputs."""
        ours = outputs(module, self.test)
        error = (ours - self.dense).square().sum()
        spread = (self.dense - self.dense.mean(0)).square().sum()
        cosine = F.cosine_similarity(ours, self.dense, dim=-1).mean()
        return {
            **self.score(ours),
            "error": float(error / spread),
            "cosine": 100 * float(cosine),
        }


@torch.no_grad()
def outputs(module: nn.Module, batches: Sequence[Any]) -> Tensor:
    """The main output of all samples, [n, D]."""
    return torch.cat([predict(module, batch).flatten(1).float() for batch in batches])


def idx_images(
    opened: OpenModel, folder: Path, *, tests: int, dev: bool, cache: Path, size: int | None
) -> Subject:
    """A headless image model with a linear probe of its features on idx files (Fashion-MNIST).

    The probe is fitted once on the dense features and left alone: multinomial logistic regression
    with L2 (C = 0.05, lbfgs) on standardised features of the first of the shuffled training images.
    Calibration samples come from the last 30,000 of them, ``dev`` tests from those between.
    """
    from sklearn.linear_model import LogisticRegression

    inputs = opened.inputs
    assert isinstance(inputs, models_inputs.ImageInput)
    side = size or inputs.size[-1]
    train, labels = idx(folder, "train")
    held_out = (train, labels) if dev else idx(folder, "t10k")
    order = np.random.default_rng(0).permutation(len(train))
    place = order[20000:] if dev else np.random.default_rng(1).permutation(len(held_out[0]))
    place = place[:tests]

    def images(pixels: NDArray[np.uint8], where: NDArray[np.int64]) -> list[Tensor]:
        x = torch.from_numpy(pixels[where]).float()[:, None] / 255
        x = F.interpolate(x, size=(side, side), mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(v)[:, None, None] for v in (inputs.mean, inputs.std))
        return list(torch.split((x.expand(-1, 3, -1, -1) - mean) / std, BATCH))

    def features(what: str, batches: list[Tensor]) -> Tensor:
        key = hashlib.sha256(f"{opened.source.digest} {side} {what} {len(batches)}".encode())
        file = cache / f"features-{key.hexdigest()[:16]}.npy"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            np.save(file, outputs(opened.module, batches).numpy())
        return torch.from_numpy(np.load(file))

    test = images(held_out[0], place)
    seen = features("train", images(train, order[:PROBE_IMAGES]))
    dense = features("dev" if dev else "test", test)
    mean, std = seen.mean(0), seen.std(0)
    probe = LogisticRegression(C=0.05, max_iter=1000)
    probe.fit(((seen - mean) / std).numpy(), labels[order[:PROBE_IMAGES]])
    weight, bias = (torch.tensor(v).float() for v in (probe.coef_, probe.intercept_))
    wanted = torch.from_numpy(held_out[1][place].astype(np.int64))
    reference = F.linear((dense - mean) / std, weight, bias)

    def score(found: Tensor) -> dict[str, float]:
        logits = F.linear((found - mean) / std, weight, bias)
        kl = F.kl_div(logits.log_softmax(1), reference.softmax(1), reduction="batchmean")
        right = (logits.argmax(1) == wanted).float().mean()
        return {"metric": 100 * float(right), "kl": float(kl)}

    def calibration(samples: int, seed: int) -> list[Any]:
        chosen = np.random.default_rng(100 + seed).permutation(30000)[:samples]
        x = torch.cat(images(train, order[30000:][chosen]))
        return list(torch.split(x, 32))

    return Subject(opened, "probe accuracy %", calibration, list(test), score, dense)


def subject_of(
    opened: OpenModel,
    *,
    data: str | None,
    fashion: Path,
    tests: int,
    size: int | None,
    cache: Path,
    dev: bool = False,
) -> Subject:
    """A model with the test that its inputs are for, or on a dataset of its own.

    Args:
        data: the dataset, as for ``pela eval``; None: sentences, or Fashion-MNIST.
        fashion: folder of the idx files.
        cache: folder of dense features.
    """
    if data is not None:
        return dataset(opened, data, tests=tests, size=size)
    if isinstance(opened.inputs, models_inputs.TextInput):
        return sentences(opened, tests=tests)
    return idx_images(opened, fashion, tests=tests, dev=dev, cache=cache, size=size)


@dataclass
class Texts:
    """A causal language model with a test: its perplexity on unseen texts.

    The texts of a file, one a line, are joined by the tokenizer's end of text and cut into blocks.
    ``metric`` is the perplexity with its sign turned, so that a drop is what it grows by.
    """

    opened: OpenModel
    fit: Path
    test: Path
    block: int
    tests: int
    head: TokenHead
    metric: str = "perplexity, negative"

    @classmethod
    def of(cls, opened: OpenModel, fit: Path, test: Path, block: int, tests: int) -> Texts:
        some = {"input_ids": torch.arange(8)[None]}
        head = token_head(opened.module, some)
        if head is None:
            raise SystemExit(f"{opened.ref}: is no causal language model")
        return cls(opened, fit, test, block, tests, head)

    def calibration(self, tokens: int, seed: int) -> list[Any]:
        """Batches of as many tokens, of blocks that the seed chooses."""
        blocks = self._blocks(self.fit)
        order = np.random.default_rng(100 + seed).permutation(len(blocks))
        chosen = blocks[torch.from_numpy(order[: tokens // self.block])]
        mask = torch.ones_like(chosen)
        return cut([{"input_ids": chosen, "attention_mask": mask}])

    @cached_property
    def held_back(self) -> HeldBack:
        """The test's tokens."""
        blocks = self._blocks(self.test)[: self.tests // self.block]
        batches = cut([{"input_ids": blocks, "attention_mask": torch.ones_like(blocks)}])
        return HeldBack(self.opened.module, batches, predict, self.head, causal=True)

    @property
    def dense_metric(self) -> float:
        perplexity = self.held_back.distance({}).perplexity
        assert perplexity is not None
        return -perplexity

    def measure(self, factors: Mapping[str, Parts]) -> dict[str, float]:
        """The figures of the model with these factors."""
        distance = self.held_back.distance(factors)
        assert distance.perplexity is not None
        assert distance.kl is not None
        return {
            "metric": -distance.perplexity,
            "kl": distance.kl,
            "error": distance.relative_error,
        }

    def _blocks(self, file: Path) -> Tensor:
        inputs = self.opened.inputs
        assert isinstance(inputs, models_inputs.TextInput)
        end = inputs.tokenizer.eos_token_id
        ids: list[int] = []
        for line in file.read_text(encoding="utf-8").splitlines():
            ids += [*inputs.tokenizer(line, add_special_tokens=False)["input_ids"], end]
        count = len(ids) // self.block
        return torch.tensor(ids[: count * self.block]).view(count, self.block)


def sentences(opened: OpenModel, *, tests: int) -> Subject:
    """A sentence encoder on real English: what scikit-learn says about its parts."""
    lines = scikit_sentences()
    tests = min(tests, 500)
    order = np.random.default_rng(0).permutation(len(lines))
    test = _tokenised(opened, [lines[i] for i in order[:tests]])
    rest = [lines[i] for i in order[tests:]]

    def calibration(samples: int, seed: int) -> list[Any]:
        chosen = np.random.default_rng(100 + seed).permutation(len(rest))[:samples]
        return _tokenised(opened, [rest[i] for i in chosen])

    dense = outputs(opened.module, test)
    return Subject(opened, "Spearman of pairs", calibration, test, _spearman(dense), dense)


def dataset(opened: OpenModel, spec: str, *, tests: int, size: int | None) -> Subject:
    """Any model on any dataset: its own accuracy where it has a head that fits, else Spearman."""
    classes = heads.num_classes(opened)
    train, held_out = (
        data_dataset.open_dataset(spec, split, inputs=opened.inputs, image_size=size)
        for split in ("train", "validation")
    )
    fits = classes is not None and held_out.num_classes == classes
    batches = list(loader(held_out, batch_size=BATCH, seed=0, shuffle=True, limit=tests))
    test = [b["inputs"] for b in batches]
    dense = outputs(opened.module, test)

    def calibration(samples: int, seed: int) -> list[Any]:
        return _inputs(train, samples, seed)

    if not fits:
        return Subject(opened, "Spearman of pairs", calibration, test, _spearman(dense), dense)
    wanted = torch.cat([b["labels"] for b in batches])

    def score(found: Tensor) -> dict[str, float]:
        return {"metric": 100 * float((found.argmax(1) == wanted).float().mean())}

    return Subject(opened, "accuracy %", calibration, test, score, dense)


def _inputs(source: Dataset, samples: int, seed: int) -> list[Any]:
    batches = loader(
        source, batch_size=min(32, samples), seed=100 + seed, shuffle=True, limit=samples
    )
    return [batch["inputs"] for batch in batches]


def _spearman(dense: Tensor) -> Callable[[Tensor], dict[str, float]]:
    """Rank correlation of all pairs' cosines with the dense model's, in points."""
    from scipy.stats import spearmanr

    upper = torch.triu_indices(len(dense), len(dense), 1)

    def pairs(x: Tensor) -> NDArray[np.float32]:
        x = F.normalize(x, dim=-1)
        found: NDArray[np.float32] = (x @ x.T)[upper[0], upper[1]].numpy()
        return found

    reference = pairs(dense)
    return lambda found: {"metric": 100 * float(spearmanr(reference, pairs(found)).statistic)}


def _tokenised(opened: OpenModel, lines: Sequence[str]) -> list[Any]:
    inputs = opened.inputs
    assert isinstance(inputs, models_inputs.TextInput)
    return [
        dict(
            inputs.tokenizer(
                list(lines[i : i + 32]), padding=True, truncation=True,
                max_length=inputs.max_length, return_tensors="pt",
            )
        )
        for i in range(0, len(lines), 32)
    ]  # fmt: skip


@cache  # reading all of it takes seconds
def scikit_sentences() -> list[str]:
    import importlib

    import sklearn

    text = []
    for found in pkgutil.iter_modules(sklearn.__path__):
        if found.name.startswith("_") or found.name in ("conftest", "tests", "experimental"):
            continue
        module = importlib.import_module(f"sklearn.{found.name}")
        names = vars(module)  # what is experimental is named in __all__ and not there
        public = [names[name] for name in getattr(module, "__all__", ()) if name in names]
        text += [inspect.getdoc(one) or "" for one in public if callable(one)]
    lines = [" ".join(s.split()) for s in re.split(r"(?<=[.!?])\s+", " ".join(text))]
    kept = [s for s in lines if 30 < len(s) < 300 and re.fullmatch(r"[A-Z][\w ,'()-]+\.", s)]
    return list(dict.fromkeys(kept))


def idx(folder: Path, split: str) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(images [n, 28, 28], labels [n]) of the idx files."""
    found = []
    for kind, header in (("images-idx3", 16), ("labels-idx1", 8)):
        file = folder / f"{split}-{kind}-ubyte.gz"
        if not file.exists():
            raise SystemExit(
                f"{file}: not there; it is in the Debian package dataset-fashion-mnist"
            )
        found.append(np.frombuffer(gzip.decompress(file.read_bytes()), np.uint8, offset=header))
    return found[0].reshape(-1, 28, 28), found[1]
