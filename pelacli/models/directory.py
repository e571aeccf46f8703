"""Open a model directory: config.json says which library it is of, the weights lie beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest.digests import digest_files, plain_weight_files
from pelacli.messages import naming
from pelacli.models import config_file, licence, plain_reading
from pelacli.models.carried import carried, check_read_files
from pelacli.models.inputs import tokenizer_of
from pelacli.models.libraries import library, own
from pelacli.models.opened import OpenModel
from pelacli.models.request import Request
from pelacli.models.weight_files import factor_ranks, shapes
from pelacli.models.wrapping import Origin, describe

REMEDY = "restore the file"


@dataclass(frozen=True)
class _Directory:
    """A directory with config.json.

    Attributes:
        model: what the manifest calls it, a hub id or a path.
        files: of weights, in safetensors.
        shapes: name → shape of each tensor in them; empty where the weights are not wanted.
        digest: of the weights; None where they are not wanted.
    """

    folder: Path
    config: Any
    model: str
    files: Sequence[Path]
    shapes: Mapping[str, tuple[int, ...]]
    digest: str | None

    def origin(self, request: Request) -> Origin:
        """What the manifest will say about where the model comes from."""
        terms = {} if request.weights == "random" else licence.of_card(self.folder)
        return Origin(self.model, request.weights, self.digest, terms)


def open_directory(request: Request, folder: Path, hub_id: str | None = None) -> OpenModel:
    """Open a directory in the layout of timm, of transformers or of pela's own models.

    Raises:
        RequestError: it is none of these, or a file of it is damaged.
    """
    directory = _read(request, folder, hub_id)
    name = library_of(directory.config)
    if name is None:
        raise RequestError(
            f"{folder / 'config.json'}: names neither a timm architecture nor a transformers "
            "model_type"
        )
    open_kind = {"timm": _of_timm, "transformers": _of_transformers}.get(name, _of_pela)
    opened = open_kind(request, directory)
    _refuse_factors(request, directory, opened)
    return opened


def library_of(config: Any) -> str | None:
    """The library that a config.json is of; None where it names none."""
    if not isinstance(config, dict):
        return None
    if "pela_model" in config:
        return str(config["pela_model"])
    libraries = {"architecture": "timm", "model_type": "transformers"}
    return next((name for key, name in libraries.items() if key in config), None)


def _refuse_factors(request: Request, directory: _Directory, opened: OpenModel) -> None:
    """Refuse weights whose factors the dense model has no places for: its layers would be fresh.

    Raises:
        RequestError: naming one of the layers.
    """
    ranks = factor_ranks(directory.shapes)
    low_rank = sorted(ranks.keys() & find.linear_modules(opened.module).keys()) if ranks else []
    if low_rank:
        raise RequestError(
            f"{request.ref}: holds low-rank layers ({low_rank[0]}), as an artefact does; give its "
            "local directory as the model"
        )


def _read(request: Request, folder: Path, hub_id: str | None) -> _Directory:
    check_read_files(folder)
    if request.weights == "pretrained":
        _refuse_adapter(request, folder)
    if not (folder / config_file.FILE).is_file():
        raise RequestError(
            f"{request.ref}: has no config.json, so it is no timm or transformers model"
        )
    config = config_file.read(folder, REMEDY)
    files = plain_weight_files(folder)
    stored: dict[str, tuple[int, ...]] = {}
    digest = None
    if files and request.weights == "pretrained":
        stored = {name: shape for file in files for name, shape in shapes(file).items()}
        if not stored:
            raise RequestError(
                f"{files[0]}: holds no tensors; take the file that holds the weights"
            )
        digest = digest_files(files)
    return _Directory(folder, config, hub_id or str(folder), files, stored, digest)


def _refuse_adapter(request: Request, folder: Path) -> None:
    """Refuse the directory of an adapter: without it the model is another one.

    Raises:
        RequestError: naming the adapter's file and the remedy.
    """
    for name in ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"):
        if (folder / name).is_file():
            raise RequestError(
                f"{request.ref}: has an adapter of peft ({name}), which pela would leave out; "
                "merge it into its model first: PeftModel.from_pretrained(…).merge_and_unload()"
                ".save_pretrained(DIR)"
            )


def _of_pela(request: Request, directory: _Directory) -> OpenModel:
    name = str(directory.config["pela_model"])
    library(name)  # refuses one that this version does not know
    adapter = own(name)
    with request.building():
        module = adapter.open_directory(
            directory.folder, random=request.weights == "random", num_classes=request.num_classes
        )
    opened = describe(request.ref, module, name, directory.origin(request), directory.folder)
    opened.carried = carried(directory.folder)
    return opened


def _of_timm(request: Request, directory: _Directory) -> OpenModel:
    from pelacli.models.timm import adapter as timm_adapter

    if request.weights == "pretrained" and not directory.files:
        raise RequestError(f"{request.ref}: has no safetensors weights; use --weights random")
    where = f"{directory.folder / config_file.FILE}: can't be built"
    with naming(where, REMEDY), request.building():
        module = timm_adapter.build(
            f"local-dir:{directory.folder}",
            num_classes=request.num_classes,
            model_args=request.model_args,
            weights=request.weights,
            file=_file_of_timm(request, directory) if request.weights == "pretrained" else None,
        )
    opened = describe(request.ref, module, "timm", directory.origin(request))
    opened.carried = carried(directory.folder)
    return opened


def _file_of_timm(request: Request, directory: _Directory) -> Path:
    """The file that holds the weights. timm would take a pickle before a file of another name, and
    any of several."""
    files = directory.files
    main = directory.folder / "model.safetensors"
    if main not in files and len(files) > 1:
        raise RequestError(
            f"{request.ref}: has {len(files)} files of weights ({files[0].name}, {files[1].name} …)"
            ", and timm reads one; name it model.safetensors"
        )
    return main if main in files else files[0]


def _of_transformers(request: Request, directory: _Directory) -> OpenModel:
    from pelacli.models.hf import adapter as hf_adapter

    lazily = None
    may_wait = request.weights == "pretrained" and request.num_classes is None
    if may_wait and _bytes_in_float32(directory) > request.lazy_above:
        lazily = hf_adapter.open_lazily(directory.folder, request.model_args)
    module, weights = lazily or (_filled_by_transformers(request, directory), None)
    opened = describe(
        request.ref, module, "transformers", directory.origin(request), directory.folder
    )
    opened.weights = weights
    opened.carried = carried(directory.folder, tokenizer_of(opened.inputs))
    return opened


def _bytes_in_float32(directory: _Directory) -> int:
    return sum(map(plain_reading.bytes_in_float32, directory.files))


def _filled_by_transformers(request: Request, directory: _Directory) -> nn.Module:
    from pelacli.models.hf import adapter as hf_adapter

    with request.building():
        return hf_adapter.open_directory(
            directory.folder,
            random=request.weights == "random",
            model_args=request.model_args,
            num_classes=request.num_classes,
        )
