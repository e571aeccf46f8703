"""What a shell completes the values of options to: the names that the options are checked by.

They are looked up when a shell asks for them, so that the command line itself starts without what
knows them. Each gives words and refuses none: that is done where the value is used.
"""

from __future__ import annotations

from collections.abc import Callable


def one_of(*words: str) -> Callable[[], list[str]]:
    """Any of these words, for an option whose names are written nowhere else."""
    return lambda: list(words)


devices = one_of("auto", "cpu", "cuda")


def precisions() -> list[str]:
    from pelacli.system.precisions import NAMES

    return [*NAMES]


def forms() -> list[str]:
    from pelacli.ranks.forms import CHOICES

    return [*CHOICES]


def scopes() -> list[str]:
    from pelacli.ranks.budget import SCOPES

    return [*SCOPES]


def units() -> list[str]:
    from pelacli.ranks.budget import UNITS

    return [*UNITS]


def policies() -> list[str]:
    from pelacli.ranks.policies import registry

    return [*registry.names()]


def policies_by_ratio() -> list[str]:
    """Those that can meet a ratio."""
    from pelacli.ranks.policies import registry

    return [*registry.with_budget("ratio")]
