"""preprocessor_config.json: how a model of transformers wants its images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pelacli.system import json_files

FILE = "preprocessor_config.json"
RESTORE = "put the file of the original model there"


def read(directory: Path | None) -> dict[str, Any]:
    """The settings in a directory; none where there is no such file.

    Raises:
        RequestError: the file is no JSON object.
    """
    if directory is None or not (directory / FILE).is_file():
        return {}
    return json_files.read_as(dict, directory / FILE, RESTORE)
