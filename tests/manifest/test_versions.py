"""Versions of what ran."""

import json
import subprocess
import sys

from pelacli.version import __version__


def test_versions_are_told_without_an_import():
    code = (
        "import sys, json; from pelacli.manifest.versions import versions; v = versions()\n"
        "print(json.dumps([v, [m for m in ('torch', 'timm', 'transformers') if m in sys.modules]]))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    versions, imported = json.loads(out.stdout)
    assert imported == []
    assert versions["pelacli"] == __version__
    assert versions["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"torch", "timm", "transformers", "safetensors", "accelerate"} <= versions.keys()
