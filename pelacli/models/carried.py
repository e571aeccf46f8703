"""Files that are carried from a model's directory into an artefact.

They are those that the model's own library reads beside the weights, by name. All else that lies
there is somebody's: checkpoints, logs, notebooks, the weights in other formats.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pelacli.console import warn
from pelacli.errors import RequestError

# What transformers' processors, tokenizers and generation read (transformers.utils: *_NAME,
# CHAT_TEMPLATE_*; VOCAB_FILES_NAMES of its tokenizers), and the terms that go with the weights.
_KNOWN = (
    "preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json",
    "audio_tokenizer_config.json", "generation_config.json",
    "tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.json", "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "vocab.txt", "vocab.json", "merges.txt", "*.tiktoken", "tekken.json", "tokenizer.model",
    "tokenizer.model.v*", "spiece.model", "spm.model", "spm_char.model", "sentencepiece.model",
    "sentencepiece.bpe.model", "source.spm", "target.spm", "target_vocab.json", "vocab-src.json",
    "vocab-tgt.json", "dict.txt", "bpe.codes", "byte_maps.json", "emoji.json",
    "entity_vocab.json", "normalizer.json", "prophetnet.tokenizer", "word_pronunciation.json",
    "word_shape.json",
    "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*",
)  # fmt: skip
_MODULES = "modules.json"  # says that the directory is a model of sentence-transformers
_OF_SENTENCES = (_MODULES, "config_sentence_transformers.json", "1_Pooling/config.json")
_LENGTHS = "sentence_*_config.json"  # how long its texts may be
_OF_MODULES = ("config.json", "model.safetensors")  # in the folder of each of its modules


def carried(directory: Path, tokenizer: Any = None) -> dict[str, bytes]:
    """The contents of the files that go along, by relative name.

    A link that leads out of the directory is not followed, except from a snapshot of the hub's
    cache, which consists of links; a note names it.

    Args:
        tokenizer: of the model, whose class may have further names for its files.

    Raises:
        RequestError: a file can't be read.
    """
    own_names = dict(getattr(tokenizer, "vocab_files_names", None) or {}).values()
    contents: dict[str, bytes] = {}
    for path in sorted({*_known_files(directory, own_names), *_files_of_modules(directory)}):
        name = path.relative_to(directory).as_posix()
        if not is_inside(directory, path):
            warn(f"{path}: is a link that leads out of the directory, and is not carried")
        elif name != "config.json":
            contents[name] = _read(path)
    return contents


def is_inside(directory: Path, path: Path) -> bool:
    """Whether a file lies in the directory, by way of links too. In the hub's cache, whose
    snapshots are links to the blobs beside them, it lies there with its repository."""
    root = directory.resolve()
    roots = [root, root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [root]
    return any(path.resolve().is_relative_to(one) for one in roots)


def module_folders(modules: Any) -> list[str]:
    """The folders below the directory that modules.json names."""
    rows = modules if isinstance(modules, list) else []
    paths = [PurePosixPath(str(row.get("path", ""))) for row in rows if isinstance(row, dict)]
    return [
        str(path)
        for path in paths
        if path.parts and not path.is_absolute() and ".." not in path.parts
    ]


def without_sentence_modules(contents: Mapping[str, bytes]) -> dict[str, bytes]:
    """The carried files of a model that is no sentence encoder any more. How long its texts may
    be stays."""
    try:
        folders = module_folders(json.loads(contents.get(_MODULES, b"[]")))
    except ValueError:
        folders = []
    in_folders = {f"{folder}/{file}" for folder in folders for file in _OF_MODULES}
    dropped = {*_OF_SENTENCES, *in_folders}
    return {name: content for name, content in contents.items() if name not in dropped}


def _known_files(directory: Path, own_names: Collection[str]) -> Iterator[Path]:
    patterns = (*_KNOWN, *_OF_SENTENCES, _LENGTHS)
    for path in [*directory.glob("*"), *directory.glob("*/*")]:
        name = path.relative_to(directory).as_posix()
        known = name in own_names or any(
            fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns
        )
        if known and path.is_file():
            yield path


def _files_of_modules(directory: Path) -> Iterator[Path]:
    try:
        modules = json.loads((directory / _MODULES).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # none, or damaged, which is said where they are applied
        return
    for folder in module_folders(modules):
        for file in _OF_MODULES:
            if (directory / folder / file).is_file():
                yield directory / folder / file


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path}: can't be read ({error.strerror}); mend it or move it"
        ) from None
