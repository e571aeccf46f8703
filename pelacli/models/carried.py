"""Files that are carried from a model's directory into an artefact."""

from __future__ import annotations

from pathlib import Path

_CARRIED = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_NOT_CARRIED = {"config.json", "pela.json"}
_CARRY_LIMIT = 64 * 2**20  # bytes; anything larger is data, not configuration


def carried(directory: Path) -> dict[str, bytes]:
    """Processors, tokenizers and the like: the small files beside the weights."""
    contents = {}
    for path in sorted([*directory.glob("*"), *directory.glob("*/*")]):
        name = path.relative_to(directory).as_posix()
        if (
            path.suffix in _CARRIED
            and path.is_file()
            and name not in _NOT_CARRIED
            and not name.endswith(".index.json")
            and not any(part.startswith(".") for part in Path(name).parts)
            and path.stat().st_size <= _CARRY_LIMIT
        ):
            contents[name] = path.read_bytes()
    return contents
