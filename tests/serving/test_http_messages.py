"""What a chat template gets of a chat: histories of every role, as transformers writes them, and variables."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from sla_jax.serving.messages import Message
from sla_jax.serving.settings import HttpRules, Profile
from sla_jax.text import chat_text
from tests.serving.asgi import call
from tests.serving.fake import MODEL, FakeService, decode, encode, fake_app
from tests.serving.test_http_bad import refused
from tests.tiny import CHATML, byte_level_tokenizer

CHAT = "/v1/chat/completions"
# as Qwen's and Hermes' templates do, with all that a message may have
TOOLS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}{% if m.name %} {{ m.name }}{% endif %}\n"
    "{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}"
    "{% if m.tool_call_id %}({{ m.tool_call_id }}){% endif %}"
    "{% for call in m.tool_calls %}<tool_call>{{ call | tojson }}{% for key in call.function.arguments %}{{ key }},"
    "{% endfor %}</tool_call>{% endfor %}"
    "{% if m.function_call %}{{ m.function_call.name }}{{ m.function_call.arguments | tojson }}{% endif %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# as DeepSeek's template does: it joins text to the arguments
JOINS = (
    "{% for m in messages %}{% for call in m.tool_calls %}"
    "{{ call.function.name + ' ' + call.function.arguments + '' }}{% endfor %}{% endfor %}"
)
PRINTS = JOINS.replace(" + ", " ~ ")
THINKING = CHATML + "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
TOKENIZER = byte_level_tokenizer(template=TOOLS)
WEATHER = {"name": "weather", "arguments": '{"city": "Köln", "days": [1, 2]}'}
HISTORY: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind.", "name": "house"},
    {"role": "user", "content": "How warm?", "name": "Bob"},
    {
        "role": "assistant",
        "content": None,
        "refusal": None,
        "audio": None,
        "annotations": [],
        "function_call": None,
        "reasoning_content": "I have to look.",
        "tool_calls": [
            {"id": "a", "type": "function", "function": WEATHER},
            {"id": "b", "type": "function", "function": {"name": "time", "arguments": ""}},
        ],
    },
    {"role": "tool", "content": "31", "tool_call_id": "a", "name": None},
    {"role": "tool", "content": "", "tool_call_id": "b"},
    {"role": "assistant", "content": "31 degrees.", "tool_calls": []},
    {"role": "assistant", "content": None, "tool_calls": None, "function_call": WEATHER},
    {"role": "function", "content": None, "name": "weather"},
    {"role": "user", "content": "Thanks."},
]


def as_objects(message: dict[str, Any]) -> dict[str, Any]:
    """A message as transformers' own documentation writes it: arguments are objects; an empty list is none."""

    def parsed(function: dict[str, Any]) -> dict[str, Any]:
        return {**function, "arguments": json.loads(function["arguments"] or "{}")}

    message = {key: value for key, value in message.items() if value not in (None, [])}
    if "function_call" in message:
        message["function_call"] = parsed(message["function_call"])
    if "tool_calls" in message:
        message["tool_calls"] = [{**call, "function": parsed(call["function"])} for call in message["tool_calls"]]
    return message


def prompt_of(messages: list[dict[str, Any]], tokenizer: Any = TOKENIZER, **body: Any) -> str:
    """What the model reads for a chat."""
    service = FakeService("Yes.", sync=True)
    model = dataclasses.replace(MODEL, context=4096)
    answer = call(
        fake_app(service, model=model, tokenizer=tokenizer), CHAT, {"messages": messages, "max_tokens": 2, **body}
    )
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers
    return str(tokenizer.decode(list(service.requests[0].prompt)))


def test_a_history_with_tools_is_written_as_transformers_writes_it():
    wanted = TOKENIZER.apply_chat_template(
        [as_objects(message) for message in HISTORY], tokenize=False, add_generation_prompt=True
    )
    assert prompt_of(HISTORY) == wanted
    assert "city,days,</tool_call>" in wanted and "None" not in wanted


TEXTS = st.text(max_size=5)
OBJECTS = st.dictionaries(TEXTS, st.none() | st.integers() | TEXTS | st.lists(TEXTS, max_size=2), max_size=3)
FUNCTIONS = st.fixed_dictionaries({"name": TEXTS, "arguments": OBJECTS.map(json.dumps)})
CALLS = st.fixed_dictionaries({"id": TEXTS, "type": st.just("function"), "function": FUNCTIONS})
NULLS = {name: st.none() for name in ("refusal", "audio", "function_call", "name")}
MESSAGES = st.one_of(
    st.fixed_dictionaries({"role": st.sampled_from(["system", "user"]), "content": TEXTS}, optional={"name": TEXTS}),
    st.fixed_dictionaries({"role": st.just("tool"), "content": TEXTS, "tool_call_id": TEXTS}, optional=NULLS),
    st.fixed_dictionaries(
        {"role": st.just("assistant")},
        optional={
            **NULLS,
            "content": st.none() | TEXTS,
            "annotations": st.none() | st.just([]),
            "reasoning_content": st.none() | TEXTS,
            "tool_calls": st.none() | st.lists(CALLS, max_size=2),
        },
    ),
)


@given(st.lists(MESSAGES, min_size=1, max_size=4))
def test_any_history_is_written_as_transformers_writes_it(history):
    turns = [Message.model_validate(message).turn() for message in history]
    wanted = TOKENIZER.apply_chat_template(
        [as_objects(message) for message in history], tokenize=False, add_generation_prompt=True
    )
    assert chat_text(TOKENIZER, turns) == wanted


def test_a_tool_may_say_nothing_and_an_empty_call_is_none():
    called = {"role": "assistant", "content": None, "tool_calls": [{"id": "a", "function": WEATHER}]}
    said = [{"role": "tool", "tool_call_id": "a", "content": content} for content in (None, "", [])]
    texts = {prompt_of([called, turn, {"role": "assistant", "content": "Hm.", "function_call": {}}]) for turn in said}
    assert len(texts) == 1
    assert prompt_of([called, said[0]]) == prompt_of([called, {"role": "tool", "tool_call_id": "a"}])


@pytest.mark.parametrize("template", [JOINS, PRINTS])
def test_arguments_are_text_to_a_template_that_joins_or_prints_them(template):
    said = WEATHER["arguments"]
    tokenizer = byte_level_tokenizer(template=template)
    assert prompt_of(HISTORY[:3], tokenizer) == f"weather {said}time {{}}"
    calls = [{"function": {"name": "weather", "arguments": json.loads(said)}}]
    assert prompt_of([{"role": "assistant", "tool_calls": calls}], tokenizer) == f"weather {said}"


@pytest.mark.parametrize("arguments", ["not JSON", "[1]", "7", "[" * 9999, {"city": "Köln"}])
def test_arguments_that_are_no_json_object_stay_as_they_are(arguments):
    calls = [{"id": "a", "type": "function", "function": {"name": "weather", "arguments": arguments}}]
    turn = Message.model_validate({"role": "assistant", "tool_calls": calls}).turn()
    assert turn == {"role": "assistant", "content": None, "tool_calls": calls}


def test_calls_of_other_kinds_stay_as_they_are():
    calls = [{"id": "a", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}]
    assert Message.model_validate({"role": "assistant", "tool_calls": calls}).turn()["tool_calls"] == calls


@pytest.mark.parametrize(
    ("message", "said"),
    [
        ({"content": None, "refusal": "No."}, {"content": "No."}),
        ({"content": "But", "refusal": "No."}, {"content": "But", "refusal": "No."}),
        (
            {"content": [{"type": "refusal", "refusal": "No.", "text": None}]},
            {"content": [{"type": "text", "text": "No."}]},
        ),
        ({"content": []}, {"content": []}),
        ({"content": None}, {"content": None}),
        ({}, {"content": None}),
        ({"content": "a", "reasoning": "b"}, {"content": "a", "reasoning": "b", "reasoning_content": "b"}),
        ({"content": "a", "annotations": [{"type": "url_citation"}]}, {"content": "a"}),
    ],
)
def test_what_an_assistant_may_have_said(message, said):
    assert Message.model_validate({"role": "assistant", **message}).turn() == {"role": "assistant", **said}


@pytest.mark.parametrize("kind", ["image_url", "input_audio", "file", "video_url", "audio", "tool_use"])
@pytest.mark.parametrize("role", ["user", "tool", "assistant"])
def test_a_part_that_is_no_text_is_refused_by_name(kind, role):
    part = {"type": kind, kind: {"url": "data:,"}}
    messages = [{"role": role, "tool_call_id": "a", "content": [{"type": "text", "text": "a"}, part]}]
    error = refused(call(fake_app(), CHAT, {"messages": messages}))
    assert (
        error["message"] == f"messages: parts of the type '{kind}' cannot be read; this server reads text and refusal."
    )
    assert error["param"] == "messages"


# ---- how a chat is written ----

HELLO = [{"role": "user", "content": "Hello?"}]
OFF = {"enable_thinking": False}


@pytest.mark.parametrize(
    ("profiles", "asked", "thinks"),
    [
        ({}, {}, True),
        ({}, {"chat_template_kwargs": OFF}, False),
        ({"template": OFF}, {}, False),
        ({"template": OFF}, {"chat_template_kwargs": None}, False),
        ({"template": OFF}, {"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"template": OFF}, {"chat_template_kwargs": {"other": [1, {"a": None}]}}, False),
    ],
)
def test_variables_of_the_template_reach_every_route(profiles, asked, thinks):
    service = FakeService("Yes.", sync=True)
    profile = Profile(name="greedy", method="greedy", chunk=4, slots=4, **profiles)
    model = dataclasses.replace(MODEL, profiles=(profile,))
    app = fake_app(service, model=model, tokenizer=byte_level_tokenizer(template=THINKING))
    read = call(app, "/tokenize", {"messages": HELLO, **asked}).json()["tokens"]
    assert call(app, CHAT, {"messages": HELLO, **asked}).status_code == 200
    assert list(service.requests[0].prompt) == read
    assert decode(read).endswith("assistant\n" if thinks else "</think>\n\n")
    rewards = call(app, "/v1/rewards", {"messages": HELLO, "token_ids": [5], **asked})
    assert rewards.status_code == 200, rewards.text
    assert list(service.inspections[0].tokens) == [*read, 5]


@pytest.mark.parametrize("name", ["messages", "tokenize", "add_generation_prompt", "continue_final_message"])
def test_a_variable_may_not_take_the_place_of_an_argument(name):
    app = fake_app(FakeService(sync=True))
    for path in (CHAT, "/tokenize"):
        error = refused(call(app, path, {"messages": HELLO, "chat_template_kwargs": {name: True}}))
        assert f"the template variable {name!r} is not free" in error["message"]


def test_a_variable_that_the_template_does_not_read_is_named_as_a_field_that_nobody_knows():
    tokenizer = byte_level_tokenizer(template=THINKING)
    body = {"messages": HELLO, "chat_template_kwargs": {"enable_thinking": False, "enable_thought": 1}}
    for path in (CHAT, "/tokenize", "/v1/rewards"):
        asked = {**body, "response": "a"} if path == "/v1/rewards" else body
        answer = call(fake_app(FakeService(sync=True), tokenizer=tokenizer), path, asked)
        assert answer.status_code == 200, answer.text
        assert answer.headers["x-ignored-fields"] == ("chat_template_kwargs.enable_thought")
        strict = fake_app(FakeService(sync=True), tokenizer=tokenizer, http=HttpRules(strict=True))
        assert refused(call(strict, path, asked))["param"] == "chat_template_kwargs.enable_thought"


def test_the_last_message_is_continued():
    history = [*HELLO, {"role": "assistant", "content": "Well,"}]
    tokenizer = byte_level_tokenizer()
    continued = prompt_of(history, tokenizer, continue_final_message=True)
    assert continued == tokenizer.apply_chat_template(history, tokenize=False, continue_final_message=True)
    assert continued.endswith("assistant\nWell,")
    assert prompt_of(history, tokenizer, continue_final_message=True, add_generation_prompt=False) == continued
    closed = prompt_of(history, tokenizer, add_generation_prompt=False)
    assert closed == tokenizer.apply_chat_template(history, tokenize=False)
    both = {"messages": history, "continue_final_message": True, "add_generation_prompt": True}
    assert "both true" in refused(call(fake_app(), CHAT, both))["message"]


def test_special_tokens_are_put_around_a_text_unless_not_wanted_and_around_a_chat_if_wanted():
    tokenizer = byte_level_tokenizer()
    start = processors.TemplateProcessing(single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)])
    tokenizer.backend_tokenizer.post_processor = start
    service = FakeService("Yes.", sync=True)
    app = fake_app(service, tokenizer=tokenizer)
    for asked, starts in (({}, [0]), ({"add_special_tokens": True}, [0]), ({"add_special_tokens": False}, [])):
        tokens = call(app, "/tokenize", {"prompt": "a", **asked}).json()["tokens"]
        assert tokens == [*starts, *encode("a")]
        assert call(app, "/v1/completions", {"prompt": "a", **asked}).status_code == 200
        assert list(service.requests[-1].prompt) == tokens
    for asked, starts in (({}, []), ({"add_special_tokens": True}, [0]), ({"add_special_tokens": False}, [])):
        assert call(app, CHAT, {"messages": HELLO, **asked}).status_code == 200
        assert list(service.requests[-1].prompt[: len(starts) + 1]) == [*starts, 1]
        assert call(app, "/tokenize", {"messages": HELLO, **asked}).json()["tokens"] == list(
            service.requests[-1].prompt
        )
