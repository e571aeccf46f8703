"""The model card of an artefact: what it is, what was done to it, how to load it."""

from __future__ import annotations

from pelacli.manifest.document import Manifest
from pelacli.messages import short_line
from pelacli.report import costs


def model_card(manifest: Manifest) -> str:
    """README.md of an artefact, in Markdown, with the table per kind of layer."""
    factorised = sum(layer.rank is not None for layer in manifest.layers)
    params = manifest.params
    lines = [
        "---",
        f"library_name: {manifest.library}",
        "tags: [pela, low-rank]",
        "---",
        "",
        f"# {short_line(manifest.source.name)}, made smaller by pela",
        "",
    ]
    if factorised:
        lines += [
            f"{factorised} of {len(manifest.layers)} linear layers are factorised: "
            f"{params.before:,} → {params.after:,} parameters "
            f"(ratio {params.after / params.before:.4f}).",
        ]
    else:
        lines += [f"Dense: {params.after:,} parameters."]
    lines += [
        "",
        "```python",
        "import pelacli",
        "",
        'model = pelacli.load("PATH")',
        "```",
        "",
        *_in_transformers(manifest),
        "## Layers",
        "",
        costs.kinds_markdown(manifest),
        "",
        "## History",
        "",
    ]
    for step in manifest.history:
        figures = ", ".join(
            f"{key} {short_line(value)}" if isinstance(value, str) else f"{key} {value:.4g}"
            for key, value in step.metrics.items()
            if isinstance(value, int | float | str) and not isinstance(value, bool)
        )
        lines.append(f"- {step.step} (seed {step.seed})" + (f": {figures}" if figures else ""))
    lines += ["", "The full record is in `pela.json`."]
    return "\n".join(lines) + "\n"


def _in_transformers(manifest: Manifest) -> list[str]:
    if manifest.library != "transformers":
        return []
    return ["After `import pelacli`, `from_pretrained` of transformers opens it too.", ""]
