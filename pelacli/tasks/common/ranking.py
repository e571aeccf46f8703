"""Recall of a split: every image ranks all captions and every caption all images, over all
processes of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pelacli.errors import RequestError
from pelacli.models.pairs.view import Encoded, PairModel
from pelacli.system import processes

_RANKS = (1, 5, 10)
_QUERIES, _PAIRS = 1024, 256  # that are compared, or matched, at once


@dataclass
class Split:
    """An encoded split, on the CPU.

    Attributes:
        images: those of this process, of which the first is number ``first`` of all.
        image_features: [I, E] of all processes' images; None where the model doesn't compare.
        texts: of all processes; those of this one are ``own``.
        image_ids: [I], text_ids [T]: which texts belong to which images.
    """

    images: Encoded
    image_features: Tensor | None
    texts: Encoded
    image_ids: Tensor
    text_ids: Tensor
    first: int
    own: range

    @classmethod
    def share(
        cls,
        images: Sequence[Encoded],
        texts: Sequence[Encoded],
        image_ids: Sequence[Tensor],
        text_ids: Sequence[Tensor],
    ) -> Split:
        """Of what each process encoded, batch by batch.

        Raises:
            RequestError: a process had nothing to encode.
        """
        if min(processes.all_gather(len(images))) == 0:
            raise RequestError("retrieval: fewer images than processes; launch fewer")
        own_images, own_texts = Encoded.joined(images), Encoded.joined(texts)
        counts = processes.all_gather((len(own_images), len(own_texts)))
        rank = processes.rank_and_size()[0]
        first, start = (sum(count[side] for count in counts[:rank]) for side in (0, 1))
        features = Encoded.joined(processes.all_gather(Encoded(own_images.features))).features
        return cls(
            own_images,
            features,
            Encoded.joined(processes.all_gather(own_texts)),
            torch.cat(processes.all_gather(torch.cat(list(image_ids)))),
            torch.cat(processes.all_gather(torch.cat(list(text_ids)))),
            first,
            range(start, start + len(own_texts)),
        )


def recalls(view: PairModel, split: Split, k: int, device: torch.device) -> dict[str, float]:
    """Recall at 1, 5 and 10 both ways, in percent, and the mean.

    Args:
        k: candidates of each query that are matched, where the model compares and matches. One
            that only matches does so with all.
    """
    if view.matches:
        ways = _reranked(view, split, k, device) if view.compares else _matched(view, split, device)
    else:
        ways = _compared(view, split, device)
    found: dict[str, float] = {}
    for name, parts in zip(("text", "image"), ways, strict=True):
        total = processes.total(torch.stack(parts).sum(0))
        for rank, hit in zip(_RANKS, total[:-1].tolist(), strict=True):
            found[f"{name}_r{rank}"] = 100 * hit / float(total[-1])
    return found | {"mean_r": sum(found.values()) / len(found)}


def hits(scores: Tensor, right: Tensor) -> Tensor:
    """How many queries have a right candidate among the first 1, 5 and 10; and how many there are.

    Ties are broken by chance, that is, a query counts by how likely its right candidate comes
    first: a model that scores all alike gets what guessing would.

    Args:
        scores: [Q, N], −∞ for who is no candidate; a query with NaN among its own finds nothing.
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
    found = []
    for k in _RANKS:
        places = (k - ahead).clamp_min(0)
        # None of the right ones among the first `places` of a random order of all equal ones.
        missed = torch.ones(len(scores), dtype=torch.float64)
        for i in range(k):
            chance = (wrong - i).clamp_min(0) / (wrong + rights - i).clamp_min(1)
            missed = torch.where(places > i, missed * chance, missed)
        found.append(torch.where(best[:, 0] == -torch.inf, 0.0, 1 - missed).sum())
    return torch.stack([*found, torch.tensor(float(len(scores)), dtype=torch.float64)])


# Dual encoders ----------------------------------------------------------------------------------


def _compared(
    view: PairModel, split: Split, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    return (
        [hits(scores, right) for scores, right in _rows(view, split, device)],
        [hits(scores, right) for scores, right in _columns(view, split, device)],
    )


def _rows(view: PairModel, split: Split, device: torch.device) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores, right) [Q, T] of this process's images, some at a time."""
    assert split.images.features is not None
    assert split.texts.features is not None
    texts = split.texts.features.to(device)
    ids = split.image_ids[split.first : split.first + len(split.images)]
    for some, own in zip(
        _parts(split.images.features, _QUERIES), _parts(ids, _QUERIES), strict=True
    ):
        scores = view.similarity(some.to(device), texts)
        yield scores.float().cpu(), own[:, None] == split.text_ids[None]


def _columns(
    view: PairModel, split: Split, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """(scores, right) [Q, I] of this process's texts, some at a time."""
    assert split.image_features is not None
    assert split.texts.features is not None
    images = split.image_features.to(device)
    own = slice(split.own.start, split.own.stop)
    features, ids = split.texts.features[own], split.text_ids[own]
    for some, of in zip(_parts(features, _QUERIES), _parts(ids, _QUERIES), strict=True):
        scores = view.similarity(images, some.to(device)).T
        yield scores.float().cpu(), of[:, None] == split.image_ids[None]


# Matching ---------------------------------------------------------------------------------------


def _reranked(
    view: PairModel, split: Split, k: int, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """The k likeliest by comparison are ranked by matching, ahead of all others."""
    by_image, row = [], 0
    for scores, right in _rows(view, split, device):
        chosen = scores.topk(min(k, scores.shape[1]), 1).indices
        own = torch.arange(row, row + len(chosen))[:, None].expand_as(chosen)
        matched = _match(view, split, own.flatten(), chosen.flatten(), device)
        only = torch.full_like(scores, -torch.inf).scatter(1, chosen, matched.view_as(chosen))
        by_image.append(hits(only, right))
        row += len(scores)
    by_text = []
    # A pair is matched where its image is; the texts of all processes take turns.
    chosen = torch.cat(
        processes.all_gather(
            torch.cat(
                [
                    scores.topk(min(k, scores.shape[1]), 1).indices
                    for scores, _ in _columns(view, split, device)
                ]
            )
        )
    )
    matched = torch.full(chosen.shape, -torch.inf)
    here = (chosen >= split.first) & (chosen < split.first + len(split.images))
    text, place = here.nonzero(as_tuple=True)
    images = chosen[text, place] - split.first
    matched[text, place] = _match(view, split, images, text, device)
    matched = torch.stack(processes.all_gather(matched)).amax(0)
    mine = slice(split.own.start, split.own.stop)
    for some, scores, of in zip(
        _parts(chosen[mine], _QUERIES),
        _parts(matched[mine], _QUERIES),
        _parts(split.text_ids[mine], _QUERIES),
        strict=True,
    ):
        only = torch.full((len(some), len(split.image_ids)), -torch.inf).scatter(1, some, scores)
        by_text.append(hits(only, of[:, None] == split.image_ids[None]))
    return by_image, by_text


def _matched(
    view: PairModel, split: Split, device: torch.device
) -> tuple[list[Tensor], list[Tensor]]:
    """Every image with every text."""
    images, texts = len(split.images), len(split.texts)
    rows = torch.arange(images).repeat_interleave(texts)
    columns = torch.arange(texts).repeat(images)
    own = _match(view, split, rows, columns, device).view(images, texts)
    scores = torch.cat(processes.all_gather(own))
    right = split.image_ids[:, None] == split.text_ids[None]
    mine = slice(split.first, split.first + images)
    own_texts = slice(split.own.start, split.own.stop)
    return [hits(own, right[mine])], [hits(scores.T[own_texts], right.T[own_texts])]


def _match(
    view: PairModel, split: Split, images: Tensor, texts: Tensor, device: torch.device
) -> Tensor:
    """Scores [n] of pairs: numbers of this process's images, and of all texts."""
    scores = [torch.empty(0)]
    for rows, columns in zip(_parts(images, _PAIRS), _parts(texts, _PAIRS), strict=True):
        if len(rows):
            logits = view.match(split.images[rows].to(device), split.texts[columns].to(device))
            scores.append((logits[:, 1] - logits[:, 0]).float().cpu())
    return torch.cat(scores)


def _parts(rows: Tensor, size: int) -> list[Tensor]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
