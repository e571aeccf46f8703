"""Low-rank checkpoints of other code: which two matrices stand in the place of a layer, and how.

::

    X.0.weight, X.1.weight, X.1.bias      PELA's own code: Sequential(Linear(in, r), Linear(r, out))
    X.BLinear.weight, X.ALinear.weight    ASVD
    x_v_proj.weight, x_u_proj.weight      SVD-LLM, of the layer x_proj
    X.V, X.U                              plain matrices, also transposed

Other names are taken too: shapes tell which is which. What they leave open for one layer, other
layers of the same checkpoint may tell, since its code has one convention.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from pelacli.errors import RequestError

# Names of the matrix that meets the input, where shapes leave it open.
_FIRST = ("0", "v", "V", "BLinear", "down")
_REMEDY = "name them X.0.weight [rank, in] and X.1.weight [out, rank], as PELA's code does"


class Reading(NamedTuple):
    """How two stored matrices make ``down`` [r, in] and ``up`` [out, r].

    Attributes:
        down, up: names of the parts.
        down_turned, up_turned: whether they are stored transposed.
    """

    down: str
    down_turned: bool
    up: str
    up_turned: bool


@dataclass
class _Pair:
    """What a checkpoint holds of a layer.

    Attributes:
        shape: (out, in) of the dense layer.
        tensors: name in the file → tensor, and name of the part → its matrix.
        plain: whether the matrices are no weights of a module, so that they may be transposed.
    """

    layer: str
    shape: tuple[int, int]
    names: dict[str, str] = field(default_factory=dict)
    matrices: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    plain: bool = False

    @property
    def readings(self) -> set[Reading]:
        """All that the shapes allow."""
        out, in_ = self.shape
        turns = (False, True) if self.plain else (False,)
        readings = set()
        for first, second in (tuple(self.matrices), tuple(self.matrices)[::-1]):
            for down_turned in turns:
                for up_turned in turns:
                    down = _turned(self.matrices[first], down_turned)
                    up = _turned(self.matrices[second], up_turned)
                    if down.shape[1] == in_ and up.shape[0] == out and len(down) == up.shape[1]:
                        readings.add(Reading(first, down_turned, second, up_turned))
        return readings

    def __str__(self) -> str:
        shapes = [f"{self.names[p]} {list(m.shape)}" for p, m in self.matrices.items()]
        return " and ".join(shapes) or self.layer


def _turned(matrix: Tensor, turned: bool) -> Tensor:
    return matrix.T if turned else matrix


def in_our_names(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, int]], file: Path
) -> tuple[dict[str, Tensor], dict[str, int]]:
    """The tensors of a checkpoint by the names of a low-rank model of pela's.

    Args:
        tensors: by their names in the file.
        shapes: (out, in) of the dense model's linear layers by name.
        file: which messages name.

    Returns:
        (tensors by name, rank of each low-rank layer).

    Raises:
        RequestError: no layer is a pair, or one is, but its matrices don't make the layer, can be
            read in two ways, or have something beside them; the message names them.
    """
    pairs = [_pair(tensors, name, shape) for name, shape in shapes.items()
             if f"{name}.weight" not in tensors]  # fmt: skip
    pairs = [pair for pair in pairs if pair.names]
    if not pairs:
        raise RequestError(
            f"{file}: no layer of the model is a pair of matrices in it; {_REMEDY}, or decompose "
            "it, where it is dense"
        )
    for pair in pairs:
        _check_parts(pair, tensors, file)
    reading_of = _readings(pairs, file)
    taken = {name for pair in pairs for name in pair.names.values()}
    renamed = {name: tensor for name, tensor in tensors.items() if name not in taken}
    ranks = {}
    for pair in pairs:
        reading = reading_of[pair.layer]
        down = _turned(pair.matrices[reading.down], reading.down_turned)
        up = _turned(pair.matrices[reading.up], reading.up_turned)
        if reading.down in pair.biases:
            raise RequestError(f"{file}: {pair.layer}: has a bias between its two matrices")
        renamed[f"{pair.layer}.down.weight"] = down.contiguous()
        renamed[f"{pair.layer}.up.weight"] = up.contiguous()
        for bias in pair.biases.values():
            renamed[f"{pair.layer}.up.bias"] = bias
        ranks[pair.layer] = len(down)
    return renamed, ranks


def _pair(tensors: Mapping[str, Tensor], layer: str, shape: tuple[int, int]) -> _Pair:
    """What stands under a layer's name, and under the names that SVD-LLM makes of it."""
    pair = _Pair(layer, shape)
    parent, _, leaf = layer.rpartition(".")
    stem, tail = (leaf[: -len("_proj")], "_proj") if leaf.endswith("_proj") else (leaf, "")
    front = f"{re.escape(parent)}\\." if parent else ""
    inside = re.compile(rf"{re.escape(layer)}\.(?P<part>[^.]+)(?P<kind>\.weight|\.bias)?")
    beside = re.compile(rf"{front}{re.escape(stem)}_(?P<part>[uv]){tail}(?P<kind>\.weight|\.bias)")
    for name, tensor in tensors.items():
        match = inside.fullmatch(name) or beside.fullmatch(name)
        if match is None:
            continue
        part, kind = match["part"], match["kind"]
        if part == "bias" and kind is None:
            part, kind = "", ".bias"
        pair.names[f"{part} bias" if kind == ".bias" else part] = name
        if kind == ".bias":
            pair.biases[part] = tensor
        else:
            pair.matrices[part] = tensor
            pair.plain |= kind is None
    return pair


def _check_parts(pair: _Pair, tensors: Mapping[str, Tensor], file: Path) -> None:
    """Refuse a layer that is more or less than two matrices and a bias.

    Raises:
        RequestError: naming what it is.
    """
    for part, tensor in pair.matrices.items():
        if tensor.ndim == 1:
            raise RequestError(
                f"{file}: {pair.names[part]}: is a vector beside the matrices of {pair.layer}; "
                "multiply it into one of them (singular values: half into each)"
            )
    if len(pair.matrices) != 2 or any(matrix.ndim != 2 for matrix in pair.matrices.values()):
        held = ", ".join(sorted(pair.names.values()))
        raise RequestError(f"{file}: {pair.layer}: holds {held}, and not two matrices")
    if len(pair.biases) > 1:
        raise RequestError(f"{file}: {pair.layer}: has two biases; add them up to one")


def _readings(pairs: Sequence[_Pair], file: Path) -> dict[str, Reading]:
    """How the pair of each layer is read. Pairs of the same parts are read in the same way.

    Raises:
        RequestError: there is none, or more than one that fits all of them.
    """
    reading_of: dict[str, Reading] = {}
    groups: dict[frozenset[str], list[_Pair]] = {}
    for pair in pairs:
        groups.setdefault(frozenset(pair.matrices), []).append(pair)
    for group in groups.values():
        left = group[0].readings
        for pair in group:
            both = left & pair.readings
            if not both:
                out, in_ = pair.shape
                raise RequestError(
                    f"{file}: {pair}: their product is no matrix [{out}, {in_}], as {pair.layer} "
                    "of the model is; name the model that was factorised"
                )
            left = both
        if len(left) > 1:
            left = {reading for reading in left if _is_usual(reading)} or left
        if len(left) > 1:
            raise RequestError(
                f"{file}: {group[0]}: their shapes leave open which of them meets the input, here "
                f"and in all other layers; {_REMEDY}"
            )
        (reading,) = left
        reading_of |= {pair.layer: reading for pair in group}
    return reading_of


def _is_usual(reading: Reading) -> bool:
    return reading.down in _FIRST and not (reading.down_turned or reading.up_turned)
