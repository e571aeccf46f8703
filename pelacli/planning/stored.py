"""A model's spectra in one file, from which it is planned again without its weights. No torch.

``spectra.safetensors`` lies in the artefact that was planned from them, or where the user wants it.
Each layer's energies are a float64 tensor under the layer's name. All else that a plan needs is
JSON in the header: the dense model's manifest, what no plan can touch, and how the spectra were
made.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors import numpy as tensors

from pelacli.errors import RequestError
from pelacli.manifest import document
from pelacli.manifest.document import Manifest
from pelacli.messages import one_line
from pelacli.planning.size import flop_obstacles
from pelacli.ranks.size import ModelSize
from pelacli.ranks.spectrum import Spectrum
from pelacli.recipe import layout
from pelacli.system import files, own_files
from pelacli.version import __version__

FILE = "spectra.safetensors"
FORMAT = 1

# The header's only key: safetensors keeps no order of keys, and equal spectra give equal bytes.
_KEY = "pela_spectra"
_REMEDY = "make it anew with `pela decompose`"


class About(BaseModel):
    """What the header says of the spectra.

    Attributes:
        format: version of the format.
        pela: version of the program that wrote it.
        dense: the manifest of the dense model: its source, totals, and all its linear layers.
        inputs: digest of the weights that the spectra were computed from.
        tokens: layer with a spectrum → positions per sample, in the order of the model.
        fixed_params, fixed_flops: cost of the dense model outside of the layers with spectra; FLOPs
            are None where unknown.
        obstacles: owner → its part of fixed_params.
        samples: how many the spectra are calibrated on; 0 where they come from the weights alone.
        sample_tokens: tokens of text that these samples have, without padding; None without text.
        sensitivity: what the energies were measured by: "weights", "projections" of the output or
            "sampled tokens" of a language model (`pelacli.factorize.sensitivity`).
        scales: layer → what its energies were multiplied by, so that they are the damage that was
            measured (`pelacli.factorize.measured_damage`); empty where it was not.
        section: the keys that were set in the recipe's [decompose].
    """

    model_config = ConfigDict(extra="ignore")  # keys that a later pela has added

    format: int = FORMAT
    pela: str = __version__
    dense: Manifest
    inputs: str = ""
    tokens: dict[str, float]
    fixed_params: int = Field(ge=0)
    fixed_flops: int | None = Field(None, ge=0)
    obstacles: dict[str, int] = Field(default_factory=dict)
    samples: int = Field(0, ge=0)
    sample_tokens: int | None = Field(None, ge=0)
    sensitivity: str | None = None  # unknown in files of the first version
    scales: dict[str, float] = Field(default_factory=dict)
    section: dict[str, Any] = Field(default_factory=dict)

    @property
    def calibrated(self) -> bool:
        """Whether the spectra come from samples, not from the weights alone."""
        return self.samples > 0

    @property
    def size(self) -> ModelSize:
        """What a plan must know of the dense model beside the spectra."""
        total = None if self.dense.flops is None else self.dense.flops.before
        return ModelSize(
            shapes={layer.name: layer.shape for layer in self.dense.layers},
            fixed_params=self.fixed_params,
            fixed_flops=self.fixed_flops,
            obstacles=self.obstacles,
            flop_obstacles=flop_obstacles(total, self.dense.layers, self.tokens),
        )


@dataclass(frozen=True)
class Spectra:
    """Spectra with what a plan needs to know of their model.

    Attributes:
        layers: the spectra of the layers that may be factorised, in the order of the model.
    """

    layers: Sequence[Spectrum]
    about: About

    @property
    def unit(self) -> str:
        """What the energies count."""
        if self.about.sensitivity == "sampled tokens":
            return "twice the divergence of the next token in nats, summed over tokens, per sample"
        if self.about.samples:
            return "squared change of the standardised output, summed over it, per sample"
        return "squared Frobenius error of the weights"


def dumps(spectra: Spectra) -> bytes:
    """The content of the file."""
    energies = {s.name: np.ascontiguousarray(s.energies) for s in spectra.layers}
    return tensors.save(energies, {_KEY: spectra.about.model_dump_json()})


def save(spectra: Spectra, path: Path) -> None:
    """Write the file, so that at any time either the old or the new one can be read.

    Raises:
        RequestError: the path holds something else.
        PelaError: the disk refuses.
    """
    check_target(path)
    files.write_or_refuse(path, dumps(spectra))


def check_target(path: Path) -> None:
    """Refuse a path that spectra can't be written to, before any work is done.

    Raises:
        RequestError: the path holds something else than spectra, or lies below a file.
    """
    files.check_place(path)
    if path.exists() and not is_spectra(path):
        raise RequestError(f"{path}: exists and holds no spectra; choose another file")


def load(path: Path) -> Spectra:
    """Read the file back.

    Raises:
        RequestError: it is damaged, something else, or of a newer format.
    """
    header, energies = _read(path)
    about = _about(header, path)
    shapes = {layer.name: layer.shape for layer in about.dense.layers}
    if set(energies) != set(about.tokens) or not set(energies) <= set(shapes):
        raise RequestError(f"{path}: its layers are not those of its header; {_REMEDY}")
    layers = []
    for name, tokens in about.tokens.items():
        if energies[name].dtype != np.float64:
            raise RequestError(f"{path}: {name}: energies are no float64; {_REMEDY}")
        try:
            layers.append(Spectrum(name, shapes[name], energies[name], tokens))
        except (ValueError, RequestError) as error:
            raise RequestError(f"{path}: {error}; {_REMEDY}") from None
    return Spectra(layers, about)


def is_spectra(path: Path) -> bool:
    """Whether the path is a file that holds spectra, by its header."""
    if not path.is_file():
        return False
    try:
        with safe_open(path, framework="numpy") as file:
            return _KEY in (file.metadata() or {})
    except (SafetensorError, OSError):
        return False


def find(ref: str) -> Path | None:
    """The file of the spectra that a user names; None where there is none.

    Args:
        ref: the file, an artefact that has one, or a run directory.

    Raises:
        RequestError: an artefact's are a link that leads out of it.
    """
    path = Path(ref)
    if not path.is_dir():
        return path if is_spectra(path) else None
    candidates = map(of_artefact, (path, path / layout.FOLDERS["decompose"]))
    return next((file for file in candidates if file is not None), None)


def of_artefact(artefact: Path) -> Path | None:
    """The file of an artefact's spectra; None where it has none.

    Raises:
        RequestError: it is a link that leads out of the artefact.
    """
    file = artefact / FILE
    if not document.is_artefact(artefact) or not file.is_file():
        return None
    own_files.check(artefact, file)
    return file


def _read(path: Path) -> tuple[str, dict[str, NDArray[Any]]]:
    """The header's JSON, and layer → energies."""
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(_KEY)
            if header is None:
                raise RequestError(f"{path}: holds no spectra; `pela decompose` writes such files")
            return header, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise RequestError(
            f"{path}: not a whole file of spectra ({one_line(error, 160)}); {_REMEDY}"
        ) from None


def _about(header: str, path: Path) -> About:
    """The header, validated, the version of its format first."""
    try:
        version = _Version.model_validate_json(header)
        if version.format > FORMAT:
            raise RequestError(
                f"{path}: format {version.format}, written by pela {version.pela}; this pela "
                f"({__version__}) reads formats up to {FORMAT}: upgrade it (pip install -U pelacli)"
            )
        return About.model_validate_json(header)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(["header", *map(str, first["loc"])])
        raise RequestError(f"{path}: {where}: {first['msg']}; {_REMEDY}") from None


class _Version(BaseModel):
    format: int
    pela: str = "unknown"
