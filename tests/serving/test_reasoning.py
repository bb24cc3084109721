"""Thinking: told apart from the answer however its text arrives, counted, and ended within a budget."""

import asyncio
import dataclasses
from collections.abc import Sequence
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from hypothesis import given, settings
from hypothesis import strategies as st
from openai import OpenAI
from tokenizers import AddedToken

from sla_jax.decode.cost import Cost
from sla_jax.serving.accounts import total
from sla_jax.serving.answer import Answer
from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.reasoning import ENDING, Place, Reasoner, Splitter, Thinking
from sla_jax.serving.request import Event, Finish, Request
from sla_jax.serving.settings import Profile
from tests.serving.asgi import WAIT, Caller, call, events
from tests.serving.fake import FakeService, fake_app
from tests.serving.scripted import CONFIG, END, INFO, Scripted
from tests.tiny import CHATML, byte_level_tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"messages": [{"role": "user", "content": "Is <think> a tag?"}]}
GENERATION = "{% if add_generation_prompt %}<think>\n{% endif %}"
WORDS = st.text(st.sampled_from("ab東👍 \n<>/think"), max_size=20)
PROFILES = (*INFO.profiles, Profile(name="best", method="best_of_n", n=2, slots=1))


def thinker(template: str = CHATML, *, special: bool | None = None) -> Any:
    """A tokenizer whose tags are tokens of their own (special ones or not), or ordinary text."""
    tokenizer = byte_level_tokenizer(template=template)
    if special is not None:
        tags = [AddedToken(tag, special=special, normalized=False) for tag in ("<think>", "</think>")]
        (tokenizer.backend_tokenizer.add_special_tokens if special else tokenizer.backend_tokenizer.add_tokens)(tags)
    return tokenizer


KINDS = {"text": thinker(), "token": thinker(special=False), "special": thinker(special=True)}
R1 = thinker(CHATML + GENERATION, special=False)


def ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids)


def app_of(service: Scripted, tokenizer: Any, **fields: Any) -> FastAPI:
    """The app, of a model that thinks in this tokenizer's tags."""
    model = dataclasses.replace(INFO, vocabulary=330, context=400, profiles=PROFILES)
    config = dataclasses.replace(CONFIG, profiles=PROFILES, **{"reasoning": "think", **fields})
    return create_app(service, model, tokenizer, config, Metrics({profile.name: 4 for profile in PROFILES}))


@dataclasses.dataclass
class Mind:
    """A model by rule: `thoughts` until its prompt has the closing tag in the turn that it is to go on with."""

    tokenizer: Any
    thoughts: str
    answer: str = "It is 東."
    chunk: int = 3

    def tokens(self, prompt: Sequence[int], limit: int) -> tuple[list[int], Finish]:
        """What it says, and how that ends."""
        turn = self.tokenizer.backend_tokenizer.decode(list(prompt), skip_special_tokens=False).rpartition(
            "<|im_start|>"
        )
        said = ids(self.tokenizer, self.answer if "</think>" in turn[2] else self.thoughts)
        return ([*said, END], "stop") if len(said) < limit else (said[:limit], "length")

    def __call__(self, request: Request) -> list[Event]:
        """First token, then rounds, as an engine has them."""
        tokens, finish = self.tokens(request.prompt, request.max_tokens)
        found = [Event(tokens=tokens[:1], logprobs=[-1.0], tops=[[]], cached=5)]
        for number, start in enumerate(range(0, len(tokens), self.chunk)):
            part = tokens[start : start + self.chunk]
            event = Event(tokens=part, rewards=[0.5] * len(part), logprobs=[-1.0] * len(part), tops=[[]] * len(part))
            found.append(
                event._replace(repeated=int(start == 0), round=number, explored=2 * (start + len(part)), cached=5)
            )
        return [*found[:-1], found[-1]._replace(finish=finish)]


def ask(app: FastAPI, **body: Any) -> tuple[dict[str, Any], list[tuple[str | None, str, list[int], str]]]:
    """(usage, per choice: thinking, answer, tokens, finish) of a chat, whole or streamed."""
    options = {"stream_options": {"include_usage": True}} if body.get("stream") else {}
    response = call(app, CHAT, {**QUESTION, "return_token_ids": True, **options, **body})
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        reply = response.json()
        parts = [(one["message"], one["token_ids"], one["finish_reason"]) for one in reply["choices"]]
        return reply["usage"], [(said.get("reasoning_content"), said["content"], *rest) for said, *rest in parts]
    *chunks, last = events(response)
    found: dict[int, list[Any]] = {}
    for chunk in chunks:
        [choice] = chunk["choices"]
        known = found.setdefault(choice["index"], [None, "", [], None])
        if "reasoning_content" in choice["delta"]:
            known[0] = (known[0] or "") + choice["delta"]["reasoning_content"]
        known[1] += choice["delta"]["content"]
        known[2] += choice["token_ids"]
        assert known[3] is None, "something came after the end"
        known[3] = choice["finish_reason"]
    return last["usage"], [tuple(one) for _, one in sorted(found.items())]


# ---- telling it apart ----


def divided(text: str, place: str) -> tuple[str, str]:
    """(thinking, answer), by the rule, in one go."""
    if place == "before":
        start = text.lstrip()
        if not start.startswith("<think>"):
            return "", text
        text, place = start.removeprefix("<think>"), "inside"
    thinking, _, answer = text.partition("</think>") if place == "inside" else ("", "", text)
    return thinking, answer


@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "</thin", "k>", "\n", " ", "東a"]), max_size=12).map(
        "".join
    ),
    place=st.sampled_from(["before", "inside", "after"]),
    cuts=st.lists(st.integers(0, 9), max_size=12),
)
def test_a_text_is_divided_the_same_however_it_is_cut(text, place, cuts):
    splitter, start, parts = Splitter(place), 0, []
    for size in cuts:
        parts.append(splitter.push(text[start : start + size]))
        start += size
    parts += [splitter.push(text[start:]), splitter.finish()]
    assert tuple("".join(part) for part in zip(*parts, strict=True)) == divided(text, place)


@given(
    thoughts=WORDS.filter(lambda text: "</think>" not in text),
    answer=WORDS,
    stops=st.lists(st.text(st.sampled_from("ab東\n<"), min_size=1, max_size=2), max_size=2),
    cuts=st.lists(st.integers(1, 5), max_size=9),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_an_answers_tokens_are_divided_the_same_however_they_are_bundled(thoughts, answer, stops, cuts, kind):
    tokenizer = KINDS[kind]
    tokens = ids(tokenizer, f"<think>{thoughts}</think>{answer}")
    whole = read(tokenizer, tokens, stops, [])
    assert read(tokenizer, tokens, stops, cuts) == whole
    thinking, text, thought, count = whole
    shown = f"<think>{thoughts}</think>{answer}"
    at = min((shown.find(stop) for stop in stops if stop in shown), default=len(shown))
    assert (thinking, text) == divided(shown[:at], "before")
    closed = len(ids(tokenizer, f"<think>{thoughts}</think>"))
    assert thought == (closed if count >= closed and not stops else thought) <= count
    assert kind == "text" or stops or thought == closed


def read(tokenizer: Any, tokens: list[int], stops: list[str], cuts: list[int]) -> tuple[str, str, int, int]:
    """(thinking, answer, tokens of the thinking, tokens taken) of an answer in bundles of these sizes, then in one."""
    thinking = Reasoner(tokenizer, "think").thinking([], split=True)
    answer, bundles, start = Answer(tokenizer, 0, stops, thinking=thinking), [], 0
    for size in cuts:
        bundles.append(Event(tokens=tokens[start : start + size]))
        start += size
    pieces = []
    for event in [*bundles, Event(tokens=tokens[start:], finish="length")]:
        pieces.append(answer.read(event))
        if pieces[-1].finish:
            break
    said = ("".join(piece.thinking for piece in pieces), "".join(piece.text for piece in pieces))
    return *said, pieces[-1].thought, sum(len(piece.tokens) for piece in pieces)


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "before"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n", "inside"),
        ("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n", "after"),
        ("<|im_start|>user\nWhat is <think>?<|im_end|>\n<|im_start|>assistant\n", "before"),
        ("<|im_start|>assistant\n<think>a</think>b<|im_end|>\n<|im_start|>assistant\n", "before"),
        ("<|im_start|>assistant\n<think>\nfirst half of it,", "inside"),  # a turn that is to be continued
        ("Once <think> upon", "inside"),
        ("", "before"),
    ],
)
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_where_a_prompt_leaves_the_model(prompt, place, kind):
    assert Reasoner(KINDS[kind], "auto").place(ids(KINDS[kind], prompt)) == place


def test_a_model_thinks_if_its_template_or_its_tokens_say_so():
    mentions = CHATML + "{% set content = content.split('</think>')[-1] %}"
    assert Reasoner(thinker(mentions), "auto").on
    assert Reasoner(KINDS["token"], "auto").on and Reasoner(KINDS["special"], "auto").on
    assert not Reasoner(KINDS["text"], "auto").on and not Reasoner(thinker(None), "auto").on
    assert Reasoner(KINDS["text"], "think").on and not Reasoner(KINDS["token"], "off").on


# ---- replies ----


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_chat_has_its_thinking_beside_its_answer(kind, stream):
    mind = Mind(KINDS[kind], "<think>\nOne, two: 東.\n</think>\n\nYes.")
    usage, [said] = ask(app_of(Scripted(mind), KINDS[kind]), stream=stream)
    tokens, _ = mind.tokens([], 300)
    assert said == ("\nOne, two: 東.\n", "\n\nYes.", tokens, "stop")
    assert usage["completion_tokens"] == len(tokens)
    details = usage["completion_tokens_details"]
    assert details["reasoning_tokens"] == len(ids(KINDS[kind], "<think>\nOne, two: 東.\n</think>"))


def test_a_thinking_whose_opening_tag_is_in_the_prompt():
    usage, [said] = ask(app_of(Scripted(Mind(R1, "Well.\n</think>Yes.")), R1, reasoning="auto"))
    assert said[:2] == ("Well.\n", "Yes.")
    assert usage["completion_tokens_details"]["reasoning_tokens"] == len(ids(R1, "Well.\n</think>"))


@pytest.mark.parametrize("stream", [False, True])
def test_what_has_no_thinking_has_none(stream):
    usage, [said] = ask(app_of(Scripted(Mind(R1, "", answer="No <think> here.")), KINDS["token"]), stream=stream)
    assert said[0] is None and said[1] == ""
    closed = thinker(CHATML + "{% if add_generation_prompt %}<think>\n\n</think>\n\n{% endif %}", special=False)
    usage, [said] = ask(app_of(Scripted(Mind(closed, "", answer="<think>No</think> here.")), closed), stream=stream)
    assert said[:2] == (None, "<think>No</think> here.")
    assert usage["completion_tokens_details"]["reasoning_tokens"] == 0


@pytest.mark.parametrize("stream", [False, True])
def test_the_request_says_how_thinking_is_told(stream):
    app = app_of(Scripted(Mind(KINDS["token"], "<think>Hm.</think>Yes.")), KINDS["token"])
    _, [split] = ask(app, stream=stream)
    _, [plain] = ask(app, stream=stream, separate_reasoning=False)
    _, [silent] = ask(app, stream=stream, include_reasoning=False)
    assert [said[:2] for said in (split, plain, silent)] == [
        ("Hm.", "Yes."),
        (None, "<think>Hm.</think>Yes."),
        (None, "Yes."),
    ]
    assert split[2:] == plain[2:] == silent[2:]
    message = call(app, CHAT, {**QUESTION, "include_reasoning": False}).json()["choices"][0]["message"]
    assert "reasoning_content" not in message


def test_completions_and_other_models_are_left_as_they_are():
    mind = Mind(KINDS["token"], "<think>Hm.</think>Yes.")
    raw = call(app_of(Scripted(mind), KINDS["token"]), TEXT, {"prompt": "a", "max_tokens": 99}).json()
    assert raw["choices"][0]["text"] == "<think>Hm.</think>Yes."
    assert set(raw["usage"]["completion_tokens_details"]) == {"explored_tokens"}
    off = call(app_of(Scripted(mind), KINDS["token"], reasoning="off"), CHAT, QUESTION).json()
    assert off["choices"][0]["message"] == {
        "role": "assistant",
        "content": "<think>Hm.</think>Yes.",
        "refusal": None,
    }


def test_stop_strings_are_of_the_whole_text():
    app = app_of(Scripted(Mind(KINDS["token"], "<think>a b c</think>d b e")), KINDS["token"])
    _, [early] = ask(app, stop=["b"])
    _, [late] = ask(app, stop=["e"])
    assert (early[:2], early[3]) == (("a ", ""), "stop")
    assert late[:2] == ("a b c", "d b ")


def test_the_openai_client_sees_it():
    app = app_of(Scripted(Mind(R1, "Well.\n</think>Yes.")), R1)

    def respond(request: httpx.Request) -> httpx.Response:
        reply = call(app, request.url.path, content=request.content, headers=dict(request.headers))
        return httpx.Response(reply.status_code, content=reply.content, headers=reply.headers)

    client = OpenAI(
        base_url="http://test/v1", api_key="-", http_client=httpx.Client(transport=httpx.MockTransport(respond))
    )
    reply = client.chat.completions.create(model="tiny", **QUESTION)
    assert reply.choices[0].message.model_extra == {"reasoning_content": "Well.\n"}
    parts = list(client.chat.completions.create(model="tiny", stream=True, **QUESTION))
    thoughts = [(part.choices[0].delta.model_extra or {}).get("reasoning_content", "") for part in parts]
    assert ("".join(thoughts), "".join(part.choices[0].delta.content or "" for part in parts)) == ("Well.\n", "Yes.")
    assert reply.usage.completion_tokens_details.reasoning_tokens == len(ids(R1, "Well.\n</think>"))


# ---- budgets ----


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
    for asked in ({"search": {"thinking_budget": 2}}, {"max_thinking_tokens": 2}):
        [choice] = call(app, TEXT, {"prompt": "Hm. <think>\n", "max_tokens": 60, **asked}).json()["choices"]
        assert choice["text"] == "a b" + ENDING + "It is 東."


def test_stop_strings_may_stand_in_what_the_server_says_itself():
    service = Scripted(Mind(R1, "a b c d e f g h i j k"))
    _, [said] = ask(app_of(service, R1), max_thinking_tokens=3, stop=["\n\n"])
    assert said[1] == "" and said[3] == "stop"
    assert service.cancelled == [request.id for request in service.requests]


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


@pytest.mark.parametrize(
    ("body", "fields", "said", "param"),
    [
        ({"max_thinking_tokens": 1, "search": {"thinking_budget": 2}}, {}, "give one", "max_thinking_tokens"),
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
    body = {"max_thinking_tokens": None, "search": {"thinking_budget": None}}
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
