"""JetStream 0.2.2: our engine under its own driver, token for token, and its gRPC service on our server."""

import asyncio
import contextlib
import dataclasses
import importlib.util
import logging
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import sla_jax
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.sla import SLA
from sla_jax.errors import UserError
from sla_jax.serving.settings import Engines, Profile
from tests.serving.scripted import BUSY, CLOSED, CONFIG, INFO, TOKENIZER, Scripted, ids, says
from tests.tiny import sentencepiece_tokenizer

if importlib.util.find_spec("jetstream") is None or importlib.util.find_spec("grpc") is None:
    pytest.skip("the extra `jetstream` is not installed (google-jetstream, grpcio)", allow_module_level=True)

from sla_jax.loading import load_model
from sla_jax.serving import jetstream
from sla_jax.serving.engine import Engine
from sla_jax.serving.reader import Reader
from sla_jax.serving.sizes import sizes_of

CONTEXT = 96
PROMPTS = ["The quick brown fox", "How much is 12 + 30?", "Paris.", "naïve café", "Please do not be rude"]
SEARCHES = [Greedy(chunk=4), SLA(width=2, chunk=3, depth=1)]


def engine_of(checkpoint: Path, search: Any) -> jetstream.JetStreamEngine:
    plain = isinstance(search, Greedy)
    profile = Profile(name="p", method="greedy" if plain else "sla", slots=2, **dataclasses.asdict(search))
    model = load_model(checkpoint)
    sizes = sizes_of(Engines(context=CONTEXT), (profile,), max_positions=model.config.max_positions)
    return jetstream.JetStreamEngine(Engine(model, profile, Reader(model.policy, model.config, sizes, 2**20), tops=0))


def driven(engine: jetstream.JetStreamEngine, requests: list[Any]) -> list[list[Any]]:
    """The samples of every request, all asked for at once, from JetStream's own driver and orchestrator."""
    params = engine.load_params()
    core = jetstream.orchestrator
    driver = core.Driver([engine], [engine], [params], [params], interleaved_mode=True)

    async def one(request: Any) -> list[Any]:
        return [response.stream_content.samples[0] async for response in core.LLMOrchestrator(driver).Decode(request)]

    async def all_of_them() -> list[list[Any]]:
        try:
            return await asyncio.gather(*map(one, requests))
        finally:  # its threads kill the process if the loop ends before they do
            await asyncio.to_thread(driver.stop)

    return asyncio.run(all_of_them())


def decode_request(prompt: str | list[int], max_tokens: int) -> Any:
    request = jetstream.messages.DecodeRequest(max_tokens=max_tokens)
    if isinstance(prompt, str):
        request.text_content.text = prompt
    else:
        request.token_content.token_ids.extend(prompt)
    return request


@pytest.mark.parametrize("search", SEARCHES, ids=["greedy", "sla"])
def test_the_driver_runs_our_engine(checkpoint: Path, search: Any):
    model = sla_jax.load(checkpoint)
    prompts = [model.prompt_ids(prompt) for prompt in PROMPTS]
    limits = [CONTEXT - len(prompt) for prompt in prompts]
    wanted = model.generate(prompts, search=search, max_tokens=limits)
    answers = [[token for token in answer if token not in model.end_tokens] for answer in wanted]
    lengths = [17, 1, 8, 200, 40]  # in and between chunks, and beyond the end
    requests = [decode_request(prompt, length) for prompt, length in zip(prompts, lengths, strict=True)]
    requests += [decode_request(text, length) for text, length in zip(PROMPTS, lengths, strict=True)]
    found = driven(engine_of(checkpoint, search), requests)
    for samples, answer, length in zip(found, answers * 2, lengths * 2, strict=True):
        assert [token for sample in samples for token in sample.token_ids] == answer[:length]
    by_tokens, by_text = found[: len(PROMPTS)], found[len(PROMPTS) :]
    assert not any(sample.text for samples in by_tokens for sample in samples)
    assert all(any(sample.text for sample in samples) for samples in by_text)


def test_an_unreadable_prompt_ends_alone(checkpoint: Path, caplog: pytest.LogCaptureFixture):
    requests = [decode_request([5, 999], 4), decode_request([5, 9], 4)]
    refused, answered = driven(engine_of(checkpoint, SEARCHES[0]), requests)
    assert [list(sample.token_ids) for sample in refused] == [[]]
    assert sum(len(sample.token_ids) for sample in answered) == 4
    assert "a prompt was refused" in caplog.text and "999" in caplog.text


def test_importing_it_leaves_no_trace():
    assert not set(jetstream.STAND_INS) & set(sys.modules)
    handlers = logging.getLogger().handlers
    assert not any(handler.level == logging.DEBUG and type(handler) is logging.StreamHandler for handler in handlers)
    assert not hasattr(jetstream.jax, "tree_map")


def test_the_driver_is_told_of_bytes_spaces_and_every_end():
    tokens = jetstream.Tokens(sentencepiece_tokenizer(), [2, 7])
    tokenizer = sentencepiece_tokenizer()
    ids = tokenizer("a é", add_special_tokens=False)["input_ids"]
    text_of = jetstream.orchestrator.token_utils.text_tokens_to_str
    assert text_of([tokens.decode([token]) for token in ids]) == " a é"
    assert tokens.stop_tokens == {2, 7} and tokens.eos_id == 2 and tokens.pad_id not in tokens.stop_tokens
    padded, length = tokens.encode("a é", is_bos=False, max_prefill_length=32, jax_padding=False)
    assert length == len(ids) and padded.shape == (16,) and padded[:length].tolist() == ids


# ---- gRPC ----


@contextlib.contextmanager
def grpc_of(service: Scripted, config: Any = CONFIG) -> Iterator[Any]:
    """A client of JetStream's own making, talking to our service."""
    server = jetstream.serve_grpc(service, INFO, TOKENIZER, config)
    try:
        with jetstream.grpc.insecure_channel(f"127.0.0.1:{server.port}") as channel:
            yield jetstream.service.OrchestratorStub(channel)
    finally:
        server.stop(0.0)


def samples_of(responses: Any) -> list[Any]:
    return [response.stream_content.samples[0] for response in responses]


def test_grpc_streams_text_and_tokens():
    with grpc_of(Scripted(lambda request: says("Hello", " there"))) as stub:
        by_text = samples_of(stub.Decode(decode_request("Once", 8)))
        by_tokens = samples_of(stub.Decode(decode_request([5, 9], 8)))
        assert stub.HealthCheck(jetstream.messages.HealthCheckRequest()).is_live
    assert [sample.text for sample in by_text] == ["Hello", " there"]
    assert [list(sample.token_ids) for sample in by_text] == [ids("Hello"), ids(" there")]
    assert [(sample.text, list(sample.token_ids)) for sample in by_tokens] == [("", ids("Hello")), ("", ids(" there"))]


@pytest.mark.parametrize(
    ("service", "request_", "code", "said"),
    [
        (Scripted(refusal=BUSY), decode_request("Once", 8), "RESOURCE_EXHAUSTED", "queue is full"),
        (Scripted(refusal=CLOSED), decode_request("Once", 8), "UNAVAILABLE", "shutting down"),
        (Scripted(), decode_request("Once", 0), "INVALID_ARGUMENT", "max_tokens is 0"),
        (Scripted(), decode_request("Once", 999), "INVALID_ARGUMENT", "999"),
        (Scripted(), decode_request("", 8), "INVALID_ARGUMENT", "empty"),
        (Scripted(), decode_request([320], 8), "INVALID_ARGUMENT", "320"),
        (Scripted(), jetstream.messages.DecodeRequest(max_tokens=8), "INVALID_ARGUMENT", "no content"),
        (
            Scripted(),
            jetstream.messages.DecodeRequest(max_tokens=8, session_cache="x"),
            "INVALID_ARGUMENT",
            "session_cache",
        ),
        (
            Scripted(lambda request: says("Hi", "", finish="error", error="the device is gone")),
            decode_request("Once", 8),
            "INTERNAL",
            "the device is gone",
        ),
        (
            Scripted(lambda request: says("Hi", "", finish="timeout")),
            decode_request("Once", 8),
            "DEADLINE_EXCEEDED",
            "longer",
        ),
    ],
)
def test_grpc_refuses_with_a_status(service: Scripted, request_: Any, code: str, said: str):
    with grpc_of(service) as stub, pytest.raises(jetstream.grpc.RpcError) as caught:
        samples_of(stub.Decode(request_))
    assert caught.value.code().name == code and said in caught.value.details()


def test_grpc_clients_that_leave_end_their_request():
    gone = threading.Event()
    service = Scripted(lambda request: says("Hello", finish=None), on_cancel=gone.set)  # and then nothing
    with grpc_of(service) as stub:
        call = stub.Decode(decode_request("Once", 8))
        assert next(call).stream_content.samples[0].text == "Hello"
        call.cancel()
        assert gone.wait(60)
    assert service.cancelled == [request.id for request in service.requests]


def test_grpc_asks_for_the_key():
    config = dataclasses.replace(CONFIG, api_key="secret")
    with grpc_of(Scripted(), config) as stub:
        request = decode_request("Once", 8)
        with pytest.raises(jetstream.grpc.RpcError) as caught:
            samples_of(stub.Decode(request, metadata=[("authorization", "Bearer wrong")]))
        assert caught.value.code().name == "UNAUTHENTICATED"
        assert samples_of(stub.Decode(request, metadata=[("authorization", "Bearer secret")]))


def test_a_port_in_use_is_said():
    with grpc_of(Scripted()), socket.create_server(("127.0.0.1", 0)) as taken:
        config = dataclasses.replace(CONFIG, grpc_port=taken.getsockname()[1])
        with pytest.raises(UserError, match="gRPC cannot listen"):
            jetstream.serve_grpc(Scripted(), INFO, TOKENIZER, config)
