"""Recall of a split: every image ranks all captions and every caption all images, over all
processes of a run.

Each process keeps the images that it encoded and gathers the texts of all. It ranks for its own
images and its own texts; a pair is matched by the process of its image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelacli.errors import RequestError
from pelacli.models.pairs.view import Encoded, PairModel
from pelacli.system import processes

_CUTOFFS = (1, 5, 10)
_QUERIES, _PAIRS = 1024, 256  # that are compared, or matched, at once


@dataclass
class EncodedSplit:
    """An encoded split, on the CPU.

    Attributes:
        images: those of this process.
        image_features: [I, E] of all processes' images; None where the model doesn't compare.
        texts: of all processes.
        image_ids: [I], text_ids [T]: a text belongs to the images of the same number.
        own_images: numbers of this process's images among all; own_texts: of its texts.
    """

    images: Encoded
    image_features: Tensor | None
    texts: Encoded
    image_ids: Tensor
    text_ids: Tensor
    own_images: slice
    own_texts: slice

    @classmethod
    def gather(
        cls,
        images: Sequence[Encoded],
        texts: Sequence[Encoded],
        image_ids: Sequence[Tensor],
        text_ids: Sequence[Tensor],
    ) -> EncodedSplit:
        """The split of which each process has encoded a share, batch by batch.

        Raises:
            RequestError: a process had nothing to encode.
        """
        if min(processes.all_gather(len(images))) == 0:
            raise RequestError("retrieval: fewer images than processes; launch fewer")
        own_images, own_texts = Encoded.joined(images), Encoded.joined(texts)
        features = processes.all_gather(Encoded(own_images.features))
        return cls(
            own_images,
            Encoded.joined(features).features,
            Encoded.joined(processes.all_gather(own_texts)),
            torch.cat(processes.all_gather(torch.cat(list(image_ids)))),
            torch.cat(processes.all_gather(torch.cat(list(text_ids)))),
            _own(len(own_images)),
            _own(len(own_texts)),
        )


def _own(count: int) -> slice:
    """Where this process's share lies among those of all, in the order of their ranks."""
    counts = processes.all_gather(count)
    start = sum(counts[: processes.rank_and_size()[0]])
    return slice(start, start + count)


def recalls(view: PairModel, split: EncodedSplit, k: int, device: torch.device) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways, in percent, and the mean.

    Args:
        k: candidates of each query that are matched, where the model compares and matches. One
            that only matches does so with all.
    """
    if not view.matches:
        by_image, by_text = _compare(view, split, device)
    elif view.compares:
        by_image, by_text = _rerank(view, split, k, device)
    else:
        by_image, by_text = _match_all(view, split, device)
    figures: dict[str, float] = {}
    for name, parts in (("text", by_image), ("image", by_text)):  # what is found, by what
        total = processes.total(torch.stack(parts).sum(0))
        for cutoff, hit in zip(_CUTOFFS, total[:-1].tolist(), strict=True):
            figures[f"{name}_r{cutoff}"] = 100 * hit / float(total[-1])
    return figures | {"mean_r": sum(figures.values()) / len(figures)}


def hits(scores: Tensor, right: Tensor) -> Tensor:
    """How many queries have a right candidate among the first 1, 5 and 10, and how many queries
    there are.

    Candidates with equal scores stand in random order: a query counts with the probability that a
    right one is among the first. A model that scores all alike gets what guessing would.

    Args:
        scores: [Q, N], −∞ for what is no candidate; a query with NaN among its scores counts as 0.
        right: [Q, N] bool.

    Returns:
        [4], in float64.
    """
    broken = scores.isnan().any(1, keepdim=True)
    scores = scores.masked_fill(broken, -torch.inf)
    best = scores.masked_fill(~right, -torch.inf).amax(1, keepdim=True)
    ahead = (scores > best).sum(1)  # all of them wrong
    equal = scores == best
    wrong, rights = (equal & ~right).sum(1), (equal & right).sum(1)
    counts = []
    for cutoff in _CUTOFFS:
        left = (cutoff - ahead).clamp_min(0)  # places for those of equal score
        # The probability that no right one is among the first `left` in random order.
        missed = torch.ones(len(scores), dtype=torch.float64)
        for i in range(cutoff):
            chance = (wrong - i).clamp_min(0) / (wrong + rights - i).clamp_min(1)
            missed = torch.where(left > i, missed * chance, missed)
        counts.append(torch.where(best[:, 0] == -torch.inf, 0.0, 1 - missed).sum())
    return torch.stack([*counts, torch.tensor(float(len(scores)), dtype=torch.float64)])


# Comparing --------------------------------------------------------------------------------------


def _compare(
    view: PairModel, split: EncodedSplit, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Hits by image and by text, for a model that only compares."""
    return (
        [hits(scores, right) for scores, right in _scores_by_image(view, split, device)],
        [hits(scores, right) for scores, right in _scores_by_text(view, split, device)],
    )


def _scores_by_image(
    view: PairModel, split: EncodedSplit, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores, right) [Q, T] of this process's images, `_QUERIES` at a time."""
    assert split.images.features is not None
    assert split.texts.features is not None
    texts = split.texts.features.to(device)
    ids = split.image_ids[split.own_images]
    for part, part_ids in zip(
        _parts(split.images.features, _QUERIES), _parts(ids, _QUERIES), strict=True
    ):
        scores = view.similarity(part.to(device), texts)
        yield scores.float().cpu(), part_ids[:, None] == split.text_ids[None]


def _scores_by_text(
    view: PairModel, split: EncodedSplit, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores, right) [Q, I] of this process's texts, `_QUERIES` at a time."""
    assert split.image_features is not None
    assert split.texts.features is not None
    images = split.image_features.to(device)
    features, ids = split.texts.features[split.own_texts], split.text_ids[split.own_texts]
    for part, part_ids in zip(_parts(features, _QUERIES), _parts(ids, _QUERIES), strict=True):
        scores = view.similarity(images, part.to(device)).T
        yield scores.float().cpu(), part_ids[:, None] == split.image_ids[None]


# Matching ---------------------------------------------------------------------------------------


def _rerank(
    view: PairModel, split: EncodedSplit, k: int, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Hits by image and by text, where the k likeliest by comparison are ranked by matching, ahead
    of all others."""
    by_image = _rerank_by_image(view, split, k, device)
    return by_image, _rerank_by_text(view, split, k, device)


def _rerank_by_image(
    view: PairModel, split: EncodedSplit, k: int, device: torch.device
) -> list[Tensor]:
    counts, row = [], 0
    for scores, right in _scores_by_image(view, split, device):
        chosen = _likeliest(scores, k)
        images = torch.arange(row, row + len(chosen))[:, None].expand_as(chosen)
        matched = _match(view, split, images.flatten(), chosen.flatten(), device)
        only = torch.full_like(scores, -torch.inf).scatter(1, chosen, matched.view_as(chosen))
        counts.append(hits(only, right))
        row += len(scores)
    return counts


def _rerank_by_text(
    view: PairModel, split: EncodedSplit, k: int, device: torch.device
) -> list[Tensor]:
    """A pair is matched by the process of its image: all processes see the candidates of all
    texts, and share their scores."""
    of_own_texts = [_likeliest(scores, k) for scores, _ in _scores_by_text(view, split, device)]
    chosen = torch.cat(processes.all_gather(torch.cat(of_own_texts)))
    matched = torch.full(chosen.shape, -torch.inf)
    is_own = (chosen >= split.own_images.start) & (chosen < split.own_images.stop)
    texts, columns = is_own.nonzero(as_tuple=True)
    images = chosen[texts, columns] - split.own_images.start
    matched[texts, columns] = _match(view, split, images, texts, device)
    matched = torch.stack(processes.all_gather(matched)).amax(0)
    counts = []
    for candidates, scores, ids in zip(
        _parts(chosen[split.own_texts], _QUERIES),
        _parts(matched[split.own_texts], _QUERIES),
        _parts(split.text_ids[split.own_texts], _QUERIES),
        strict=True,
    ):
        nothing = torch.full((len(candidates), len(split.image_ids)), -torch.inf)
        right = ids[:, None] == split.image_ids[None]
        counts.append(hits(nothing.scatter(1, candidates, scores), right))
    return counts


def _likeliest(scores: Tensor, k: int) -> Tensor:
    """Numbers [Q, k] of the candidates with the highest scores."""
    return scores.topk(min(k, scores.shape[1]), 1).indices


def _match_all(
    view: PairModel, split: EncodedSplit, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Hits by image and by text, for a model that only matches: every image with every text."""
    images, texts = len(split.images), len(split.texts)
    rows = torch.arange(images).repeat_interleave(texts)
    columns = torch.arange(texts).repeat(images)
    of_own_images = _match(view, split, rows, columns, device).view(images, texts)
    scores = torch.cat(processes.all_gather(of_own_images))
    right = split.image_ids[:, None] == split.text_ids[None]
    return (
        [hits(of_own_images, right[split.own_images])],
        [hits(scores.T[split.own_texts], right.T[split.own_texts])],
    )


def _match(
    view: PairModel, split: EncodedSplit, images: Tensor, texts: Tensor, device: torch.device
) -> Tensor:
    """Scores [n] of pairs.

    Args:
        images: [n], numbers of this process's images.
        texts: [n], numbers of all processes' texts.
    """
    scores = [torch.empty(0)]
    for rows, columns in zip(_parts(images, _PAIRS), _parts(texts, _PAIRS), strict=True):
        if len(rows):
            logits = view.match(split.images[rows].to(device), split.texts[columns].to(device))
            scores.append((logits[:, 1] - logits[:, 0]).float().cpu())
    return torch.cat(scores)


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
