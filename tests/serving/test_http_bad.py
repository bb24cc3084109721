"""Whatever a client may send that is wrong: a 4xx with an OpenAI error object that says what and where. Never a 5xx."""

import asyncio
import dataclasses
import json
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_jax.serving.body import NoOps
from sla_jax.serving.messages import Message
from sla_jax.serving.settings import Limits
from tests.serving.asgi import call
from tests.serving.fake import MODEL, FakeService, fake_app

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
HELLO = {"messages": [{"role": "user", "content": "Hello?"}]}
SERVICE = FakeService(sync=True)
APP = fake_app(SERVICE)
JSON = {"content-type": "application/json"}
PATHS = APP.openapi()["paths"]
POSTS = sorted(path for path, methods in PATHS.items() if "requestBody" in methods.get("post", {}))


def refused(response, status: int = 400) -> dict[str, Any]:
    """The error object; asserts the status and that it is one."""
    assert response.status_code == status, response.text
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "x-request-id" in response.headers
    return error


# ---- bodies that are no JSON ----


def test_a_byte_order_mark_before_a_body_is_no_part_of_it():
    body = b'\xef\xbb\xbf{"prompt": "a", "max_tokens": 2}'
    assert call(APP, TEXT, content=body, headers={"content-type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "not valid JSON"),
        (b'{"prompt": "a", }', "not valid JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (b'{"prompt": "\xff"}', "not UTF-8"),
        (b'{"prompt": "a", "temperature": NaN}', "NaN is no JSON number"),
        (b'{"prompt": "a", "temperature": -Infinity}', "-Infinity is no JSON number"),
        (b'{"prompt": "a", "temperature": 1e999}', "too large"),
        (b'{"prompt": "a", "seed": ' + b"9" * 5000 + b"}", "not valid JSON"),
        (b'{"prompt": ' + b"[" * 30000 + b"]" * 30000 + b"}", "nested too deeply"),
        (b'{"prompt": "\\ud800"}', "surrogate"),
        (b'{"\\udfff": "a"}', "surrogate"),
        (b'{"prompt": "a", "prompt": "b"}', "stands there twice"),
        (b"", "JSON object"),
        (b"null", "JSON object"),
        (b"[]", "JSON object"),
        (b'"a"', "JSON object"),
    ],
)
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_malformed_bodies(path, body, said):
    assert said in refused(call(APP, path, content=body, headers=JSON))["message"]


def test_a_body_has_to_say_that_it_is_json():
    content = json.dumps({"prompt": "a"})
    assert (
        "text/plain"
        in refused(call(APP, TEXT, content=content, headers={"content-type": "text/plain"}), 415)["message"]
    )
    refused(call(APP, TEXT, content=content), 415)


def test_large_bodies_are_refused_with_and_without_a_length():
    app = fake_app(limits=Limits(body_bytes=1000))
    body = json.dumps({"prompt": "a" * 10_000_000}).encode()

    async def parts():
        for start in range(0, len(body), 500):
            yield body[start : start + 500]
            assert start < 2000, "it went on reading"

    assert "1000 bytes" in refused(call(app, TEXT, content=body, headers=JSON), 413)["message"]
    refused(call(app, TEXT, content=parts(), headers=JSON), 413)


def test_large_bodies_on_their_way_hold_a_bounded_memory_and_small_ones_pass():
    app, limit = fake_app(SERVICE, limits=Limits(body_bytes=2**17)), 2**17

    async def go() -> list[int]:
        go_on, statuses = asyncio.Event(), list[int]()

        async def parts():
            yield b" " * (limit - 9)
            await go_on.wait()
            yield b"{}"

        async def send(content: Any) -> int:
            answer = await client.post(TEXT, content=content, headers=JSON)
            statuses.append(answer.status_code)
            return answer.status_code

        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = [asyncio.ensure_future(send(parts())) for _ in range(40)]
            while len(statuses) < 8:
                await asyncio.sleep(0)
            assert statuses == [503] * 8, "there is room for the second halves of 32"
            assert await send(b'{"prompt": "a"}') == 200
            go_on.set()
            await asyncio.gather(*slow)
            assert await send(b" " * (limit - 20) + b'{"prompt": "a"}') == 200, "all of the room is free again"
        return statuses

    assert sorted(asyncio.run(go())) == [200] * 2 + [400] * 32 + [503] * 8


# ---- fields ----


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", ""),
        ("prompt", []),
        ("prompt", [""]),
        ("prompt", [[]]),
        ("prompt", None),
        ("prompt", 5),
        ("prompt", ["a", 5]),
        ("prompt", [5, [6]]),
        ("prompt", [-1]),
        ("prompt", [1.5]),
        ("prompt", [True]),
        ("prompt", [320]),
        ("prompt", [2**70]),
        ("prompt", "a " * 4000),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_tokens", 2**80),
        ("max_tokens", 256),
        ("max_tokens", 5.5),
        ("max_tokens", "5"),
        ("max_tokens", True),
        ("temperature", -0.1),
        ("temperature", 101),
        ("temperature", "hot"),
        ("top_p", 0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 2),
        ("n", 0),
        ("n", 17),
        ("n", 10**9),
        ("seed", 2**64),
        ("seed", 0.5),
        ("stop", "x" * 1000),
        ("stop", [""]),
        ("stop", ["x"] * 17),
        ("stop", 5),
        ("logprobs", 6),
        ("logprobs", 21),
        ("logprobs", True),
        ("logit_bias", {"320": 1}),
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"a": 1}),
        ("logit_bias", {"1": 101}),
        ("logit_bias", {str(token): 1 for token in range(301)}),
        ("logit_bias", [1]),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("min_tokens", 17),
        ("min_tokens", -1),
        ("echo", "yes"),
        ("stream", 1),
        ("stream_options", {"include_usage": True}),
        ("user", 5),
        ("model", 5),
        ("best_of", 2),
        ("suffix", "end"),
        ("response_format", {"type": "json_object"}),
        ("response_format", {"type": "text", "strict": 0}),
        ("store", "yes"),
        ("stop_token_ids", [320]),
        ("stop_token_ids", [5] * 9),
        ("stop_token_ids", 5),
        ("skip_special_tokens", "no"),
        ("search", "sla"),
        ("search", {"width": 0}),
        ("search", {"width": 3}),
        ("search", {"profile": "slow"}),
        ("search", {"profile": "sla", "width": 4}),
        ("search", {"return_tree": True}),
        ("search", {"depth": "1"}),
    ],
)
def test_wrong_values_name_their_field(field, value):
    error = refused(call(APP, TEXT, {"prompt": "a", field: value}))
    assert field in (error["param"] or error["message"])
    assert error["type"] == "invalid_request_error"
    assert SERVICE.reserved == 0


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": "Hello"},
        {"messages": [{"role": "user"}]},
        {"messages": [{"role": "wizard", "content": "a"}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "a"}]}]},
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"function": {"arguments": "{}"}}]}]},
        {"messages": [{"role": "assistant", "content": [{"type": "text", "refusal": "a"}]}]},
        {"messages": [{"role": "assistant", "audio": {"id": "a"}}]},
        {**HELLO, "top_logprobs": 2},
        {**HELLO, "logprobs": True, "top_logprobs": 6},
        {**HELLO, "max_tokens": 3, "max_completion_tokens": 4},
        {**HELLO, "max_completion_tokens": 0},
        {**HELLO, "max_completion_tokens": 250},
        {**HELLO, "tools": [{"type": "function"}]},
        {**HELLO, "tool_choice": "required"},
        {**HELLO, "echo": True},
    ],
)
def test_chats_that_are_wrong(body):
    refused(call(APP, CHAT, body))


def test_a_search_that_nobody_knows_is_named_with_what_was_perhaps_meant():
    error = refused(call(APP, CHAT, {**HELLO, "search": {"widht": 2}}))
    assert "Did you mean 'width'?" in error["message"]
    assert error["param"] == "search.widht"
    assert "snapshots" in refused(call(APP, CHAT, {**HELLO, "search": {"return_tree": True}}))["message"]


def test_long_prompts_name_both_numbers_and_are_not_cut():
    before = len(SERVICE.requests)
    error = refused(call(APP, TEXT, {"prompt": [5] * 300}))
    assert ("300" in error["message"], "256" in error["message"]) == (True, True)
    assert error["code"] == "context_length_exceeded"
    error = refused(call(APP, TEXT, {"prompt": [5] * 100, "max_tokens": 157}))
    assert all(number in error["message"] for number in ("100", "157", "256", "156"))
    refused(call(APP, TEXT, {"prompt": [[5], [5] * 300]}))
    assert len(SERVICE.requests) == before
    assert SERVICE.reserved == 0


def test_what_no_profile_serves_is_answered_with_the_list():
    error = refused(call(APP, TEXT, {"prompt": "a", "search": {"method": "sla", "width": 3}}))
    assert all(profile.name in error["message"] for profile in MODEL.profiles)
    assert "Did you mean 'sla'?" in refused(call(APP, TEXT, {"prompt": "a", "search": {"profile": "slaa"}}))["message"]
    body = {"prompt": "a", "model": "tiny:sla", "search": {"profile": "wide"}}
    assert "wide" in refused(call(APP, TEXT, body))["message"]
    error = refused(call(APP, TEXT, {"prompt": "a", "model": "tiny:slow"}), 404)
    assert error["code"] == "model_not_found"
    refused(call(APP, CHAT, {**HELLO, "model": "gpt-4"}), 404)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/rewards", {"prompt": "a"}),
        ("/v1/rewards", {"response": "a"}),
        ("/v1/rewards", {"prompt": "a", "response": ""}),
        ("/v1/rewards", {"prompt": "a", "response": "b", "token_ids": [1]}),
        ("/v1/rewards", {"prompt": "a", **HELLO, "response": "b"}),
        ("/v1/rewards", {"prompt": "a", "token_ids": [320]}),
        ("/v1/rewards", {"prompt": "a", "token_ids": []}),
        ("/v1/rewards", {"prompt": "a", "token_ids": [5] * 300}),
        ("/tokenize", {}),
        ("/tokenize", {"prompt": "a", **HELLO}),
        ("/detokenize", {"tokens": [320]}),
        ("/detokenize", {"tokens": "a"}),
        ("/abort_request", {}),
    ],
)
def test_the_other_routes(path, body):
    refused(call(APP, path, body))
    assert SERVICE.reserved == 0


def test_a_model_without_a_channel_has_no_rewards():
    app = fake_app(model=dataclasses.replace(MODEL, has_channel=False, profiles=MODEL.profiles[:1]))
    assert "no reward channel" in refused(call(app, "/v1/rewards", {"prompt": "a", "response": "b"}))["message"]
    body = {"prompt": "a", "search": {"return_rewards": True}}
    assert "no reward channel" in refused(call(app, TEXT, body))["message"]


# ---- paths, keys, load ----


def test_paths_and_methods_that_do_not_exist():
    assert "/v2/completions" in refused(call(APP, "/v2/completions"), 404)["message"]
    response = call(APP, TEXT, method="GET")
    assert "GET" in refused(response, 405)["message"]
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": "Bearer wrong"}, {"authorization": "secret-key"}, {"x-api-key": "ключ".encode()}],
)
def test_without_the_key_there_is_nothing_but_health(headers):
    app = fake_app(api_key="secret-key")
    for path in ("/v1/models", "/docs", "/openapi.json", "/version", "/nothing"):
        assert call(app, path, headers=headers).status_code == 401
    assert refused(call(app, TEXT, {"prompt": "a"}, headers=headers), 401)["code"] == "invalid_api_key"
    for path in ("/health", "/ready", "/ping", "/metrics"):
        assert call(app, path, headers=headers).status_code == 200


@pytest.mark.parametrize("headers", [{"authorization": "Bearer secret-key"}, {"x-api-key": "secret-key"}])
def test_with_the_key_there_is_everything(headers):
    app = fake_app(api_key="secret-key")
    assert call(app, TEXT, {"prompt": "a"}, headers=headers).status_code == 200
    assert call(app, "/openapi.json", headers=headers).json()["components"]["securitySchemes"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_full_queue_says_when_to_come_again(stream):
    service = FakeService()
    service.overloaded = True
    # the prompt is wrong as well: places come before tokens
    response = call(fake_app(service), TEXT, {"prompt": [319] * 300, "stream": stream})
    assert refused(response, 503)["code"] == "overloaded"
    assert response.headers["retry-after"] == "7"


def test_a_server_that_drains_takes_nothing_new():
    service = FakeService()
    service.state = "draining"
    assert refused(call(fake_app(service), CHAT, HELLO), 503)["code"] == "unavailable"


# ---- anything at all ----

NAMES = sorted(
    {name for schema in APP.openapi()["components"]["schemas"].values() for name in schema.get("properties", {})}
    | {*NoOps.model_fields, *Message.model_fields}
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["tiny", "sla", "text"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)
BODIES = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6)
STARTS = st.sampled_from([{}, {"prompt": "a"}, HELLO, {"prompt": "a", "response": "b"}, {"tokens": [5]}])


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=25)
@given(start=STARTS, body=BODIES | VALUES)
def test_random_json_never_breaks_anything(path, start, body):
    whole = {**start, **body} if isinstance(body, dict) else body
    response = call(APP, path, content=json.dumps(whole).encode(), headers=JSON)
    assert response.status_code < 500, (whole, response.text)
    assert response.status_code == 200 or set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert SERVICE.reserved == 0


@pytest.mark.parametrize("path", POSTS)
@settings(max_examples=15)
@given(body=st.binary(min_size=1, max_size=64))
def test_random_bytes_never_break_anything(path, body):
    refused(call(APP, path, content=body, headers=JSON))
