"""A thinking that has a budget is ended when it is used up, and nothing else changes."""

import asyncio
import dataclasses
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sla_jax.decode.cost import Cost
from sla_jax.serving.accounts import total
from sla_jax.serving.answer import Answer, Piece
from sla_jax.serving.gateway import Gateway, Run
from sla_jax.serving.reasoning import ENDING, Place, Splitter, Thinking
from sla_jax.serving.request import Event, Finish
from tests.serving.asgi import WAIT, Caller, call
from tests.serving.fake import FakeService, fake_app
from tests.serving.scripted import CONFIG, END, INFO, Scripted
from tests.serving.thinker import CHAT, KINDS, QUESTION, R1, TEXT, Mind, app_of, ask, divided, ids


def expected(mind: Mind, prompt: Sequence[int], limit: int, budget: int, place: Place) -> tuple[list[int], Finish]:
    """The tokens of an answer whose thinking has a budget, and how it ends: the rule, from the unlimited answer."""
    tokens, finish = mind.tokens(prompt, limit)
    backend = mind.tokenizer.backend_tokenizer
    for count in range(len(tokens) + 1):
        splitter = Splitter(place)
        splitter.push(backend.decode(tokens[:count], skip_special_tokens=False))
        if splitter.place == "after" or (count and tokens[count - 1] == END):
            return tokens, finish
        if splitter.place == "inside" and count >= budget:
            ending = ids(mind.tokenizer, ENDING)[: limit - count]
            said = [*tokens[:count], *ending]
            if len(said) == limit:
                return said, "length"
            rest, finish = mind.tokens([*prompt, *said], limit - len(said))
            return [*said, *rest], finish
    return tokens, finish


@pytest.mark.parametrize("tokenizer", [KINDS["text"], KINDS["token"], KINDS["special"], R1], ids=[*KINDS, "R1"])
def test_a_budget_ends_the_thinking_and_nothing_else(tokenizer):
    service = Scripted()
    app = app_of(service, tokenizer)
    prompt = list(tokenizer.apply_chat_template(QUESTION["messages"], add_generation_prompt=True)["input_ids"])
    place: Place = "inside" if tokenizer is R1 else "before"

    @settings(max_examples=30)
    @given(
        thoughts=st.text(st.sampled_from("ab \n<"), max_size=12),
        opened=st.booleans(),
        budget=st.integers(0, 24),
        limit=st.integers(1, 40),
        chunk=st.integers(1, 7),
        stream=st.booleans(),
        n=st.integers(1, 2),
    )
    def check(thoughts, opened, budget, limit, chunk, stream, n):
        tag = "<think>" if opened and tokenizer is not R1 else ""
        mind = Mind(tokenizer, f"{tag}{thoughts}</think>Yes.", chunk=chunk)
        service.script, service.requests[:], service.cancelled[:] = mind, [], []
        options = {"max_tokens": limit, "n": n, "stream": stream}
        usage, said = ask(app, **options, search={"thinking_budget": budget})
        tokens, finish = expected(mind, prompt, limit, budget, place)
        assert [one[2:] for one in said] == [(tokens, finish)] * n
        assert usage["completion_tokens"] == n * len(tokens) <= n * limit
        assert usage["prompt_tokens"] == len(prompt)
        text = tokenizer.backend_tokenizer.decode([t for t in tokens if t != END], skip_special_tokens=False)
        assert [(one[0] or "", one[1]) for one in said] == [divided(text, place)] * n
        again = [request for request in service.requests if request.began is not None]
        assert len(again) <= n and all(request.deadline is not None for request in again)
        if tokens == mind.tokens(prompt, limit)[0] and finish == "stop":
            assert not again

    check()


def test_what_goes_on_is_one_request_more_and_the_first_is_cancelled():
    service = Scripted(Mind(R1, "a b c d e f g h i j k"))
    options = {"max_thinking_tokens": 4, "max_tokens": 30, "temperature": 1.0, "seed": 3, "min_tokens": 9}
    usage, [said] = ask(app_of(service, R1), **options, search={"return_rewards": True})
    first, second = service.requests
    ending = ids(R1, ENDING)
    assert second.prompt == (*first.prompt, *said[2][:4], *ending)
    assert second.max_tokens == 30 - 4 - len(ending) and second.ends == first.ends
    assert second.sampling.seed != first.sampling.seed
    assert (second.sampling.temperature, second.sampling.min_tokens) == (1.0, 9 - 4 - len(ending))
    assert service.cancelled == [first.id]
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 4 + ending.index(ids(R1, "</think>")[0]) + 1
    assert usage["prompt_tokens_details"] == {"cached_tokens": 5}


def test_rounds_and_counts_go_on():
    service = Scripted(Mind(R1, "a b c d e f g h i j k"))
    body = {**QUESTION, "max_thinking_tokens": 5, "search": {"return_rewards": True}, "logprobs": True}
    reply = call(app_of(service, R1), CHAT, {**body, "return_token_ids": True}).json()
    [choice] = reply["choices"]
    rounds, tokens = choice["search"], choice["token_ids"]
    assert [one["round"] for one in rounds] == list(range(len(rounds)))
    ending = ids(R1, ENDING)
    heard = [token for one in rounds for token in one["token_ids"]]
    assert heard == [*tokens[:5], *tokens[5 + len(ending) :]]
    assert reply["usage"]["completion_tokens_details"]["explored_tokens"] == 2 * (6 + len(tokens) - 5 - len(ending))
    said = [one["logprob"] for one in choice["logprobs"]["content"]]
    assert said == [-1.0] * 5 + [0.0] * len(ending) + [-1.0] * (len(tokens) - 5 - len(ending))


def test_a_raw_completion_may_have_a_budget_too():
    app = app_of(Scripted(Mind(R1, "a b c d e f g h i j k")), R1)
    names = ({"search": {"thinking_budget": 2}}, {"max_thinking_tokens": 2}, {"thinking_token_budget": 2})
    for asked in (*names, {**names[0], **names[1], **names[2]}):
        [choice] = call(app, TEXT, {"prompt": "Hm. <think>\n", "max_tokens": 60, **asked}).json()["choices"]
        assert choice["text"] == "a b" + ENDING + "It is 東."


def test_stop_strings_may_stand_in_what_the_server_says_itself():
    service = Scripted(Mind(R1, "a b c d e f g h i j k"))
    _, [said] = ask(app_of(service, R1), max_thinking_tokens=3, stop=["\n\n"])
    assert said[1] == "" and said[3] == "stop"
    assert service.cancelled == [request.id for request in service.requests]


@pytest.mark.parametrize("least", [0, 5, 6])
def test_so_may_tokens_to_stop_at(least):
    service = Scripted(Mind(R1, "a b c d e f g h i j k"))
    close, ending = ids(R1, "</think>")[0], ids(R1, ENDING)
    assert ending.index(close) == 1
    options = {"max_thinking_tokens": 4, "stop_token_ids": [close], "min_tokens": least}
    _, [(thinking, answer, tokens, finish)] = ask(app_of(service, R1), **options)
    assert tokens[4:6] == ending[:2] and thinking is not None and finish == "stop"
    assert (len(tokens) == 6, len(service.requests)) == ((True, 1) if least < 6 else (False, 2)), answer


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 2])
def test_who_hangs_up_after_the_budget_frees_both(stream, n):
    service = FakeService("a b c d e f", stall=True)
    app = fake_app(service, reasoning="think")
    body = {"prompt": "<think>", "n": n, "stream": stream, "max_tokens": 40, "search": {"thinking_budget": 1}}

    async def go() -> None:
        client = Caller(app, TEXT, body, {"x-request-id": "mine"})
        while len(service.requests) < 2 * n:
            await asyncio.sleep(0)
        await client.leave()

    asyncio.run(asyncio.wait_for(go(), WAIT))
    assert sorted(service.cancelled) == sorted(request.id for request in service.requests)
    assert service.reserved == 0
    for thread in service.threads:
        thread.join(WAIT)
        assert not thread.is_alive()


def test_who_aborts_in_the_moment_in_which_the_budget_is_used_up_gets_no_second_request():
    service = Scripted(Mind(R1, "a b c d e f g h i j k"))
    model = dataclasses.replace(INFO, vocabulary=330, context=400)
    gateway = Gateway(service, model, R1, dataclasses.replace(CONFIG, reasoning="think"))

    async def go() -> list[Piece]:
        read = await gateway.prompts.read("<think>\n")
        with gateway.reserve(model.profiles[0]) as places:
            async with Run(gateway, "mine", places) as run:
                thinking = Thinking(place="inside", split=False, budget=2)
                run.submit(gateway.request(read, model.profiles[0], 60), thinking=thinking)
                assert gateway.abort("mine")
                return [piece async for piece in run]

    pieces = asyncio.run(asyncio.wait_for(go(), WAIT))
    assert [piece.finish for piece in pieces][-1] == "abort" and len(service.requests) == 1


@pytest.mark.parametrize(
    ("body", "fields", "said", "param"),
    [
        ({"max_thinking_tokens": 1, "search": {"thinking_budget": 2}}, {}, "give one", "max_thinking_tokens"),
        ({"thinking_token_budget": 1, "max_thinking_tokens": 2}, {}, "give one", "max_thinking_tokens"),
        ({"thinking_token_budget": 0}, {"reasoning": "off"}, "does not think", "thinking_token_budget"),
        ({"max_thinking_tokens": 1}, {"reasoning": "off"}, "does not think", "max_thinking_tokens"),
        ({"search": {"thinking_budget": 1}}, {"reasoning": "off"}, "does not think", "search.thinking_budget"),
        (
            {"search": {"thinking_budget": 1, "profile": "best"}, "temperature": 1.0},
            {},
            "no text before its end",
            "search.thinking_budget",
        ),
        ({"max_thinking_tokens": -1}, {}, "greater than or equal to 0", "max_thinking_tokens"),
    ],
)
def test_budgets_that_cannot_be_kept_are_refused(body, fields, said, param):
    service = Scripted()
    response = call(app_of(service, KINDS["token"], **fields), CHAT, {**QUESTION, **body})
    assert response.status_code == 400 and service.requests == []
    assert said in response.json()["error"]["message"] and response.json()["error"]["param"] == param


def test_a_budget_of_nothing_asked_is_none():
    service = Scripted(Mind(KINDS["text"], "Yes."))
    body = {"max_thinking_tokens": None, "thinking_token_budget": -1, "search": {"thinking_budget": None}}
    assert ask(app_of(service, KINDS["text"], reasoning="auto"), **body)[1][0][1] == "Yes."


def test_costs_of_two_requests_are_one_account():
    one = Cost(steps=2, lane_steps=4, explored_tokens=8, committed_tokens=3, kv_bytes=100, seconds=0.5)
    other = Cost(steps=1, lane_steps=2, explored_tokens=4, committed_tokens=2, kv_bytes=70, seconds=0.25)
    both = total(one, other)
    assert both == Cost(steps=3, lane_steps=6, explored_tokens=12, committed_tokens=5, kv_bytes=100, seconds=0.75)
    assert (total(None, one), total(one, None), total(None, None)) == (one, one, None)


def test_an_end_token_within_the_budget_is_the_end():
    tokens = [*ids(R1, "a b"), END]
    answer = Answer(R1, thinking=Thinking(place="inside", split=True, budget=len(tokens), ends=(END,)))
    pieces = [answer.read(Event(tokens=tokens)), answer.read(Event(finish="stop"))]
    assert [(piece.cut, piece.finish) for piece in pieces] == [(False, None), (False, "stop")]
