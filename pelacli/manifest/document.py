"""The manifest, pela.json: what an artefact was made from, each of its layers, and each step."""

from __future__ import annotations

import json
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pelacli.errors import RequestError
from pelacli.manifest import digests
from pelacli.ranks.forms import Form
from pelacli.system import json_files, own_files
from pelacli.version import __version__

FILE = "pela.json"
FORMAT = 1
_DIGEST = "digest"


class NewerFormatError(RequestError):
    """A later pela has written the manifest."""


class _Record(BaseModel):
    """A part of the manifest. Keys that a later pela has added are ignored; a pela that changes
    what a key means raises FORMAT."""

    model_config = ConfigDict(extra="ignore")


class Count(_Record):
    """Parameters, or FLOPs of one sample: of the dense model, and of the artefact."""

    before: int
    after: int


class LayerRecord(_Record):
    """One linear map of the model.

    Attributes:
        shape: (out, in).
        kind: "linear", "conv1d", "conv1x1", "in_proj" or "experts".
        rank: None where dense; ``reason`` then says why.
        form: of the low-rank layer, "factors" where an older pela wrote none; None where dense.
        energy: share of the layer's energy that is kept, 0 to 1; None where unknown.
        held_back_error: share of the variance of its outputs that was lost on the held-back
            samples when the model was factorised, by its own cut and by the layers before it (0 is
            the dense layer; at 1 its mean output would do as well); None where unknown. Training
            leaves it as it was.
        params: of the weight, without the bias.
        flops: None where unknown.
    """

    name: str
    shape: tuple[int, int]
    kind: str = "linear"
    rank: int | None = Field(None, ge=0)
    form: Form | None = None
    reason: str | None = None
    energy: float | None = None
    held_back_error: float | None = None
    params: Count
    flops: Count | None = None

    @model_validator(mode="after")
    def _check_form(self) -> Self:
        self.form = None if self.rank is None else self.form or "factors"
        return self


class SourceRecord(_Record):
    """The dense model that the first step started from.

    Attributes:
        model: as the user named it.
        library: "timm" or "transformers".
        weights: "pretrained", "random" or a path.
        digest: SHA-256 of the weights, where known.
        licence: of the weights, by the keys of a model card: "license", and of one without a known
            name "license_name" and "license_link". Empty where it is not known.
    """

    model: str
    library: str
    architecture: str | None = None
    weights: str | None = None
    digest: str | None = None
    licence: dict[str, str] = Field(default_factory=dict)

    @property
    def name(self) -> str:
        """What the model is called by anybody, anywhere: the last part of a path; a hub id and the
        name of an architecture as they are."""
        path = PurePath(self.model)
        is_hub_id = len(path.parts) == 2 and not self.model.startswith((".", "/", "~"))
        known_as = self.model if is_hub_id else path.name
        return known_as if known_as.strip(".") else str(self.architecture or "model")


class StepRecord(_Record):
    """One step of the artefact's history, with all that it takes to repeat it.

    Attributes:
        step: "decompose", "pretrain" …
        recipe: the whole recipe, with every default.
        versions: of Python, pela and the libraries.
        machine: as `pelacli.system.machine.description` gives it; empty in one of an older pela.
        inputs: digest of the weights that the step read.
        fingerprint: of the step's inputs and settings.
    """

    step: str
    recipe: dict[str, Any] = Field(default_factory=dict)
    seed: int = 0
    versions: dict[str, str] = Field(default_factory=dict)
    machine: dict[str, str | int] = Field(default_factory=dict)
    metrics: dict[str, Any] = Field(default_factory=dict)
    seconds: float = 0.0
    inputs: str = ""
    fingerprint: str = ""


class FileRecord(_Record):
    """A file beside the manifest, as it was written: its bytes, and its SHA-256."""

    size: int
    sha256: str


class Manifest(_Record):
    """The document in pela.json.

    Attributes:
        format: version of the format.
        pela: version of the program that wrote it.
        policy, scope, unit, ratio, energy: of the plan; None for a dense model.
        params, flops: of the whole model; flops None where unknown.
        tied: each further name of a tensor that several modules share → the name that it is stored
            under. config.json may say otherwise, and is not asked. None in an artefact of an older
            pela: there it is.
        history: the steps that made it, the first one first.
        files: name → record of each other file of the artefact; None in one of an older pela.
    """

    format: int = FORMAT
    pela: str = __version__
    source: SourceRecord
    library: str
    policy: str | None = None
    scope: str | None = None
    unit: str | None = None
    ratio: str | None = None
    energy: float | None = None
    params: Count
    flops: Count | None = None
    layers: list[LayerRecord]
    tied: dict[str, str] | None = None
    history: list[StepRecord] = Field(default_factory=list)
    files: dict[str, FileRecord] | None = None

    @field_validator("files")
    @classmethod
    def _check_inside(cls, files: dict[str, FileRecord] | None) -> dict[str, FileRecord] | None:
        for name in files or {}:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\0" in name or not path.parts:
                raise ValueError(f"{name[:40]!r} is no file of the artefact")
        return files

    @property
    def has_held_back_errors(self) -> bool:
        """Whether a layer's error on held-back samples is known."""
        return any(layer.held_back_error is not None for layer in self.layers)


def read(directory: Path) -> Manifest:
    """The manifest of an artefact.

    Raises:
        NewerFormatError: a later pela has written it.
        RequestError: no artefact, not JSON, or with wrong fields.
    """
    path = Path(directory) / FILE
    if not path.is_file():
        raise RequestError(
            f"{directory}: not an artefact: there is no {FILE}; `pela decompose` makes artefacts"
        )
    own_files.check(Path(directory), path)
    document = json_files.read(path, "make the artefact anew")
    version = document.get("format") if isinstance(document, dict) else None
    if not isinstance(version, int) or isinstance(version, bool):
        raise RequestError(f'{path}: no record of an artefact: it has no "format"; make it anew')
    if version > FORMAT:
        raise NewerFormatError(
            f"{path}: format {version}, written by pela {document.get('pela')}; this pela "
            f"({__version__}) reads formats up to {FORMAT}: upgrade it (pip install -U pelacli)"
        )
    try:
        return Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise RequestError(
            f"{path}: {where}: {first['msg']}; mend it or make the artefact anew"
        ) from None


def dumps(manifest: Manifest) -> str:
    """The text of pela.json. The same manifest gives the same text; NaN and infinity are null. Its
    last key is a digest of all others."""
    content = json.loads(manifest.model_dump_json())
    return (
        json.dumps(content | {_DIGEST: digests.digest_json(content)}, indent=2, ensure_ascii=False)
        + "\n"
    )


def is_as_written(directory: Path) -> bool | None:
    """Whether pela.json is as it was written, by its own digest; None where an older pela wrote
    none.

    Raises:
        RequestError: it is not JSON.
    """
    content = json_files.read_as(dict, Path(directory) / FILE, "make the artefact anew")
    written = content.pop(_DIGEST, None)
    return None if written is None else bool(written == digests.digest_json(content))


def is_artefact(path: Path | str) -> bool:
    """Whether the path is a directory that holds a manifest."""
    return (Path(path) / FILE).is_file()
