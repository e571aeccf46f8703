"""The model card of an artefact: what it is, how good it is, how to load it, how it was made."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

from pelacli.manifest.document import Manifest, StepRecord
from pelacli.messages import short_line
from pelacli.recipe import toml_text
from pelacli.recipe.schema import Recipe
from pelacli.report import costs, summary
from pelacli.report.subject import Subject
from pelacli.report.tables import to_markdown

FILE = "README.md"


@dataclass(frozen=True)
class Reading:
    """How an artefact is read, as its card shows it.

    Attributes:
        name: what a reader calls it: a hub id, or a word that stands for a path.
        revision: of the hub's repository, where it is not the main one.
        class_name: of a model of transformers, as "BertForSequenceClassification".
        is_sentence_encoder: sentence-transformers reads it.
    """

    name: str = "PATH"
    revision: str | None = None
    class_name: str | None = None
    is_sentence_encoder: bool = False

    @property
    def arguments(self) -> str:
        """Of ``from_pretrained``."""
        return json.dumps(self.name) + (f', revision="{self.revision}"' if self.revision else "")


def reading_of(config: Mapping[str, Any], files: Sequence[str], **named: Any) -> Reading:
    """How an artefact is read, by its config.json and the names of its files.

    Args:
        named: ``name`` and ``revision``.
    """
    classes = config.get("architectures")
    known = isinstance(classes, list) and classes and str(classes[0]).isidentifier()
    class_name = str(classes[0]) if known and classes else None
    return Reading(class_name=class_name, is_sentence_encoder="modules.json" in files, **named)


def model_card(
    manifest: Manifest,
    reading: Reading,
    subject: Subject | None = None,
    base_model: str | None = None,
) -> str:
    """README.md of an artefact, in Markdown.

    Args:
        reading: for the snippets.
        subject: with what was measured of it; None: nothing was, so far.
        base_model: the hub's id of the dense model; None where the hub does not have it.
    """
    return "\n".join(
        [
            *_metadata(manifest, base_model),
            "",
            f"# {short_line(manifest.source.name)}, made smaller by pela",
            "",
            _size(manifest),
            "",
            *_figures(subject),
            *_snippets(manifest.library, reading),
            "## Layers",
            "",
            costs.kinds_markdown(manifest),
            "",
            *_how_it_was_made(manifest.history),
            "The full record is in `pela.json`.",
            "",
            *_licence(manifest.source.licence, manifest.source.name),
        ]
    )


def _metadata(manifest: Manifest, base_model: str | None) -> Iterator[str]:
    """What the hub reads, between two lines of dashes. JSON's texts are YAML's too."""
    yield "---"
    yield f"library_name: {manifest.library}"
    for key, value in manifest.source.licence.items():
        yield f"{key}: {json.dumps(value)}"
    if base_model:
        yield f"base_model: {json.dumps(base_model)}"
    yield "tags: [pela, low-rank]"
    yield "---"


def _size(manifest: Manifest) -> str:
    params = manifest.params
    factorised = sum(layer.rank is not None for layer in manifest.layers)
    if not factorised:
        return f"Dense: {params.after:,} parameters."
    return (
        f"{factorised} of {len(manifest.layers)} linear layers are factorised: "
        f"{params.before:,} → {params.after:,} parameters "
        f"(ratio {params.after / params.before:.4f})."
    )


def _figures(subject: Subject | None) -> list[str]:
    """The model beside its dense original, where it was measured."""
    if subject is None or not subject.evaluations:
        return []
    return [to_markdown(summary.rows_for_people([subject])), ""]


def _snippets(library: str, reading: Reading) -> Iterator[str]:
    """How each library that knows such models reads it."""
    name = f"{reading.name}@{reading.revision}" if reading.revision else reading.name
    build = ", model=YourClass()" if library == "torch" else ""
    yield from _python(f"model = pelacli.load({json.dumps(name)}{build})  # a torch module")
    if library == "transformers" and reading.class_name:
        yield from _python(
            f"model = {reading.class_name}.from_pretrained({reading.arguments})",
            imports=["from transformers import " + reading.class_name],
        )
    if reading.is_sentence_encoder:
        yield from _python(
            f"encoder = SentenceTransformer({reading.arguments})",
            imports=["from sentence_transformers import SentenceTransformer"],
        )


def _python(line: str, imports: Sequence[str] = ()) -> list[str]:
    # transformers, and what builds on it, knows the low-rank layers once pelacli is imported.
    known = "import pelacli" + ("  # so that low-rank layers are known" if imports else "")
    return ["```python", known, *imports, "", line, "```", ""]


def _how_it_was_made(history: Sequence[StepRecord]) -> Iterator[str]:
    yield "## How it was made"
    yield ""
    for step in history:
        figures = ", ".join(
            f"{key} {_prose(value)}" if isinstance(value, str) else f"{key} {value:.4g}"
            for key, value in step.metrics.items()
            if isinstance(value, int | float | str) and not isinstance(value, bool)
        )
        yield f"- {step.step} (seed {step.seed})" + (f": {figures}" if figures else "")
    yield ""
    recipe = _recipe(history[-1].recipe) if history else None
    if recipe is not None:
        steps = {step.step for step in history}
        yield f"`pela {'decompose' if steps == {'decompose'} else 'run'} recipe.toml`, with"
        yield from ("", "```toml", recipe.rstrip(), "```", "")


def _recipe(document: Mapping[str, Any]) -> str | None:
    """A recorded recipe as TOML, what is so by default left out; None where there is none that this
    version reads. Of paths of the machine the last part stays."""
    try:
        recipe = Recipe.model_validate(document)
    except ValueError:
        return None
    set_keys = recipe.model_dump(mode="json", exclude_defaults=True, exclude_none=True)
    return toml_text.of_document(_without_paths(set_keys))


def _without_paths(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_paths(item) for item in value]
    if isinstance(value, str) and value.startswith(("/", "~", "..")):
        return PurePath(value).name
    return value


def _licence(stated: Mapping[str, str], model: str) -> Iterator[str]:
    yield "## Licence"
    yield ""
    name, link = stated.get("license_name") or stated.get("license"), stated.get("license_link")
    if name is None:
        known = "which is not recorded here: look it up before you pass this on."
        yield f"That of {_prose(model)}, {known}"
    else:
        yield f"That of {_prose(model)}: {_prose(f'{name} ({link})' if link else name)}."
    yield ""


def _prose(text: str) -> str:
    """Anybody's words as text of one line, which Markdown would pass on as HTML."""
    return short_line(text).replace("<", "&lt;")
