"""The real `openai` client, sync and async, against our app behind a real server on a free port."""

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from typing import Any

import openai
import pytest
import uvicorn
from openai.types.chat import ChatCompletionMessage, ChatCompletionMessageFunctionToolCall
from openai.types.chat.chat_completion_message_function_tool_call import Function
from openai.types.chat.completion_create_params import CompletionCreateParamsBase

from tests.serving.asgi import WAIT
from tests.serving.fake import ANSWER, TOKENIZER, FakeService, encode, fake_app, logprob

KEY = "secret-key"
MESSAGES = [{"role": "user", "content": "What is the capital of France?"}]
TOKENS = [*encode(ANSWER), 2]


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """The app behind uvicorn in a thread; its address. The socket listens before the thread starts: no need to wait."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(app, log_level="critical", access_log=False, ws="none", lifespan="off")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"
        finally:
            server.should_exit = True
            thread.join(WAIT)
            assert not thread.is_alive()


@pytest.fixture(scope="module")
def service() -> FakeService:
    return FakeService()


@pytest.fixture(scope="module")
def client(service) -> Iterator[openai.OpenAI]:
    with served(fake_app(service, api_key=KEY)) as address:
        with openai.OpenAI(base_url=address, api_key=KEY, max_retries=0, timeout=WAIT) as client:
            yield client


@pytest.fixture
def stalled() -> Iterator[tuple[FakeService, str]]:
    """A service that begins to answer and then says no more, and its address."""
    service = FakeService(stall=True)
    with served(fake_app(service)) as address:
        yield service, address
        service.go.set()


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny", "tiny:greedy", "tiny:sla", "tiny:wide"]
    assert client.models.retrieve("tiny:sla").owned_by == "sla-jax"


def test_a_chat(client):
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES)
    assert reply.choices[0].message.content == ANSWER
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.completion_tokens == len(TOKENS)
    assert reply.usage.completion_tokens_details.explored_tokens == 2 * len(TOKENS)


def test_a_streamed_chat(client):
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, stream_options=options)
    *chunks, last = list(stream)
    assert "".join(chunk.choices[0].delta.content for chunk in chunks) == ANSWER
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert (last.choices, last.usage.completion_tokens) == ([], len(TOKENS))


def test_the_clients_own_stream_helper(client):
    with client.chat.completions.stream(model="tiny", messages=MESSAGES, n=2) as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert [choice.message.content for choice in final.choices] == [ANSWER, ANSWER]


def test_a_completion_of_two_prompts(client):
    reply = client.completions.create(model="tiny", prompt=["a", "b"], max_tokens=200, n=2, stop=["42", "is"])
    assert [choice.text for choice in reply.choices] == ["The capital of France "] * 4
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]


def test_a_streamed_completion(client):
    stream = client.completions.create(model="tiny", prompt="a", max_tokens=200, stream=True, stop="Paris")
    chunks = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER.split("Paris")[0]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_two_choices_are_drawn_with_two_seeds(client, service):
    service.requests.clear()
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, n=2, temperature=0.7, seed=11, max_tokens=4)
    assert [choice.index for choice in reply.choices] == [0, 1]
    first, second = sorted((request.sampling.seed for request in service.requests), key=lambda seed: seed != 11)
    assert (first, second != 11) == (11, True)


def test_logprobs(client):
    asked = {"model": "tiny", "messages": MESSAGES, "logprobs": True, "top_logprobs": 3, "max_tokens": 5}
    content = client.chat.completions.create(**asked).choices[0].logprobs.content
    assert [entry.logprob for entry in content] == [logprob(token) for token in TOKENS[:5]]
    assert [len(entry.top_logprobs) for entry in content] == [3] * 5
    streamed = client.chat.completions.create(**asked, stream=True)
    assert [entry for chunk in streamed for entry in chunk.choices[0].logprobs.content] == content
    reply = client.completions.create(model="tiny", prompt="a", logprobs=1, echo=True, max_tokens=2)
    assert reply.choices[0].logprobs.token_logprobs == [None, *map(logprob, TOKENS[:2])]
    assert reply.choices[0].logprobs.text_offset == [0, 1, 4]


def test_a_search(client):
    body = {"search": {"method": "sla", "width": 2, "return_rewards": True}}
    asked = {"model": "tiny", "messages": MESSAGES, "max_tokens": 7, "extra_body": body}
    rounds = client.chat.completions.create(**asked).choices[0].search
    assert [item["round"] for item in rounds] == [0, 1, 2]
    chunks = list(client.chat.completions.create(**asked, stream=True))
    assert [chunk.search for chunk in chunks if hasattr(chunk, "search")] == rounds
    assert [token for item in rounds for token in item["token_ids"]] == TOKENS[:7]


# ---- what a reply contains is taken back ----


def kept(client, **asked: Any) -> Iterator[Any]:
    """The message of a reply as a conversation keeps it: the object, all of its fields, those that are set, as JSON."""
    message = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked).choices[-1].message
    yield from (message, message.model_dump(), message.model_dump(exclude_unset=True), message.to_dict())
    yield json.loads(message.model_dump_json())


def prompts(service: FakeService) -> list[str]:
    """What the model has read since the last time."""
    read = [TOKENIZER.decode(list(request.prompt)) for request in service.requests]
    service.requests.clear()
    return read


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"n": 2, "temperature": 0.7, "seed": 3},
        {"logprobs": True, "top_logprobs": 2},
        {"stop": [" Paris"]},
        {"max_tokens": 1, "stop": "The"},
        {"extra_body": {"search": {"profile": "sla", "return_rewards": True, "return_cost": True}}},
    ],
)
def test_a_second_turn_with_the_message_of_the_first(client, service, asked):
    for message in kept(client, **asked):
        prompts(service)
        content = message["content"] if isinstance(message, dict) else message.content
        history = [*MESSAGES, message, {"role": "user", "content": "And of Spain?"}]
        reply = client.chat.completions.with_raw_response.create(model="tiny", messages=history, max_tokens=2)
        assert "x-ignored-fields" not in reply.headers
        assert prompts(service) == [
            f"<|im_start|>user\n{MESSAGES[0]['content']}<|im_end|>\n<|im_start|>assistant\n{content}<|im_end|>\n"
            "<|im_start|>user\nAnd of Spain?<|im_end|>\n<|im_start|>assistant\n"
        ]


def test_a_second_turn_with_the_deltas_of_a_stream(client, service):
    """As clients join them: the fields of all deltas, texts one behind the other."""
    options = {"include_usage": True}
    stream = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, stream_options=options)
    message: dict[str, Any] = {}
    for chunk in stream:
        for choice in chunk.choices:
            for name, value in choice.delta.model_dump().items():
                message[name] = (message.get(name) or "") + value if name == "content" and value else value
    history = [*MESSAGES, {**message, "role": "assistant", "content": ANSWER}, {"role": "user", "content": "And?"}]
    prompts(service)
    client.chat.completions.create(model="tiny", messages=history, max_tokens=2)
    assert ANSWER in prompts(service)[0]


def test_a_history_with_tools(client, service):
    """As the openai package writes one: its own types, and their model_dump()."""
    call = ChatCompletionMessageFunctionToolCall(
        id="a", type="function", function=Function(name="weather", arguments='{"city": "Paris"}')
    )
    message = ChatCompletionMessage(role="assistant", content=None, tool_calls=[call])
    result = {"role": "tool", "tool_call_id": "a", "content": "31 degrees"}
    read = []
    for said in (message, message.model_dump(), message.model_dump(exclude_none=True)):
        prompts(service)
        asked = {"model": "tiny", "messages": [*MESSAGES, said, result], "max_tokens": 4}
        chunks = client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        assert list(chunks)[-1].usage.completion_tokens == 4
        read += prompts(service)
    assert len(set(read)) == 1
    assert "<|im_start|>tool\n31 degrees<|im_end|>" in read[0]
    assert "None" not in read[0]


def test_every_parameter_of_the_client_may_be_null(client):
    names = {*CompletionCreateParamsBase.__annotations__} - {"model", "messages"}
    assert {"reasoning_effort", "prediction", "verbosity", "tools"} <= names
    asked = dict.fromkeys(names)
    reply = client.chat.completions.create(model="tiny", messages=MESSAGES, **asked)
    assert reply.choices[0].message.content == ANSWER
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, **asked)
    assert "x-ignored-fields" not in raw.headers
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=MESSAGES, extra_body={"top_q": 1})
    assert raw.headers["x-ignored-fields"] == "top_q"


def test_errors_have_the_clients_own_types(client):
    with pytest.raises(openai.BadRequestError, match="temperature") as error:
        client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=1000)
    assert error.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="gpt-4"):
        client.chat.completions.create(model="gpt-4", messages=MESSAGES)
    with pytest.raises(openai.BadRequestError, match="takes no snapshots"):
        client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body={"search": {"return_tree": True}})
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()


def test_a_full_queue_is_an_error_of_the_server_and_passes():
    service = FakeService()
    service.overloaded = True
    with served(fake_app(service)) as address, openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.InternalServerError) as error:
            client.completions.create(model="tiny", prompt="a")
        assert error.value.status_code == 503
        assert error.value.response.headers["retry-after"] == "7"
        service.overloaded = False
        assert client.completions.create(model="tiny", prompt="a", max_tokens=2).choices[0].finish_reason == "length"


def test_a_client_that_times_out_is_cancelled(stalled):
    service, address = stalled
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=0.5) as client:
        with pytest.raises(openai.APITimeoutError):
            client.completions.create(model="tiny", prompt="a")
    assert service.was_cancelled.wait(WAIT)
    assert len(service.cancelled) == 1


def test_a_stream_that_is_closed_is_cancelled(stalled):
    service, address = stalled
    with openai.OpenAI(base_url=address, api_key="none", max_retries=0, timeout=WAIT) as client:
        with client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True) as stream:
            assert next(iter(stream)).choices[0].delta.content == "The"
        assert service.was_cancelled.wait(WAIT)


def test_the_async_client():
    service = FakeService()

    async def go(address: str) -> list[str]:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=WAIT) as client:
            chats = [client.chat.completions.create(model="tiny", messages=MESSAGES) for _ in range(4)]
            texts = [reply.choices[0].message.content for reply in await asyncio.gather(*chats)]
            stream = await client.completions.create(model="tiny", prompt="a", max_tokens=200, stream=True)
            return [*texts, "".join([chunk.choices[0].text async for chunk in stream])]

    with served(fake_app(service)) as address:
        assert asyncio.run(go(address)) == [ANSWER] * 5
    assert service.reserved == 0


def test_an_async_task_that_is_cancelled_cancels_its_request(stalled):
    service, address = stalled

    async def go() -> None:
        async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0, timeout=WAIT) as client:
            task = asyncio.ensure_future(client.completions.create(model="tiny", prompt="a", n=2))
            assert await asyncio.to_thread(service.began.wait, WAIT)
            task.cancel()
            await asyncio.wait({task}, timeout=WAIT)
            assert task.cancelled()
            assert await asyncio.to_thread(service.was_cancelled.wait, WAIT)

    asyncio.run(go())
    for thread in service.threads:
        thread.join(WAIT)
    assert len(set(service.cancelled)) == 2
