"""A model that thinks by rule, in front of which the app is asked for its thinking and its answer."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from tokenizers import AddedToken

from sla_jax.serving.http import create_app
from sla_jax.serving.metrics import Metrics
from sla_jax.serving.request import Event, Finish, Request
from sla_jax.serving.settings import Profile
from tests.serving.asgi import call, events
from tests.serving.scripted import CONFIG, END, INFO, Scripted
from tests.tiny import CHATML, byte_level_tokenizer

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
QUESTION = {"messages": [{"role": "user", "content": "Is <think> a tag?"}]}
GENERATION = "{% if add_generation_prompt %}<think>\n{% endif %}"
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


def divided(text: str, place: str) -> tuple[str, str]:
    """(thinking, answer), by the rule, in one go."""
    if place == "before":
        start = text.lstrip()
        if not start.startswith("<think>"):
            return "", text
        text, place = start.removeprefix("<think>"), "inside"
    thinking, _, answer = text.partition("</think>") if place == "inside" else ("", "", text)
    return thinking, answer
