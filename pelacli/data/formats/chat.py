"""Conversations as texts, through the chat template of a tokenizer.

Read are ``messages`` (a list of ``{"role", "content"}``), ``conversations`` (the same, or
ShareGPT's ``{"from", "value"}``), and ``prompt`` with ``completion`` (each a text, or a list of
messages).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pelacli.errors import RequestError
from pelacli.messages import one_line

COLUMNS = (("messages",), ("conversations",), ("conversation",), ("prompt", "completion"))
_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "chatgpt": "assistant"}


@dataclass(frozen=True)
class Chat:
    """Conversations → the texts that a model was trained on."""

    tokenizer: Any

    def check(self, origin: str, columns: Sequence[str]) -> None:
        """Refuse conversations where the tokenizer has no template for them."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise RequestError(
                f"{origin}: conversations ({' and '.join(columns)}) need a chat template, and the "
                "model's tokenizer has none: take the model's chat version, put its "
                "chat_template.jinja beside the tokenizer, or name a column of plain text in "
                "task_args.text"
            )

    def text(self, fields: Sequence[Any], where: str) -> str:
        """The conversation of a row.

        Args:
            fields: of one of `COLUMNS`.

        Raises:
            RequestError: it is no conversation, or none that the template takes.
        """
        messages = (
            _messages(fields[0], where)
            if len(fields) == 1
            else _turn(fields[0], "user", where) + _turn(fields[1], "assistant", where)
        )
        try:
            text = str(self.tokenizer.apply_chat_template(messages, tokenize=False))
        except Exception as error:  # jinja's, or what a template raises itself
            raise RequestError(
                f"{where}: the chat template does not take the conversation: {one_line(error)}"
            ) from None
        # The template writes the token that begins a text, and the tokenizer adds it once more.
        start = self.tokenizer.bos_token
        own = self.tokenizer("")["input_ids"][:1] == [self.tokenizer.bos_token_id]
        return text.removeprefix(start) if start and own else text


def _turn(field: Any, role: str, where: str) -> list[dict[str, Any]]:
    if isinstance(field, str):
        return [{"role": role, "content": field}]
    return _messages(field, where)


def _messages(field: Any, where: str) -> list[dict[str, Any]]:
    """The messages in transformers' words."""
    if isinstance(field, Mapping):  # older hub datasets keep a list for each key
        field = [dict(zip(field, one, strict=True)) for one in zip(*field.values(), strict=True)]
    if not isinstance(field, list) or not field:
        raise RequestError(f"{where}: is no conversation; a list of messages is one")
    return [_message(one, f"{where}, message {number}") for number, one in enumerate(field, 1)]


def _message(message: Any, where: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise RequestError(f"{where}: is no message; an object with role and content is one")
    role = message.get("role", message.get("from"))
    content = message.get("content", message.get("value"))
    if isinstance(content, list) and all(_is_text(part) for part in content):
        content = "\n".join(part["text"] for part in content)
    if content is None and message.get("tool_calls"):
        content = ""
    if not isinstance(role, str) or not isinstance(content, str):
        raise RequestError(
            f"{where}: needs role and content as texts (or from and value); it has "
            f"{', '.join(map(str, message)) or 'nothing'}"
        )
    rest = {key: message[key] for key in ("tool_calls", "name") if message.get(key)}
    return {"role": _ROLES.get(role, role), "content": content, **rest}


def _is_text(part: Any) -> bool:
    return (
        isinstance(part, Mapping)
        and part.get("type") == "text"
        and isinstance(part.get("text"), str)
    )
