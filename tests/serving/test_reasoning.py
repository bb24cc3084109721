"""Thinking is told apart from the answer, however its text arrives, and counted."""

from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from sla_jax.serving.answer import Answer
from sla_jax.serving.reasoning import Reasoner, Splitter
from sla_jax.serving.request import Event
from tests.serving.asgi import call
from tests.serving.scripted import Scripted
from tests.serving.thinker import CHAT, KINDS, QUESTION, R1, TEXT, Mind, app_of, ask, divided, ids, thinker
from tests.tiny import CHATML

WORDS = st.text(st.sampled_from("ab東👍 \n<>/think"), max_size=20)

# ---- telling it apart ----


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
