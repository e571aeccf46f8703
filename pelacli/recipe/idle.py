"""Keys of a recipe that nothing reads, as other keys of it are what they are. No torch.

A recipe's file may hold them for another day. On a command line they are a mistake.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from pelacli.ranks.budgets import registry as budgets
from pelacli.ranks.policies import registry
from pelacli.recipe.fields import Section
from pelacli.recipe.keys import Key
from pelacli.recipe.schema import Recipe


@dataclass(frozen=True)
class Idle:
    """A key that is set and that nothing reads.

    Attributes:
        needs: why, and what would let it act: "is about calibrate; give that too".
        differs: whether its value is another than the default.
    """

    key: Key
    needs: str
    differs: bool


@dataclass(frozen=True)
class _Rule:
    """Keys of a section that nothing reads where a condition holds of the section."""

    keys: tuple[str, ...]
    needs: str
    holds: Callable[[Any], bool]


# Keys that choose ranks, which a plan brings along.
PLANNED = ("policy", "unit", "scope", "pin", "min_rank", "max_rank", "multiple", "form")

_DECOMPOSE = (
    _Rule(("samples", "correct", "blockwise"), "is about calibrate; give that too",
          lambda s: s.calibrate is None and s.correct is not True),
    _Rule(("ratio", "threshold", *PLANNED),
          "chooses ranks, and plan brings them along; leave one out", lambda s: s.plan is not None),
    _Rule(("threshold",), "belongs to policy 'threshold'",
          lambda s: s.policy not in registry.with_budget("threshold") and s.plan is None),
    _Rule(("latency",), "is about unit = \"latency\"; give that too",
          lambda s: s.counted[0] != "latency"),
    _Rule(("unit", "scope"), "says what a ratio counts; give that too",
          lambda s: not any(budgets.get(name).IS_COUNTED for name in s.budgets)),
    _Rule(("unit", "scope"), "says what a ratio counts, and there is none; leave it out",
          lambda s: any(budgets.get(name).UNIT for name in s.budgets)),
)  # fmt: skip
_TRAIN = (
    _Rule(("min_lr", "warmup_lr", "warmup_epochs"), "belongs to a schedule, and sched is 'none'",
          lambda s: s.sched == "none"),
    _Rule(("warmup_lr",), "is where a warm-up starts; give warmup_epochs too",
          lambda s: not s.warmup_epochs and s.sched != "none"),
    _Rule(("drop_path_rule",), "is about drop_path; give that too", lambda s: s.drop_path is None),
)  # fmt: skip
_LOSS = (
    _Rule(("temperature",), "is about kl, which is 0; give that a weight", lambda s: not s.kl),
    _Rule(("eps", "perturbation_form"), "is about perturbation, which is 0; give that a weight",
          lambda s: not s.perturbation),
)  # fmt: skip
_AUGMENT = (
    _Rule(("mixup_prob",), "is about mixup and cutmix, which are 0",
          lambda s: not s.mixup and not s.cutmix),
    _Rule(("scale", "ratio", "hflip", "vflip", "color_jitter", "auto_augment", "reprob",
           "interpolation"),
          "is a random transform, and none = true leaves them out", lambda s: s.none),
)  # fmt: skip
_RULES: dict[Key, tuple[_Rule, ...]] = {
    ("decompose",): _DECOMPOSE,
    ("teacher",): (
        *_TRAIN,
        _Rule(("factor_lr", "factor_decay"), "is about low-rank layers, and the teacher is dense",
              lambda s: True),
    ),
    ("pretrain",): (
        *_TRAIN,
        _Rule(("taps",), "is about loss.feature, which is 0; give that a weight",
              lambda s: not s.loss.feature),
        _Rule(("labels",), "is about loss.task, which is 0; give that a weight",
              lambda s: bool(s.labels) and not s.loss.task),
    ),
    ("pretrain", "loss"): _LOSS,
    ("finetune",): _TRAIN,
    ("data", "augment"): _AUGMENT,
}  # fmt: skip


def idle(recipe: Recipe, *sections: str) -> Iterator[Idle]:
    """The keys that are set in these sections, and in those within them, and that nothing reads."""
    for at, rules in _RULES.items():
        section = _section(recipe, at) if at[0] in sections else None
        if section is None:
            continue
        for rule in rules:
            for key in rule.keys:
                if key in section.model_fields_set and rule.holds(section):
                    default = type(section).model_fields[key].default
                    yield Idle((*at, key), rule.needs, getattr(section, key) != default)


def _section(recipe: Recipe, at: Key) -> Section | None:
    section: Section | None = recipe
    for name in at:
        section = getattr(section, str(name), None)
    return section
