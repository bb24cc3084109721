"""Prompts: what cannot fit is refused before any work, at every door; the tokenizer has a queue, a time and an end."""

import asyncio
import dataclasses
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.serving import prompts
from sla_jax.serving.backend import Backend
from sla_jax.serving.errors import ApiError
from sla_jax.serving.gateway import Gateway, _spell
from sla_jax.serving.settings import Limits, ServeConfig
from sla_jax.serving.threads import Call, Threads
from sla_jax.text import encode, longest_token
from tests.serving.asgi import WAIT, Caller, call
from tests.serving.fake import MODEL, TOKENIZER, FakeService, fake_app
from tests.serving.test_http_bad import CHAT, TEXT, refused
from tests.serving.test_http_fields import BODIES
from tests.tiny import byte_level_tokenizer, sentencepiece_tokenizer

SERVICE = FakeService(sync=True)
APP = fake_app(SERVICE, limits=Limits())
MOST = MODEL.context * longest_token(TOKENIZER)
LONG = "1" * (MOST + 1)
IDS = [5] * 3 * MODEL.context
TALK = {"messages": [{"role": "user", "content": LONG}]}
PARTS = [{"role": "user", "content": [{"type": "text", "text": LONG[: MOST // 2]}] * 3}]


def told(path: str, more: dict[str, Any]) -> Any:
    return pytest.param(path, {**BODIES[path], **more}, id=f"{path} {', '.join(more)}")


def nothing_is_tokenized(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("encoding", "encode_behind", "response_ids", "spell"):
        monkeypatch.setattr(prompts, name, None)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        told(TEXT, {"prompt": LONG}),
        told(TEXT, {"prompt": [LONG, "a"]}),
        told(TEXT, {"prompt": LONG, "echo": True, "max_tokens": 0}),
        told(TEXT, {"prompt": "é" * (MOST // 2 + 1)}),
        told(TEXT, {"prompt": IDS}),
        told(TEXT, {"prompt": [IDS, [5]]}),
        told(TEXT, {"prompt": [1] * 3 * MODEL.context, "echo": True}),
        told(CHAT, TALK),
        told(CHAT, {**TALK, "add_special_tokens": True}),
        told(CHAT, {"messages": PARTS}),
        told(CHAT, {"messages": [{"role": "user", "content": ""}] * (MODEL.context + 1)}),
        told("/tokenize", {"prompt": LONG}),
        pytest.param("/tokenize", TALK, id="/tokenize messages"),
        pytest.param("/v1/rewards", {**TALK, "response": "a"}, id="/v1/rewards messages"),
        told("/v1/rewards", {"prompt": LONG}),
        told("/generate", {"prompt": LONG}),
        told("/ck_generate", {"prompt": LONG}),
        told("/ck_check_reward_score", {"prompt": LONG}),
        pytest.param("/v1/generate", {"max_tokens": 2, "text_content": {"text": LONG}}, id="/v1/generate text"),
        pytest.param("/v1/generate", {"max_tokens": 2, "token_content": {"token_ids": IDS}}, id="/v1/generate ids"),
    ],
)
def test_what_cannot_fit_is_refused_before_it_is_tokenized_or_spelled(monkeypatch, path, body):
    nothing_is_tokenized(monkeypatch)
    error = refused(call(APP, path, body))
    assert error["code"] == "context_length_exceeded" and str(MODEL.context) in error["message"]
    assert not SERVICE.requests and not SERVICE.reserved


@pytest.mark.parametrize("path", ["/v1/rewards", "/ck_check_reward_score"])
def test_a_response_that_cannot_fit_is_refused_before_it_is_tokenized(monkeypatch, path):
    monkeypatch.setattr(prompts, "encode_behind", None)
    assert refused(call(APP, path, {"prompt": "a", "response": LONG}))["param"] == "response"
    monkeypatch.setattr(prompts, "response_ids", None)
    body = {"messages": [{"role": "user", "content": "a"}], "response": LONG}
    assert refused(call(APP, "/v1/rewards", body))["param"] == "response"
    error = refused(call(APP, "/v1/rewards", {"prompt": "a", "token_ids": IDS}))
    assert (error["param"], error["code"]) == ("token_ids", "context_length_exceeded")


def test_more_tokens_than_any_text_that_fits_has_are_not_spelled():
    error = refused(call(APP, "/detokenize", {"tokens": [5] * (MOST + 1)}))
    assert str(MOST) in error["message"] and error["param"] == "tokens"
    assert len(call(APP, "/detokenize", {"tokens": IDS}).json()["prompt"]) == len(IDS)


def test_what_tokenize_gives_is_what_detokenize_takes():
    text = "1" * MOST
    found = call(APP, "/tokenize", {"prompt": text}).json()
    assert found["tokens"] == encode(TOKENIZER, text) and found["count"] == len(found["tokens"]) > MODEL.context
    assert call(APP, "/detokenize", {"tokens": found["tokens"]}).json()["prompt"] == text
    assert call(APP, "/tokenize", {"prompt": ""}).json()["tokens"] == []


@pytest.mark.parametrize("tokenizer", [byte_level_tokenizer(), sentencepiece_tokenizer()], ids=["bytes", "pieces"])
@given(text=st.text(max_size=40) | st.text(" a1<|im_end|>the", max_size=40))
def test_no_text_has_more_bytes_than_its_tokens_at_their_longest(tokenizer, text):
    assert len(text.encode()) <= longest_token(tokenizer) * len(encode(tokenizer, text))


def test_the_longest_token_is_counted_in_bytes_of_text():
    assert longest_token(byte_level_tokenizer(["é" * 50] * 9)) > len("<|endoftext|>")
    assert longest_token(sentencepiece_tokenizer()) == len("<|endoftext|>")


@given(st.lists(st.integers(0, 319), max_size=60))
def test_ids_are_spelled_as_the_tokenizer_does(ids):
    spelled = _spell(TOKENIZER, tuple(ids))
    whole = TOKENIZER.backend_tokenizer.decode(ids, skip_special_tokens=True)
    assert spelled.text + spelled.rest == whole and list(spelled.offsets) == sorted(spelled.offsets)


# ---- a panic ----


@pytest.mark.parametrize("path", [path for path in BODIES if path not in ("/detokenize", "/abort_request")])
def test_a_text_at_which_the_tokenizer_panics_is_a_400_in_words_and_the_server_lives_on(monkeypatch, path):
    panic = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

    class Panicking:
        """A backend whose Rust side panics when it encodes."""

        def __getattr__(self, name: str) -> Any:
            return getattr(backend, name)

        def encode_batch(self, *args: Any, **options: Any) -> Any:
            raise panic("retry-limit-in-match over")

    backend = TOKENIZER.backend_tokenizer
    monkeypatch.setattr("sla_jax.text.tokenizer.backend_of", lambda tokenizer: Panicking())
    assert "retry-limit" in refused(call(APP, path, BODIES[path]))["message"]
    monkeypatch.undo()
    assert call(APP, path, BODIES[path]).status_code == 200
    assert SERVICE.reserved == 0


# ---- the queue ----


@pytest.fixture
def blocked(monkeypatch):
    """The tokenizer's threads do nothing until this is set; `begun` has the texts that one has begun with."""
    go = threading.Event()
    go.begun = []
    original = prompts.encoding

    def encoding(tokenizer: Any, text: str, **options: Any) -> Any:
        go.begun.append(text)
        assert go.wait(WAIT)
        return original(tokenizer, text, **options)

    monkeypatch.setattr(prompts, "encoding", encoding)
    monkeypatch.setattr(prompts, "MOST_THREADS", 1)
    yield go
    go.set()


DOORS = ["/tokenize", "/detokenize", TEXT, CHAT, "/v1/rewards", "/generate", "/v1/generate"]


@pytest.mark.parametrize("path", DOORS)
def test_a_full_queue_of_the_tokenizer_is_a_503_that_says_when_to_come_again(blocked, path):
    app = fake_app(FakeService(sync=True), limits=Limits(queue=2))

    async def go() -> Any:
        held = [Caller(app, "/tokenize", {"prompt": f"held {number}"}) for number in range(3)]
        while len(blocked.begun) < 1:
            await asyncio.sleep(0)
        refusal = Caller(app, path, BODIES[path])
        start, body = await refusal.next(), await refusal.next()
        blocked.set()
        assert [(await one.next())["status"] for one in held] == [200] * 3
        await asyncio.gather(refusal.task, *(one.task for one in held))
        return start, body

    start, body = asyncio.run(go())
    assert start["status"] == 503 and b"overloaded" in body["body"]
    assert int(dict(start["headers"])[b"retry-after"]) >= 1
    assert len(blocked.begun) == 3, "what is refused is not begun"


def test_a_prompt_whose_client_has_left_is_not_begun(blocked, monkeypatch):
    app, queued, submit = fake_app(FakeService(sync=True), limits=Limits()), list[Call](), Threads._submit
    monkeypatch.setattr(Threads, "_submit", lambda self, call: (queued.append(call), submit(self, call)))

    async def go() -> None:
        first = Caller(app, "/tokenize", {"prompt": "first"})
        while not blocked.begun:
            await asyncio.sleep(0)
        for path, body in ((TEXT, {"prompt": "left"}), ("/tokenize", {"prompt": "left too"})):
            gone, before = Caller(app, path, body), len(queued)
            while len(queued) == before:
                await asyncio.sleep(0)
            await gone.leave()
        last = Caller(app, "/tokenize", {"prompt": "last"})
        blocked.set()
        assert [(await one.next())["status"] for one in (first, last)] == [200, 200]
        await asyncio.gather(first.task, last.task)

    asyncio.run(go())
    assert blocked.begun == ["first", "last"]


def test_tokenizing_has_the_time_of_a_request(blocked):
    app = fake_app(FakeService(sync=True), limits=Limits(timeout=0.05))
    answer = call(app, "/tokenize", {"prompt": "a"})
    assert refused(answer, 408)["code"] == "timeout" and "tokenizing" in answer.json()["error"]["message"]


def test_the_same_limits_are_those_of_every_protocol():
    """gRPC has a gateway of its own, and its prompts come here too."""
    service: Backend = FakeService(sync=True)
    config = ServeConfig(checkpoint="tiny", profiles=MODEL.profiles)
    gateway = Gateway(service, dataclasses.replace(MODEL, context=4), TOKENIZER, config)

    async def ask(prompt: Any) -> None:
        async with gateway.answer(prompt):
            pass

    for prompt in (LONG, [5] * 4, [5] * 400):
        with pytest.raises(ApiError, match="4 tokens"):
            asyncio.run(ask(prompt))
