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
from pelacli.system import own_files
from pelacli.system.own_files import is_inside

# What transformers' processors, tokenizers and generation read (transformers.utils: *_NAME,
# CHAT_TEMPLATE_*; VOCAB_FILES_NAMES of its tokenizers).
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
)  # fmt: skip
_TERMS = ("LICENSE*", "LICENCE*", "NOTICE*", "COPYING*", "USE_POLICY*")
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
_MODULES = "modules.json"  # says that the directory is a model of sentence-transformers
_OF_SENTENCES = (_MODULES, "config_sentence_transformers.json", "1_Pooling/config.json")
_LENGTHS = "sentence_*_config.json"  # how long its texts may be
_OF_MODULES = ("config.json", "model.safetensors")  # in the folder of each of its modules


# What may be carried, whatever the model is.
PATTERNS = (*_KNOWN, *_TERMS, *_OF_SENTENCES, _LENGTHS)


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


def check_read_files(directory: Path) -> None:
    """Refuse a directory one of whose files is none of it, of those that are read when its model is
    opened. What is only carried along, such as a licence, is left out there.

    Raises:
        RequestError: a link leads out of the directory, or a name is that of a pipe.
    """
    patterns = ("config.json", *_WEIGHTS, *_KNOWN, *_OF_SENTENCES, _LENGTHS)
    for path in sorted({*_named(directory, patterns), *_files_of_modules(directory)}):
        is_link_to_nothing = path.is_symlink() and not path.exists()
        is_needed = any(fnmatchcase(path.name, pattern) for pattern in _WEIGHTS)
        if is_needed or not (is_link_to_nothing or path.is_dir()):
            own_files.check(directory, path)


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
    except (ValueError, RecursionError):
        folders = []
    in_folders = {f"{folder}/{file}" for folder in folders for file in _OF_MODULES}
    dropped = {*_OF_SENTENCES, *in_folders}
    return {name: content for name, content in contents.items() if name not in dropped}


def _known_files(directory: Path, own_names: Collection[str]) -> Iterator[Path]:
    named = _named(directory, (*PATTERNS, *own_names))
    return (path for path in named if path.is_file())


def _named(directory: Path, patterns: Collection[str]) -> Iterator[Path]:
    """What lies in a directory, or in one of its folders, under a name that one of the patterns
    matches."""
    folders = [path for path in directory.iterdir() if path.is_dir() and is_inside(directory, path)]
    for path in [*directory.iterdir(), *(path for folder in folders for path in folder.iterdir())]:
        name = path.relative_to(directory).as_posix()
        if any(fnmatchcase(name, p) and name.count("/") == p.count("/") for p in patterns):
            yield path


def _files_of_modules(directory: Path) -> Iterator[Path]:
    file = directory / _MODULES
    if not file.is_file() or not is_inside(directory, file):
        return
    try:
        modules = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # which is said where they are applied
        return
    for folder in module_folders(modules):
        for name in _OF_MODULES:
            if (directory / folder / name).is_file():
                yield directory / folder / name


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise RequestError(
            f"{path}: can't be read ({error.strerror}); mend it or move it"
        ) from None
