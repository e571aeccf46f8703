"""Artefacts as older versions wrote them."""

from __future__ import annotations

import json
from pathlib import Path

from pelacli.manifest import document


def forget_digests(artefact: Path) -> None:
    """Take the digests of an artefact's files out of its manifest."""
    file = artefact / document.FILE
    content = json.loads(file.read_text(encoding="utf-8"))
    del content["files"], content["digest"]
    file.write_text(json.dumps(content), encoding="utf-8")
