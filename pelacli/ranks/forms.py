"""The two forms of a low-rank layer, and how many numbers each stores.

``factors`` is the product of ``up`` (out × rank) and ``down`` (rank × in). ``pivots`` is the same
matrix with a rank × rank identity inside one of the two, which is neither stored nor multiplied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeVar, get_args

if TYPE_CHECKING:  # whoever only wants the names of the forms needs no NumPy
    import numpy as np
    from numpy.typing import NDArray

Form = Literal["factors", "pivots"]
Choice = Literal["auto", "factors", "pivots"]  # auto: whatever is cheaper at each rank
FORMS: tuple[Form, ...] = get_args(Form)
CHOICES: tuple[str, ...] = get_args(Choice)

_Ranks = TypeVar("_Ranks", int, "NDArray[np.int64]")


def dense_weights(shape: tuple[int, int]) -> int:
    """The numbers in a dense weight of shape (out, in)."""
    out, in_ = shape
    return out * in_


def weights(shape: tuple[int, int], rank: _Ranks, form: Form) -> _Ranks:
    """The numbers that a layer of shape (out, in) stores at a rank, or at each rank of an array.

    r (in + out) in factors, r (in + out − r) in pivots.
    """
    side = sum(shape)
    return rank * (side - rank) if form == "pivots" else rank * side
