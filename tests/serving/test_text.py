"""Text over HTTP: what goes on with a prompt, broken characters, templates that fail, tokens without embedding."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sla_jax.decode.completion import Completion
from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Event
from sla_jax.serving.settings import Profile
from sla_jax.text import TextStream, decode
from tests.serving.asgi import call, events
from tests.serving.scripted import CONFIG, INFO, Scripted, says
from tests.tiny import CHATML, byte_level_tokenizer, sentencepiece_tokenizer

PIECES = sentencepiece_tokenizer()
FIRST = PIECES.convert_tokens_to_ids("<0x00>")
CHAT = {"model": "tiny", "max_tokens": 4, "messages": [{"role": "user", "content": "Hi"}]}


def ids(text: str) -> list[int]:
    return list(PIECES.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def event(tokens: list[int], **more) -> Event:
    count = len(tokens)
    common = {"rewards": [0.5] * count, "logprobs": [-1.0] * count, "tops": [[]] * count, "round": 0, "alive": 1}
    return Event(**{"tokens": tokens, "finish": "length", **common, **more})


def server(service: Scripted, tokenizer=PIECES, info=INFO, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return create_app(service, info, tokenizer, config, Metrics({profile.name: 4 for profile in info.profiles}))


def answering(tokens: list[int]):
    return server(Scripted(lambda request: [event(tokens)]))


PROMPT, REST = "The capital", " of France"
BEFORE, AFTER = ids(PROMPT), ids(PROMPT + REST)[len(ids(PROMPT)) :]


# ---- what goes on with a text ----


@pytest.mark.parametrize("prompt", [PROMPT, BEFORE], ids=["text", "ids"])
@pytest.mark.parametrize("echo", [False, True])
def test_a_completion_goes_on_with_its_prompt(prompt, echo):
    body = {"model": "tiny", "prompt": prompt, "max_tokens": len(AFTER), "echo": echo}
    whole = call(answering(AFTER), "/v1/completions", body).json()["choices"][0]["text"]
    streamed = events(call(answering(AFTER), "/v1/completions", {**body, "stream": True}))
    assert whole == "".join(chunk["choices"][0]["text"] for chunk in streamed) == (PROMPT if echo else "") + REST


def test_logprobs_spell_the_text_and_stand_at_its_places():
    body = {"model": "tiny", "prompt": PROMPT, "max_tokens": len(AFTER), "logprobs": 0}
    choice = call(answering(AFTER), "/v1/completions", body).json()["choices"][0]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == REST
    assert choice["logprobs"]["text_offset"] == list(range(len(REST)))


def test_older_protocols_go_on_with_their_prompt_too():
    told = call(answering(AFTER), "/generate", {"prompt": PROMPT, "max_tokens": len(AFTER)}).json()
    assert told == {"text": [PROMPT + REST]}
    body = {"text_content": {"text": PROMPT}, "max_tokens": len(AFTER)}
    said = call(answering(AFTER), "/v1/generate", body).json()
    assert said["streamContent"]["samples"][0]["text"] == REST


def test_a_chat_begins_its_answer_without_a_space():
    said = call(answering(AFTER), "/v1/chat/completions", {**CHAT, "max_tokens": len(AFTER)}).json()
    assert said["choices"][0]["message"]["content"] == REST.lstrip()


def test_candidates_go_on_with_the_prompt_as_the_answer_does():
    one = Completion(candidate=0, tokens=AFTER, rewards=[], logprobs=[], finish="length", score=0.5, round=0)
    pool = Profile(name="best", method="best_of_n", n=2, slots=2)
    profiles = (*INFO.profiles, pool)
    info = dataclasses.replace(INFO, profiles=profiles)
    app = server(Scripted(lambda request: [event(AFTER, ended=[one])]), info=info, profiles=profiles)
    body = {"model": "tiny:best", "prompt": PROMPT, "max_tokens": len(AFTER), "temperature": 0.5, "seed": 1}
    choice = call(app, "/v1/completions", {**body, "search": {"return_candidates": True}}).json()["choices"][0]
    assert choice["text"] == choice["candidates"][0]["text"] == REST


def test_the_rewards_of_a_response_are_those_of_the_text_that_it_makes():
    for path, body in (("/v1/rewards", {}), ("/ck_check_reward_score", {})):
        service = Scripted()
        reply = call(server(service), path, {"prompt": PROMPT, "response": REST, **body})
        assert reply.status_code == 200 and list(service.inspections[0].tokens) == ids(PROMPT + REST)


# ---- broken characters ----

ANSWER: list[int] = []
ANY_BYTES = server(Scripted(lambda request: [event(list(ANSWER))]))


@given(
    prompt=st.lists(st.integers(FIRST - 1, FIRST + 255), min_size=1, max_size=6),
    answer=st.lists(st.integers(FIRST - 1, FIRST + 255), min_size=1, max_size=6),
)
def test_any_bytes_are_answered_and_echoed(prompt, answer):
    app, body = ANY_BYTES, {"model": "tiny", "prompt": prompt, "max_tokens": len(answer), "echo": True}
    ANSWER[:] = answer
    whole = call(app, "/v1/completions", body)
    streamed = events(call(app, "/v1/completions", {**body, "stream": True}))
    text = whole.json()["choices"][0]["text"]
    assert text == "".join(chunk["choices"][0]["text"] for chunk in streamed) == decode(PIECES, [*prompt, *answer])
    alone = call(app, "/v1/completions", {**body, "max_tokens": 0}).json()["choices"][0]["text"]
    assert alone == decode(PIECES, prompt) and TextStream(PIECES).push(prompt) in alone


# ---- templates and tokens ----


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% if tools | length > 0 %}x{% endif %}" + CHATML, "TypeError: object of type 'NoneType' has no len()"),
        ({"tool_use": CHATML, "rag": CHATML}, "tool_use, rag"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        (None, "no chat template"),
    ],
)
def test_what_a_template_raises_is_the_clients_to_know(template, said):
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = template
    body = {**CHAT, "response": "Yes"}
    for path in ("/v1/chat/completions", "/v1/rewards", "/tokenize"):
        asked = {
            name: body[name] for name in {"/v1/chat/completions": CHAT, "/tokenize": ("messages",)}.get(path, body)
        }
        asked.pop("max_tokens", None) if path == "/v1/rewards" else None
        reply = call(server(Scripted(), tokenizer), path, asked)
        assert reply.status_code == 400 and said in reply.json()["error"]["message"], path


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"model": "tiny", "prompt": "a [PAD]", "max_tokens": 2}),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "b [PAD]"], "max_tokens": 2}),
        ("/v1/completions", {"model": "tiny", "prompt": [5, 320], "max_tokens": 2}),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "user", "content": "[PAD]"}]}),
        ("/v1/rewards", {"prompt": "[PAD]", "response": "a"}),
        ("/v1/rewards", {"prompt": "a", "response": "[PAD]"}),
        ("/v1/rewards", {"prompt": "a", "token_ids": [320]}),
        ("/v1/rewards", {"messages": CHAT["messages"], "response": "[PAD]"}),
        ("/ck_check_reward_score", {"prompt": "a", "response": "[PAD]"}),
        ("/generate", {"prompt": "[PAD]"}),
        ("/v1/generate", {"text_content": {"text": "[PAD]"}, "max_tokens": 2}),
        ("/detokenize", {"tokens": [320]}),
    ],
)
def test_a_token_without_embedding_is_named_and_nothing_runs(path, body):
    tokenizer = byte_level_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    service = Scripted()
    reply = call(server(service, tokenizer), path, body)
    assert "the token '[PAD]' (320) has no embedding" in reply.text
    assert reply.status_code == 400 and not service.requests
    assert call(server(service, tokenizer), "/tokenize", {"prompt": "[PAD]"}).json()["tokens"] == [320]


def test_a_prompt_without_characters_is_refused():
    reply = call(
        server(Scripted(lambda request: says("Hi"))),
        "/v1/completions",
        content=b'{"model": "tiny", "prompt": "a\\ud83d", "max_tokens": 2}',
        headers={"content-type": "application/json"},
    )
    assert reply.status_code == 400 and "500" not in reply.text
