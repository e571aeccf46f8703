"""Conversations become texts by the tokenizer's chat template, in the forms that people have."""

from __future__ import annotations

import json

import pytest
from generated_text import tokenizer, write

from pelacli.data.formats.chat import Chat
from pelacli.data.formats.text import open_texts
from pelacli.errors import RequestError

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} . {% endfor %}"
USER, ANSWER = {"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}
FORMS = {
    "messages": {"messages": [USER, ANSWER]},
    "ShareGPT": {"conversations": [{"from": "human", "value": "w1"},
                                   {"from": "gpt", "value": "w2"}]},
    "prompt and completion": {"prompt": "w1", "completion": "w2"},
    "lists of messages": {"prompt": [USER], "completion": [ANSWER]},
    "beside a prompt": {"prompt": "w0", "messages": [USER, ANSWER]},
    "parts": {"messages": [{"role": "user", "content": [{"type": "text", "text": "w1"}]}, ANSWER]},
}  # fmt: skip


def chat(template=TEMPLATE, **names):
    made = tokenizer(decoder=True)
    made.chat_template = template
    for name, token in names.items():
        setattr(made, name, token)
    return Chat(made)


@pytest.mark.parametrize("form", FORMS)
def test_a_conversation_is_what_the_template_makes_of_it(tmp_path, form):
    file = write(tmp_path / "a.jsonl", [FORMS[form]])
    texts = open_texts(str(file), "train", unlabelled=True, chat=chat())
    assert texts[0] == ("user: w1 . assistant: w2 . ", None)


@pytest.mark.parametrize("form", FORMS)
def test_without_a_template_conversations_are_refused(tmp_path, form):
    file = write(tmp_path / "a.jsonl", [FORMS[form]])
    with pytest.raises(RequestError, match=r"a.jsonl: conversations .* need a chat template"):
        open_texts(str(file), "train", chat=chat(None))


def test_a_column_of_plain_text_comes_first(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"text": "w5", "messages": [USER]}])
    assert open_texts(str(file), "train", chat=chat())[0] == ("w5", None)


BAD = {
    "no content": ([{"role": "user"}], "line 1, message 1: needs role and content"),
    "a text": ("hello", "line 1: is no conversation"),
    "nothing": ([], "line 1: is no conversation"),
    "texts": (["hello"], "line 1, message 1: is no message"),
    "an image": ([{"role": "user", "content": [{"type": "image"}]}], "message 1: needs role"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_conversation_is_named_by_its_line(tmp_path, case):
    messages, says = BAD[case]
    texts = open_texts(str(write(tmp_path / "a.jsonl", [{"messages": messages}])), "train",
                       chat=chat())  # fmt: skip
    with pytest.raises(RequestError, match=says):
        texts[0]


def test_what_the_template_refuses_is_named_by_its_line(tmp_path):
    file = write(tmp_path / "a.jsonl", [{"messages": [USER]}])
    strict = chat("{{ raise_exception('roles must alternate') }}")
    with pytest.raises(RequestError, match=r"line 1: the chat template .*: roles must alternate"):
        open_texts(str(file), "train", chat=strict)[0]


def test_the_token_that_begins_a_text_is_there_once():
    made = chat("{{ bos_token }} {{ messages[0]['content'] }}")
    made.tokenizer.bos_token = "[CLS]"
    assert made.text([[USER]], "x") == "[CLS] w1"  # the tokenizer adds none
    encoder = tokenizer()
    encoder.bos_token, encoder.chat_template = "[CLS]", made.tokenizer.chat_template
    assert Chat(encoder).text([[USER]], "x") == " w1"


def test_language_models_are_judged_on_conversations(pela, here):
    from generated_text import save_model

    save_model("gpt2", "CausalLM", here / "model")
    config = json.loads((here / "model" / "tokenizer_config.json").read_text())
    config["chat_template"] = TEMPLATE
    (here / "model" / "tokenizer_config.json").write_text(json.dumps(config))
    write(here / "a.jsonl", [FORMS["messages"]] * 4)
    code, out, err = pela("eval", "./model", "--data", "a.jsonl", "--task", "language-modelling",
                          "--json", "--no-latency")  # fmt: skip
    assert code == 0, err
    assert json.loads(out)[0]["metrics"]["perplexity"] > 1
