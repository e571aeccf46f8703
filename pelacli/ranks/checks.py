"""What the rank engine refuses, and why: no sense in the arguments, or no way to the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from pelacli.errors import InfeasibleError, RequestError

POLICIES = ("energy", "uniform", "threshold")
SCOPES = ("model", "layers")


def check_arguments(
    names: Sequence[str],
    policy: str,
    ratio: Fraction | None,
    scope: str,
    threshold: float | None,
    min_rank: int,
    max_rank: int | None,
    multiple: int,
    energy: float | None,
) -> None:
    """Refuse what makes no sense whatever the layers' energies.

    Raises:
        RequestError: of the user's; ValueError: of the caller's.
    """
    if not names:
        raise RequestError("no layer is left to factorise: include more or exclude less")
    if len(set(names)) < len(names):
        raise ValueError("two spectra have the same name")
    if policy not in POLICIES:
        raise RequestError(f"policy {policy!r} is none of {', '.join(POLICIES)}")
    if scope not in SCOPES:
        raise RequestError(f"scope {scope!r} is none of {', '.join(SCOPES)}")
    if ratio is not None and not 0 < ratio <= 1:
        raise RequestError(f"ratio {text(ratio)} is not above 0 and at most 1")
    if policy == "threshold" and (threshold is None or not 0 < threshold <= 1):
        raise RequestError("policy threshold needs a threshold above 0 and at most 1")
    if policy != "threshold" and threshold is not None:
        raise RequestError(f"a threshold belongs to policy threshold, not to {policy}")
    if energy is not None:
        if policy != "energy":
            raise RequestError(f"a share of all energy belongs to policy energy, not to {policy}")
        if ratio is not None:
            raise RequestError("a ratio and a share of the energy can't both be met; give one")
        if not 0 < energy <= 1:
            raise RequestError(f"energy {energy:g} is not above 0 and at most 1")
    elif policy != "threshold" and ratio is None:
        raise RequestError(f"policy {policy} needs a ratio")
    if min_rank < 0 or multiple < 1:
        raise RequestError("the minimum rank must be at least 0 and the multiple at least 1")
    if max_rank is not None and max_rank < -(-min_rank // multiple) * multiple:
        raise RequestError(
            f"no multiple of {multiple} lies between minimum rank {min_rank} and maximum rank "
            f"{max_rank}: raise the maximum or lower the others"
        )


def impossible(
    ratio: Fraction,
    scope: str,
    unit: str,
    total: int,
    least: int,
    pinned: int,
    lowest: int,
    fixed: int,
    obstacles: Mapping[str, int],
) -> InfeasibleError:
    """The error for a budget below ``least``: names the nearest ratio and what is in the way."""
    noun = "parameters" if unit == "params" else "FLOPs"

    def share(n: int) -> str:
        return f"{100 * n / total:.1f} %"

    stuck = {k: n for k, n in obstacles.items() if 100 * n >= total} if fixed else {}
    names = sorted(stuck, key=lambda k: (-stuck[k], k))[:3]
    reasons = []
    if names:
        shares = [
            f"{k} ({share(stuck[k])}{f' of the {noun}' if k == names[0] else ''})" for k in names
        ]
        are = "is" if len(names) == 1 else "are"
        reasons.append(f"{_and(shares)} {are} not factorised")
    elif 100 * fixed >= total:
        reasons.append(f"{share(fixed)} of the {noun} are not in factorised layers")
    if 100 * pinned >= total:
        reasons.append(f"pins hold {share(pinned)}")
    if 100 * lowest >= total:
        reasons.append(f"the layers at their lowest ranks hold {share(lowest)}")
    because = f", because {_and(reasons)}" if reasons else ""
    if least > total:
        message = f"ratio {text(ratio)} cannot be met, nor any up to 1{because}"
        return InfeasibleError(message, None)
    smallest = ceil4(least, total)
    return InfeasibleError(
        f"ratio {text(ratio)} cannot be met: the smallest possible is {smallest}{because}"
        + ("; scope layers counts the factorised layers only" if names else ""),
        smallest,
    )


def _and(parts: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]]))


def ceil4(part: int, whole: int) -> str:
    """part / whole, rounded up to 4 digits: as a budget it suffices for the part."""
    return text(Fraction(-(-part * 10_000 // whole), 10_000))


def floor4(share: float) -> str:
    """A share, rounded down to 4 digits."""
    return text(Fraction(int(share * 10_000), 10_000))


def text(ratio: Fraction) -> str:
    """A decimal where a short one is exact, else the fraction: 0.5, 2/3."""
    decimal = f"{float(ratio):.6f}".rstrip("0").rstrip(".")
    return decimal if Fraction(decimal) == ratio else str(ratio)
