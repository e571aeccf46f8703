"""A low-rank model without its pela.json: its ranks are read from its weights.

``save_pretrained`` of transformers and ``save_for_hf`` of timm write one of a module that
`pelacli.load` gave.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from pelacli.artefact.rebuilding import read_config, rebuild_dense
from pelacli.errors import RequestError
from pelacli.lowrank import find
from pelacli.manifest import digests
from pelacli.manifest.document import SourceRecord
from pelacli.models.directory import library_of
from pelacli.models.weight_files import StoredTensor, factor_ranks, shapes, ties
from pelacli.ranks.forms import Form


def layers_and_source(
    path: Path,
) -> tuple[dict[str, int], dict[str, Form], SourceRecord] | None:
    """The rank and the form of each low-rank layer that the weights of a directory hold, and what a
    manifest says of such a model; None where they hold none, or it is no model's directory.

    Raises:
        RequestError: weights or config.json are damaged.
    """
    files = digests.weight_files(path) if path.is_dir() else []
    stored = {name: shape for file in files for name, shape in shapes(file).items()}
    ranks = factor_ranks(stored)
    if not ranks or not (path / "config.json").is_file():
        return None
    config = read_config(path)
    library = library_of(config)
    if library is None:
        return None
    dense = find.linear_modules(rebuild_dense(path, library))
    ranks = {name: rank for name, rank in ranks.items() if name in dense}
    if not ranks:
        return None
    architecture = config.get("architecture") or next(iter(config.get("architectures") or []), None)
    # As `pelacli.manifest.lookup.input_digest` takes it of a directory without a record.
    digest = digests.digest_files(digests.plain_weight_files(path))
    forms: dict[str, Form] = {
        name: "pivots" if f"{name}.order" in stored else "factors" for name in ranks
    }
    return (
        ranks,
        forms,
        SourceRecord(
            model=str(path),
            library=library,
            architecture=architecture,
            weights="pretrained",
            digest=digest,
        ),
    )


def computed_tensors(path: Path, module: nn.Module) -> Iterator[StoredTensor]:
    """What transformers leaves out when it saves, since the model computes it whenever it is built
    (Marian's table of sines), for a low-rank module that is to be filled.

    Tensors that two builds don't agree about are random ones, and none of these.
    """
    stored = {name for file in digests.weight_files(path) for name in shapes(file)}
    first_of = ties(module)
    filled = stored | {first_of.get(name, name) for name in stored}
    patterns = getattr(module, "_keys_to_ignore_on_save", None) or ()
    names = [
        name
        for name in module.state_dict()
        if not {name, first_of.get(name, name)} & filled
        and any(re.search(p, name) for p in patterns)
    ]
    if not names:
        return
    from pelacli.models.hf import adapter

    with torch.random.fork_rng(devices=[]):
        config = adapter.read_config(path, {})
        one, other = (adapter.from_config(config).state_dict() for _ in range(2))
    for name in names:
        if torch.equal(one[name], other[name]):
            yield StoredTensor(path / "config.json", name, one[name])


def check_settings(ref: str, model_args: object, weights: str) -> None:
    """Refuse what could only be done to a model that is built anew.

    Raises:
        RequestError: naming the setting.
    """
    if model_args:
        raise RequestError(f"{ref}: is a low-rank model as it is; leave model_args out")
    if weights != "pretrained":
        raise RequestError(f"{ref}: is a low-rank model and has its weights; leave --weights out")
