"""Three directives of the site: ``pela-commands``, every command with its options;
``pela-recipe-keys``, every key of a recipe; ``pela-task-settings``, every task's settings. They
read the code, so that the pages can't be stale."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_args

import typer
from docutils import nodes
from pydantic.fields import FieldInfo
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from pelacli.cli.app import make_app
from pelacli.recipe.keys import Key
from pelacli.recipe.schema import sections
from pelacli.tasks import registry


def commands() -> str:
    """Every command of ``pela`` with its arguments and options, as Markdown."""
    app = typer.main.get_command(make_app())
    return "\n\n".join(_command(app, "pela"))


def recipe_keys() -> str:
    """Every key of a recipe with its default and meaning, as Markdown. Sections with the same keys
    are shown together, where the first of them stands."""
    known = sections()
    alike: dict[tuple[int, ...], list[Key]] = defaultdict(list)
    for at, fields in known.items():
        alike[tuple(map(id, fields.values()))].append(at)
    return "\n\n".join(part for keys in alike.values() for part in _section(keys, known))


def task_settings() -> str:
    """Every task's settings, as Markdown."""
    parts = []
    for name in registry.names():
        fields = type(registry.get(name)).model_fields
        rows = [_key_row(key, field) for key, field in fields.items()]
        parts += [f"### `{name}`", _table(rows) if rows else "It has no settings."]
    return "\n\n".join(parts)


def _section(keys: list[Key], known: Mapping[Key, Mapping[str, FieldInfo]]) -> Iterator[str]:
    yield f"### {', '.join(map(_name, keys))}" if keys[0] else "### At the top"
    first = keys[0]
    inner = [key for key in known[first] if (*first, key) in known]
    rows = [_key_row(key, field) for key, field in known[first].items() if key not in inner]
    yield _table(rows)
    if inner:
        yield f"Sections below: {', '.join(_name((*first, key)) for key in inner)}."


def _name(at: Key) -> str:
    return f"`[{'.'.join(at)}]`"


def _table(rows: list[str]) -> str:
    return "| key | default | is |\n|---|---|---|\n" + "\n".join(rows)


def _command(command: Any, name: str) -> Iterator[str]:
    children = getattr(command, "commands", None)
    if children:
        for child, inner in children.items():
            yield from _command(inner, f"{name} {child}")
        return
    yield f"## `{name}`"
    yield str(command.help).strip()
    if command.epilog:
        _, *typed = command.epilog.splitlines()
        yield "\n".join(["```sh", *(line.removeprefix("$ ") for line in typed), "```"])
    groups: dict[str, list[str]] = defaultdict(list)
    for parameter in filter(_help, command.params):
        groups[_group(parameter)].append(_option_row(parameter))
    for title, rows in groups.items():
        yield f"| {title} | |\n|---|---|\n" + "\n".join(rows)


def _group(parameter: Any) -> str:
    """The title under which a command's help shows a parameter."""
    kind = "Arguments" if parameter.param_type_name == "argument" else "Options"
    return getattr(parameter, "rich_help_panel", None) or kind


def _help(parameter: Any) -> str:
    return getattr(parameter, "help", None) or ""


def _option_row(parameter: Any) -> str:
    names = [*parameter.opts, *parameter.secondary_opts]
    value = parameter.metavar or ""
    if parameter.param_type_name == "argument":
        names, value = [value], ""
    typed = [f"`{name} {value}`" if value else f"`{name}`" for name in names]
    return f"| {', '.join(typed)} | {_cell(_help(parameter))} |"


def _key_row(key: str, field: FieldInfo) -> str:
    if field.is_required():
        default = "required"
    elif field.default is None:
        default = "unset"
    else:
        default = f"`{_toml(field.default)}`"
    choices = _choices(field.annotation)
    meaning = field.description or ""
    if choices:
        meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    return f"| `{key}` | {default} | {_cell(meaning)} |"


def _choices(annotation: Any) -> list[str]:
    """The texts that a key may be, where it may be no others."""
    parts = [part for part in get_args(annotation) if part is not type(None)]
    texts = [part for part in parts if isinstance(part, str)]
    return texts if texts and len(texts) == len(parts) else []


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def _cell(text: str) -> str:
    """Text of a table's cell: in one line, no bars, and nothing that Markdown takes for markup."""
    return re.sub(r"([|*<_])", r"\\\1", " ".join(text.split()))


def _directive(text: Callable[[], str]) -> type[SphinxDirective]:
    """A directive that stands for some Markdown."""

    class Generated(SphinxDirective):
        def run(self) -> list[nodes.Node]:
            return self.parse_text_to_nodes(text(), allow_section_headings=True)

    return Generated


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.add_directive("pela-commands", _directive(commands))
    app.add_directive("pela-recipe-keys", _directive(recipe_keys))
    app.add_directive("pela-task-settings", _directive(task_settings))
    return {"parallel_read_safe": True}
