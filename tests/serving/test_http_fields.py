"""Fields: what asks for nothing is taken, null is absent, unknown names are told; what else a request may ask for."""

import json
import logging
import typing
from typing import Any

import openai.types.chat.completion_create_params as chat_params
import openai.types.completion_create_params as completion_params
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sla_jax.serving.body import NoOps
from sla_jax.serving.complaints import MAX_TOLD
from sla_jax.serving.schema import ChatBody, CompletionBody, RewardsBody, TokenizeBody
from sla_jax.serving.settings import HttpRules
from tests.serving.asgi import call, events
from tests.serving.fake import ANSWER, FakeService, decode, encode, fake_app
from tests.serving.test_http_bad import APP, CHAT, HELLO, POSTS, TEXT, refused

BODIES: dict[str, dict[str, Any]] = {
    TEXT: {"prompt": "a", "max_tokens": 2},
    CHAT: {**HELLO, "max_tokens": 2},
    "/v1/rewards": {"prompt": "a", "response": "b"},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [5]},
    "/abort_request": {"request_id": "a"},
    "/v1/generate": {"max_tokens": 2, "text_content": {"text": "a"}},
    "/generate": {"prompt": "a"},
    "/ck_generate": {"prompt": "a"},
    "/ck_check_reward_score": {"prompt": "a", "response": "b"},
}
STRICT = fake_app(FakeService(sync=True), http=HttpRules(strict=True))


def test_every_route_with_a_body_is_tried():
    assert set(BODIES) == set(POSTS)


# ---- what asks for nothing ----

# name → (a value beside null, false and empty that asks for nothing, one that asks for something)
VALUES: dict[str, tuple[list[Any], Any]] = {
    "tools": ([], [{"type": "function", "function": {"name": "f"}}]),
    "functions": ([], [{"name": "f"}]),
    "tool_choice": (["none", "auto"], "required"),
    "function_call": (["none", "auto"], {"name": "f"}),
    "response_format": ([{"type": "text"}, {"type": "text", "json_schema": None}], {"type": "json_object"}),
    "structured_outputs": (
        [{"json": None, "regex": "", "choice": [], "json_object": False}],
        {"json": {"type": "object"}, "regex": ""},
    ),
    "modalities": ([["text"]], ["text", "audio"]),
    "reasoning_effort": (["medium"], "high"),
    "verbosity": (["medium"], "low"),
    "length_penalty": ([1.0, 1], 1.5),
    "priority": ([0], 1),
    "suffix": ([], "end"),
    "audio": ([], {"voice": "alloy", "format": "wav"}),
    "prediction": ([], {"type": "content", "content": "a"}),
    "web_search_options": ([], {"search_context_size": "low"}),
    "use_beam_search": ([], True),
    "early_stopping": ([], True),
    "include_stop_str_in_output": ([], True),
    "prompt_logprobs": ([], 0),
    "truncate_prompt_tokens": ([], -1),
    "guided_json": ([], {"type": "object"}),
    "guided_regex": ([], "a*"),
    "regex": ([], "a*"),
    "ebnf": ([], "root ::= 'a'"),
    "lora_path": ([], "adapter"),
    "documents": ([], [{"text": "a"}]),
    "chat_template": ([], "{{ messages }}"),
    "cache_salt": ([], "salt"),
    "return_hidden_states": ([], True),
    "no_stop_trim": ([], True),
    "watermarking": ([], 5),
    "logprob_token_ids": ([], [5]),
    "repetition_detection": ([], {"max_pattern_size": 3}),
    "stream_interval": ([1], 5),
    "routed_experts_start_len": ([0], 5),
    "return_prompt_token_ids": ([], 5),
    "reasoning": ([{"effort": None}], {"effort": "high"}),
    "input_ids": ([], [5]),
}


@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/rewards", "/tokenize"])
@pytest.mark.parametrize("name", VALUES)
def test_a_field_is_taken_if_its_value_asks_for_nothing_and_else_refused_by_name(path, name):
    neutral, wanted = VALUES[name]
    for value in [None, False, [], {}, "", *neutral]:
        answer = call(APP, path, {**BODIES[path], name: value})
        assert answer.status_code == 200, (value, answer.text)
        assert "x-ignored-fields" not in answer.headers
    for value in [wanted, True if name != "use_beam_search" else 1]:
        error = refused(call(APP, path, {**BODIES[path], name: value}))
        assert error["message"].startswith(f"{name} is not honoured by this server; leave it out (it may only be null")
        assert error["param"] == name


HINTS = {
    "user": "me",
    "metadata": {"a": "b"},
    "store": True,
    "service_tier": "flex",
    "safety_identifier": "x",
    "prompt_cache_key": "x",
    "prompt_cache_retention": "24h",
    "parallel_tool_calls": False,
    "spaces_between_special_tokens": False,
    "request_id": "x",
    "rid": "x",
    "session_id": "x",
}


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_hints_that_change_no_answer_are_taken(path):
    plain, hinted = (call(APP, path, {**BODIES[path], **more}).json() for more in ({}, HINTS))
    assert hinted["choices"] == plain["choices"]


@pytest.mark.parametrize("model", [ChatBody, CompletionBody, RewardsBody, TokenizeBody])
@given(data=st.data())
def test_no_field_that_is_not_honoured_takes_a_number_or_a_word_that_it_does_not_know(model, data):
    known = {"none", "auto", "medium", 0, 1}
    names = [name for name, field in NoOps.model_fields.items() if field.annotation is Any]
    refused = [name for name in names if name in model.model_fields and model.model_fields[name].annotation is Any]
    name = data.draw(st.sampled_from(sorted(refused)))
    words = st.text(min_size=1).filter(lambda word: word not in known)
    value = data.draw(
        st.integers(min_value=2) | words | st.lists(words, min_size=2) | st.dictionaries(words, words, min_size=1)
    )
    with pytest.raises(ValidationError, match="may only be null") as error:
        model.model_validate({name: value})
    assert (name,) in [one["loc"] for one in error.value.errors()]


def test_what_goes_with_other_fields_asks_for_nothing_without_them():
    for options in (None, {}, {"include_usage": False}, {"include_obfuscation": False, "continuous_usage_stats": None}):
        for stream in (False, True):
            body = {**BODIES[CHAT], "stream": stream, "stream_options": options}
            assert call(APP, CHAT, body).status_code == 200
    body = {**BODIES[CHAT], "stream": True, "stream_options": {"include_obfuscation": True}}
    assert call(APP, CHAT, body).status_code == 200, "it is OpenAI's default and no part of an answer"
    body["stream_options"]["include_obfuscation"] = "always"
    assert refused(call(APP, CHAT, body))["message"].startswith("include_obfuscation is not honoured")
    assert call(APP, CHAT, {**BODIES[CHAT], "top_logprobs": 0, "echo": False, "best_of": 1}).status_code == 200
    assert refused(call(APP, CHAT, {**BODIES[CHAT], "echo": True}))["param"] == "echo"
    assert refused(call(APP, CHAT, {**BODIES[CHAT], "best_of": 2}))["param"] == "best_of"


@pytest.mark.parametrize("path", [TEXT, CHAT, "/generate", "/ck_generate"])
@pytest.mark.parametrize("stop", [None, "", []])
def test_no_stop_string_is_none(path, stop):
    assert call(APP, path, {**BODIES[path], "stop": stop}).status_code == 200


@pytest.mark.parametrize("path", [TEXT, CHAT, "/v1/rewards", "/tokenize", "/detokenize"])
def test_no_model_is_the_one_that_is_served(path):
    for name in (None, "", "tiny"):
        answer = call(APP, path, {**BODIES[path], "model": name})
        assert answer.status_code == 200 and answer.json().get("model", "tiny") == "tiny"
    assert refused(call(APP, path, {**BODIES[path], "model": "large"}), 404)["param"] == "model"


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_every_field_that_openai_documents_is_known(path):
    """All at once, as null, to a server that refuses what it does not know."""
    types = {TEXT: completion_params, CHAT: chat_params}[path]
    names = typing.get_type_hints(types.CompletionCreateParamsBase).keys() | {"stream"}
    known = (CompletionBody if path == TEXT else ChatBody).model_fields
    assert names <= known.keys()
    body = {**dict.fromkeys(names), **BODIES[path]}
    assert call(STRICT, path, body).status_code == 200


# ---- null ----


def schema_of(path: str) -> dict[str, Any]:
    """The schema of a route's body."""
    schema = APP.openapi()["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
    return APP.openapi()["components"]["schemas"][schema["$ref"].rpartition("/")[2]]


@pytest.mark.parametrize("path", POSTS)
def test_null_is_absent(path):
    """Every field at once, also of the objects within; and the schema says so."""
    schema = schema_of(path)
    optional = set(schema["properties"]) - set(schema["required"] if "required" in schema else [])
    assert all({"type": "null"} in schema["properties"][name]["anyOf"] for name in optional)
    assert "tools" not in optional, "what may not be asked for is not documented"
    more = NoOps.model_fields if {"metadata"} <= optional else {}
    nulls = dict.fromkeys({*optional, *more} - set(BODIES[path]))
    body = {**nulls, **BODIES[path]}
    if "stream_options" in nulls:
        searches = APP.openapi()["components"]["schemas"]["Search"]["properties"]
        options = APP.openapi()["components"]["schemas"]["StreamOptions"]["properties"]
        body |= {"search": dict.fromkeys(searches), "stream_options": dict.fromkeys(options)}
    answer = call(APP, path, body)
    assert answer.status_code == 200, answer.text
    assert "x-ignored-fields" not in answer.headers


def test_what_is_needed_may_not_be_null():
    assert "prompt is missing" in refused(call(APP, TEXT, {"prompt": None}))["message"]
    assert "messages is missing" in refused(call(APP, CHAT, {"messages": None}))["message"]
    error = refused(call(APP, CHAT, {"messages": [{"role": "user", "content": None}]}))
    assert error["message"] == "messages: a message of the role 'user' needs a content."


# ---- names that nobody knows ----


@pytest.mark.parametrize("path", POSTS)
def test_a_field_that_nobody_knows_is_ignored_and_named(path):
    answer = call(APP, path, {**BODIES[path], "temperatur": 1, "x": {"search": {"widht": 2}}})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ignored-fields"] == "temperatur,x"
    assert "x-ignored-fields" not in call(APP, path, BODIES[path]).headers
    error = refused(call(STRICT, path, {**BODIES[path], "temperatur": 1}))
    assert (error["param"], "is not a field that this server honours" in error["message"]) == ("temperatur", True)
    assert call(STRICT, path, BODIES[path]).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_a_field_that_nobody_knows_and_that_is_null_is_absent(path):
    """openai's types and pydantic's dumps are full of them: a text part has image_url null beside its text."""
    for app in (APP, STRICT):
        answer = call(app, path, {**BODIES[path], "temperatur": None})
        assert answer.status_code == 200, answer.text
        assert "x-ignored-fields" not in answer.headers


def test_null_is_absent_on_messages_and_parts_of_a_strict_server_too():
    part = {"type": "text", "text": "Hi", "refusal": None, "image_url": None, "input_audio": None, "file": None}
    for role in ("system", "developer", "user", "assistant", "tool", "function"):
        messages = [HELLO["messages"][0], {"role": role, "content": [part], "weird": None}]
        answer = call(STRICT, CHAT, {**HELLO, "messages": messages, "max_tokens": 2})
        assert answer.status_code == 200, answer.text
        assert "x-ignored-fields" not in answer.headers


def test_a_body_that_is_no_object_has_no_fields():
    for app in (APP, STRICT):
        answer = call(app, TEXT, [{"temperatur": 1}])
        assert refused(answer)["message"] == "the body has to be a JSON object."
        assert "x-ignored-fields" not in answer.headers


def test_a_strict_server_names_what_was_perhaps_meant():
    assert "Did you mean 'temperature'?" in refused(call(STRICT, TEXT, {"prompt": "a", "temperatur": 1}))["message"]
    error = refused(call(STRICT, CHAT, {"messages": [HELLO["messages"][0], {"role": "user", "contents": "a"}]}))
    assert (error["param"], "Did you mean 'content'?" in error["message"]) == ("messages.1.contents", True)
    assert APP.openapi()["components"]["schemas"]["Search"]["additionalProperties"] is False


@pytest.mark.parametrize("stream", [False, True])
def test_names_on_messages_and_their_parts_are_told_without_their_places(stream):
    part = {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}}
    messages = [{"role": "user", "content": [part, part], "id": 1}, {"role": "assistant", "content": "a", "id": 2}]
    body = {"messages": messages, "stream": stream, "stream_options": {"include": True}}
    answer = call(fake_app(cors=("*",)), CHAT, body, headers={"origin": "https://page.example"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-ignored-fields"] == "messages.content.cache_control,messages.id,stream_options.include"
    assert "x-ignored-fields" in answer.headers["access-control-expose-headers"]


def test_an_error_names_them_too():
    answer = call(APP, TEXT, {"prompt": "a", "temperatur": 1, "n": 0})
    assert (refused(answer)["param"], answer.headers["x-ignored-fields"]) == ("n", "temperatur")


def test_each_name_is_logged_once_and_only_so_many_are_remembered(caplog):
    app = fake_app(FakeService(sync=True))
    for _ in range(2):
        call(app, "/tokenize", {"prompt": "a", "one": 1, "two\n": 2})
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert told == [
        f"requests have the field {name}, which this server does not know and ignores" for name in ("one", "two?")
    ]
    for start in range(0, MAX_TOLD + 100, 20):
        call(app, "/tokenize", {"prompt": "a", **{f"n{start + i}": 1 for i in range(20)}})
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == MAX_TOLD


@given(st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=90), st.just(""), max_size=60))
def test_names_that_clients_choose_make_a_header_that_is_plain_and_short(names):
    names = {name: value for name, value in names.items() if name not in ("prompt", "messages", "model")}
    content = json.dumps({"prompt": "a", **names}).encode()
    answer = call(APP, "/tokenize", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 200
    told = answer.headers.get("x-ignored-fields", "")
    assert len(told) <= 32 * 65 and told.replace("?", "").replace(",", "").replace("-", "").replace(".", "").isascii()
    unknown = [name for name in names if name not in TokenizeBody.model_fields]
    assert len([name for name in told.split(",") if name]) <= min(32, len(unknown))
    assert bool(told) == bool(unknown)


# ---- what else a request may ask for ----


def test_stop_token_ids_end_the_answer_too_and_have_no_text():
    service = FakeService(sync=True)
    tokens = encode(ANSWER)
    for more, ends in (({}, (2, tokens[5])), ({"ignore_eos": True}, (tokens[5],))):
        body = {
            "prompt": "a",
            "max_tokens": 3,
            "stop_token_ids": [tokens[5], 2, tokens[5]][: 3 if not more else 1],
            **more,
        }
        assert call(fake_app(service), TEXT, body).status_code == 200
        assert service.requests[-1].ends == ends


@pytest.mark.parametrize("stream", [False, True])
def test_the_token_that_an_answer_was_to_stop_at_is_counted_and_not_said(stream):
    service = FakeService("One. Two", sync=True)
    stop = encode(".")[0]
    body = {"prompt": "a", "max_tokens": 99, "stop_token_ids": [stop], "ignore_eos": True, "stream": stream}
    body |= {"return_token_ids": True}
    service.text = "One"  # what the engine said before it; the script then says the first of the end tokens
    answer = call(fake_app(service), TEXT, body)
    choices = [chunk["choices"][0] for chunk in events(answer)] if stream else answer.json()["choices"]
    assert "".join(choice["text"] for choice in choices) == "One"
    assert [token for choice in choices for token in choice["token_ids"]] == [*encode("One"), stop]
    assert choices[-1]["finish_reason"] == "stop"


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_special_tokens_are_spelled_on_request(path):
    service = FakeService("a<|im_start|>b", sync=True)
    body = {**BODIES[path], "max_tokens": 99}
    for skip, said in ((None, "ab"), (True, "ab"), (False, "a<|im_start|>b<|im_end|>")):
        choice = call(fake_app(service), path, {**body, "skip_special_tokens": skip}).json()["choices"][0]
        assert (choice["text"] if path == TEXT else choice["message"]["content"]) == said
    assert decode(encode(service.text)) == "ab"


def test_the_original_servers_routes_have_them_too():
    service = FakeService("a<|im_start|>b", sync=True)
    body = {"prompt": "p", "stop_token_ids": [7], "skip_special_tokens": False, "top_k": -1, "temperature": 0}
    assert call(fake_app(service), "/generate", body).json() == {"text": ["pa<|im_start|>b<|im_end|>"]}
    assert service.requests[0].ends == (2, 7)


def test_every_chunk_has_a_usage_on_request():
    options = {"include_usage": True, "continuous_usage_stats": True}
    body = {"prompt": "a", "max_tokens": 9, "stream": True, "stream_options": options}
    *chunks, last = [chunk["usage"] for chunk in events(call(APP, TEXT, body))]
    assert [usage["completion_tokens"] for usage in chunks] == [1, 4, 8, 9]
    assert last == chunks[-1]
    assert refused(call(APP, TEXT, {**body, "stream": False}))["param"] == "stream_options"


@pytest.mark.parametrize("top_k", [-1, 0, None])
def test_top_k_of_minus_one_is_all(top_k):
    service = FakeService(sync=True)
    assert call(fake_app(service), TEXT, {"prompt": "a", "temperature": 1, "top_k": top_k}).status_code == 200
    assert service.requests[0].sampling.top_k == 0
