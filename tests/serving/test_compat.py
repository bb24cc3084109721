"""JetStream's HTTP API and the original SLA server's, as hand-written clients of them see us."""

import asyncio
import dataclasses
import json
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Event
from tests.serving.scripted import BUSY, CLOSED, CONFIG, END, INFO, TOKENIZER, Scripted, ids, says

CK = {"prompt": "Once", "stream": True, "temperature": 1.0, "max_tokens": 32}
SEARCH = {
    **CK,
    "ck_mode": "StreamingTreeSearch",
    "ck_n": 2,
    "ck_k": 10,
    "ck_d": 2,
    "ck_length_penalty": 1,
    "stop": ["<|im_end|>", "<|eot_id|>"],
}


def app_of(service: Scripted, *, log_prompts: bool = False, **changes: Any) -> FastAPI:
    info = dataclasses.replace(INFO, **changes)
    config = dataclasses.replace(CONFIG, log_prompts=log_prompts)
    return create_app(service, info, TOKENIZER, config, Metrics({profile.name: 1 for profile in info.profiles}))


def ask(service: Scripted, method: str, path: str, body: Any = None, **changes: Any) -> httpx.Response:
    async def one() -> httpx.Response:
        transport = httpx.ASGITransport(app_of(service, **changes))
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.request(method, path, json=body)

    return asyncio.run(one())


def post(service: Scripted, path: str, body: Any, **changes: Any) -> httpx.Response:
    return ask(service, "POST", path, body, **changes)


def original_client(content: bytes) -> list[dict[str, Any]]:
    """As the original's client reads a stream: byte by byte, an object whenever a NUL comes."""
    found, buffer = [], b""
    for number in content:
        byte = bytes([number])
        if byte == b"\0":
            found.append(json.loads(buffer.decode()))
            buffer = b""
        else:
            buffer += byte
    assert not buffer, "every object ends with a NUL"
    return found


def jetstream_client(text: str) -> list[dict[str, Any]]:
    """As JetStream's clients read a stream: JSON objects one behind the other."""
    decoder, found = json.JSONDecoder(), []
    while text:
        one, end = decoder.raw_decode(text)
        found.append(one)
        text = text[end:]
    return found


def refused(answer: httpx.Response, status: int, *said: str) -> None:
    error = answer.json()["error"]
    assert answer.status_code == status
    assert set(error) == {"message", "type", "param", "code"}
    assert all(word in error["message"] for word in said), error["message"]


# ---- JetStream ----


def test_jetstream_says_who_it_is_and_how_it_is():
    assert ask(Scripted(), "GET", "/").content == b'{\n    "message": "JetStream HTTP Server"\n}'
    assert ask(Scripted(), "GET", "/v1/health").content == b'{\n    "is_live": "True"\n}'
    assert ask(Scripted(state="failed"), "GET", "/v1/health").json() == {"is_live": "False"}


def test_jetstream_streams_objects_as_protobuf_prints_them():
    service = Scripted(lambda request: says("Hé", " there"))
    answer = post(service, "/v1/generate", {"max_tokens": 32, "text_content": {"text": "Once"}})
    first, second = ids("Hé"), ids(" there")
    assert answer.status_code == 200 and answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert jetstream_client(answer.text) == [
        {"streamContent": {"samples": [{"text": "Hé", "tokenIds": first}]}},
        {"streamContent": {"samples": [{"text": " there", "tokenIds": second}]}},
    ]
    printed = ",\n".join(f"          {token}" for token in first)
    assert answer.text.startswith(
        '{\n  "streamContent": {\n    "samples": [\n      {\n        "text": "H\\u00e9",\n        "tokenIds": [\n'
        f"{printed}\n        ]\n      }}\n    ]\n  }}\n}}{{"
    )
    (request,) = service.requests
    assert request.profile == "greedy" and request.max_tokens == 32 and request.prompt == tuple(ids("Once"))


def test_jetstream_clients_that_tokenize_get_no_text():
    service = Scripted(lambda request: says("Hello", " there"))
    answer = post(service, "/v1/generate", {"max_tokens": 8, "token_content": {"token_ids": [5, 9, 60]}})
    assert service.requests[0].prompt == (5, 9, 60)
    samples = [one["streamContent"]["samples"] for one in jetstream_client(answer.text)]
    assert samples == [[{"tokenIds": ids("Hello")}], [{"tokenIds": ids(" there")}]]


def test_jetstream_is_told_of_an_empty_answer():
    service = Scripted(lambda request: [Event(tokens=[END], rewards=[0.0], logprobs=[0.0], round=0, finish="stop")])
    answer = post(service, "/v1/generate", {"max_tokens": 8, "text_content": {"text": "Once"}})
    assert jetstream_client(answer.text) == [{"streamContent": {"samples": [{}]}}]


def test_an_error_in_the_middle_is_one_more_object():
    service = Scripted(lambda request: says("Hello", "", finish="error", error="the device is gone"))
    answer = post(service, "/v1/generate", {"max_tokens": 8, "text_content": {"text": "Once"}})
    *_, last = jetstream_client(answer.text)
    assert answer.status_code == 200 and last["error"]["message"] == "the device is gone"
    *_, last = original_client(post(service, "/ck_generate", CK).content)
    assert last["error"]["message"] == "the device is gone"
    refused(post(service, "/ck_generate", {**CK, "stream": False}), 500, "the device is gone")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"max_tokens": 8}, "text_content or token_content"),
        ({"max_tokens": 8, "text_content": {"text": "a"}, "token_content": {"token_ids": [1]}}, "not both"),
        ({"text_content": {"text": "a"}}, "max_tokens"),
        ({"max_tokens": 0, "text_content": {"text": "a"}}, "max_tokens"),
        ({"max_tokens": 1000, "text_content": {"text": "a"}}, "64"),
        ({"max_tokens": 8, "text_content": {"text": ""}}, "text_content"),
        ({"max_tokens": 8, "token_content": {"token_ids": [320]}}, "320"),
    ],
)
def test_what_jetstream_cannot_have_is_a_400(body: dict[str, Any], said: str):
    refused(post(Scripted(), "/v1/generate", body), 400, said)


# ---- the original SLA server ----


def test_its_evaluation_client_gets_text_piece_by_piece():
    service = Scripted(lambda request: says("Hello", " there", "."))
    pieces = original_client(post(service, "/ck_generate", SEARCH).content)
    assert "".join(piece["new_token"] for piece in pieces) == "Hello there."
    assert [piece["all_info"] for piece in pieces] == [None] * 3, "it reads all_info of every piece"
    (request,) = service.requests
    assert request.profile == "sla" and request.sampling.temperature == 0.0 and request.max_tokens == 32


def test_all_info_tells_of_the_search():
    service = Scripted(lambda request: says("Hello", " there"))
    pieces = original_client(post(service, "/ck_generate", {**SEARCH, "return_all_info": True}).content)
    tokens = ids("Hello")
    assert pieces[0]["all_info"] == {
        "round": 0,
        "token_ids": tokens,
        "rewards": [0.5] * len(tokens),
        "score": 0.25,
        "margin": None,
        "alive": 4,
        "explored": 8,
    }


def test_repeated_text_is_not_lost():
    service = Scripted(lambda request: says("ab", "ab", "ab"))
    pieces = original_client(post(service, "/ck_generate", CK).content)
    assert [piece["new_token"] for piece in pieces] == ["ab", "ab", "ab"]


def test_without_streaming_the_text_comes_whole():
    service = Scripted(lambda request: says("Once", " more"))
    assert post(service, "/ck_generate", {**SEARCH, "stream": False}).json() == {"text": "Once more"}
    assert post(service, "/generate", {"prompt": "Once", "temperature": 0}).json() == {"text": ["OnceOnce more"]}


def test_generate_streams_prompt_and_answer_again_and_again():
    body = {"prompt": "Once", "stream": True, "temperature": 0.8, "top_k": 50, "top_p": 0.9, "max_tokens": 8}
    service = Scripted(lambda request: says("Hello", " there"))
    assert original_client(post(service, "/generate", body).content) == [
        {"text": ["OnceHello"]},
        {"text": ["OnceHello there"]},
    ]
    (request,) = service.requests
    assert request.profile == "greedy"
    assert (request.sampling.temperature, request.sampling.top_k, request.sampling.top_p) == (0.8, 50, 0.9)


def test_the_best_of_several_are_chosen_by_probability():
    answers = iter([["a", "b", "c"], ["d"], ["e", "f"]])  # log-probabilities fall with the pieces
    service = Scripted(lambda request: says(*next(answers)))
    body = {"prompt": "Once", "n": 2, "best_of": 3}
    assert post(service, "/generate", body).json() == {"text": ["Onced", "Onceef"]}
    assert len({request.sampling.seed for request in service.requests}) == 3
    assert all(request.sampling.temperature == 1.0 and request.max_tokens == 16 for request in service.requests)


def test_max_tokens_gives_way_to_the_context():
    service = Scripted()
    assert post(service, "/ck_generate", {**SEARCH, "max_tokens": 2048}).status_code == 200
    assert service.requests[0].max_tokens == INFO.context - len(ids("Once"))


@pytest.mark.parametrize(
    ("changes", "profile"),
    [
        ({}, "sla"),
        ({"ck_n": 1, "ck_k": 8, "ck_d": 0}, "greedy"),
        ({"ck_n": 1, "ck_k": 10, "ck_d": 2}, "greedy"),
        ({"ck_mode": "Normal"}, "greedy"),
        ({"ck_mode": None}, "greedy"),
    ],
)
def test_a_search_is_a_declared_profile(changes: dict[str, Any], profile: str):
    service = Scripted()
    assert post(service, "/ck_generate", {**SEARCH, **changes}).status_code == 200
    assert service.requests[0].profile == profile


def test_a_search_that_is_not_declared_is_a_400_with_the_list():
    answer = post(Scripted(), "/ck_generate", {**SEARCH, "ck_d": 3})
    refused(answer, 400, "ck_n=2, ck_k=10, ck_d=3", "greedy", "sla (sla, width 2, chunk 10, depth 2)")
    searches = tuple(profile for profile in INFO.profiles if profile.method == "sla")
    refused(post(Scripted(), "/ck_generate", CK, profiles=searches), 400, "plain decoding")
    early = tuple(dataclasses.replace(profile, early_margin=0.5) for profile in searches)
    refused(post(Scripted(), "/ck_generate", SEARCH, profiles=early), 400, "ck_n=2")


@pytest.mark.parametrize(
    ("path", "changes", "said"),
    [
        ("/ck_generate", {"ck_length_penalty": 0.5}, "ignores it"),
        ("/ck_generate", {"n": 2}, "n and best_of have to be 1"),
        ("/ck_generate", {"stream": False, "return_all_info": True}, "stream: true"),
        ("/ck_generate", {"ck_mode": "StreamingTreeSearch", "top_k": 5}, "no meaning"),
        ("/ck_generate", {"ck_mode": "Beam"}, "ck_mode"),
        ("/ck_generate", {"prompt": "a" * 500}, "64"),
        ("/ck_generate", {"prompt": ""}, "prompt"),
        ("/generate", {"use_beam_search": True}, "use_beam_search"),
        ("/generate", {"logprobs": 3}, "logprobs"),
        ("/generate", {"length_penalty": 2.0}, "length_penalty"),
        ("/generate", {"stop_token_ids": [320]}, "stop_token_ids"),
        ("/generate", {"top_k": 0}, "-1"),
        ("/generate", {"n": 3, "best_of": 2}, "at least n"),
        ("/generate", {"best_of": 2}, "cannot be streamed"),
        ("/generate", {"n": 2, "temperature": 0}, "temperature above 0"),
        ("/generate", {"n": 5}, "at most 4"),
        ("/generate", {"return_all_info": True}, "/ck_generate"),
        ("/generate", {"temperature": "hot"}, "temperature"),
    ],
)
def test_what_the_original_ignored_or_cannot_be_had_is_a_400(path: str, changes: dict[str, Any], said: str):
    service = Scripted()
    refused(post(service, path, {**CK, **changes}), 400, said)
    assert not service.requests


def test_rewards_of_a_response():
    service = Scripted()
    body = {"prompt": "Once", "response": "Hello there", "max_tokens": 1}
    prompt, response = ids("Once"), ids("Hello there")
    expected = [float(len(prompt) + i) for i in range(len(response))]
    assert post(service, "/ck_check_reward_score", body).json() == {"positive_logits": expected}
    assert service.inspections[0].tokens == (*prompt, *response)
    refused(post(service, "/ck_check_reward_score", body, has_channel=False), 400, "no reward channel")
    refused(post(service, "/ck_check_reward_score", {**body, "response": "a" * 500}), 400, "64")
    refused(post(service, "/ck_check_reward_score", {**body, "max_tokens": 2}), 400, "max_tokens")
    refused(post(service, "/ck_check_reward_score", {**body, "max_tokens": True}), 400, "max_tokens")


# ---- both ----

BODIES = [
    ("/v1/generate", {"max_tokens": 8, "text_content": {"text": "Once"}}),
    ("/generate", CK),
    ("/ck_generate", CK),
    ("/ck_generate", {**CK, "stream": False}),
    ("/ck_check_reward_score", {"prompt": "Once", "response": "Hello"}),
]


@pytest.mark.parametrize(("path", "body"), BODIES)
def test_overload_and_shutdown_are_503(path: str, body: dict[str, Any]):
    busy = post(Scripted(refusal=BUSY), path, body)
    refused(busy, 503, "queue is full")
    assert busy.headers["retry-after"] == "3"
    refused(post(Scripted(refusal=CLOSED), path, body), 503, "shutting down")


@pytest.mark.parametrize(("path", "body"), BODIES[:-1])
def test_the_log_has_words_only_if_asked(path: str, body: dict[str, Any], caplog: pytest.LogCaptureFixture):
    with caplog.at_level("INFO", logger="sla_jax.access"):
        post(Scripted(), path, body)
        assert "profile='greedy'" in caplog.text and "Once" not in caplog.text and "Hello" not in caplog.text
        post(Scripted(), path, body, log_prompts=True)
    assert "prompts=['Once'] answers=['Hello there.']" in caplog.text


@pytest.mark.parametrize(("path", "body"), BODIES[:-1])
def test_a_client_that_leaves_ends_its_request(path: str, body: dict[str, Any]):
    service = Scripted(lambda request: says("Hello", " there", finish=None))  # and then nothing

    async def leave() -> list[Any]:
        left, sent = asyncio.Event(), []
        messages = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

        async def receive() -> Any:
            if messages:
                return messages.pop()
            await left.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)
            if b"there" in message.get("body", b""):
                left.set()

        if not body.get("stream", True):
            left.set()
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
        await asyncio.wait_for(app_of(service)(scope, receive, send), timeout=60)
        return sent

    asyncio.run(leave())
    assert service.places == 0 and len(service.cancelled) == len(service.requests)
    assert service.cancelled == [request.id for request in service.requests]
