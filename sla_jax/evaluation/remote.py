"""Answers from a server that speaks OpenAI's chat completions; serve.py also tells candidates, rewards and costs.

A request is sent again, after a pause that doubles or as long as Retry-After says, when the server is unreachable, busy
or failing. What it refuses is an error at once. `sla_jax.client` says what is not believed of a server.
"""

import dataclasses
import functools
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from sla_jax import client
from sla_jax.decode.methods import METHODS, Trees
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.evaluation.answering import Ask, Reply
from sla_jax.evaluation.settings import MethodConfig, ServerConfig
from sla_jax.text import NO_VARIABLES


class Remote:
    """A server as an answerer; `template`: variables of its chat template."""

    def __init__(
        self,
        config: ServerConfig,
        pause: Callable[[float], None] = time.sleep,
        *,
        template: Mapping[str, Any] = NO_VARIABLES,
    ):
        self.config, self._pause, self._template = config, pause, template

    @functools.cached_property
    def about(self) -> dict[str, str]:
        """Whose rewards the model gives, if the server is serve.py; other servers do not say what theirs is made of."""
        return {"channel": self._entry("")["channel"]} if self.config.extensions else {}

    @property
    def parallel(self) -> int:
        """Requests at a time."""
        return self.config.parallel

    def options(self, method: MethodConfig) -> dict[str, Any]:
        """Those of the profile, if the method names one; else only what is asked for is known."""
        if method.profile is None:
            return dict(method.options)
        search = self._entry(f":{method.profile}").get("search")
        if not isinstance(search, dict) or not isinstance(search.get("options"), dict):
            raise UserError(f"{self.config.url} says nothing of the options of its profile {method.profile}.")
        return dict(search["options"])

    def check(self, ask: Ask) -> None:
        """Nothing is known before it is tried."""

    def answer(self, ask: Ask) -> Reply:
        """The answer. Raises UserError for a server that does not give one."""
        began = time.perf_counter()
        found = self.chat(body_of(self.config, ask, self._template))
        return reply_of(self.config, found, time.perf_counter() - began)

    def chat(self, body: Mapping[str, Any]) -> Any:
        """What the server says to a body of /chat/completions. Raises UserError."""
        return self._asked(f"{self.config.url.rstrip('/')}/chat/completions", body)

    def _entry(self, profile: str) -> dict[str, Any]:
        """What serve.py says of its model, or of a profile. Raises UserError."""
        url = f"{self.config.url.rstrip('/')}/models/{self.config.model}{profile}"
        found = self._asked(url, None)
        if not isinstance(found, dict) or not isinstance(found.get("channel"), str):
            raise UserError(f"{url} says nothing of a channel; is it serve.py, and of this version?")
        return found

    def _asked(self, url: str, body: Mapping[str, Any] | None) -> Any:
        """What it says to a body, or to a GET; asked again while that may help. Raises UserError."""
        reason, wait = "", 0.0
        for attempt in range(self.config.retries + 1):
            if attempt:
                self._pause(max(wait, min(2.0 ** (attempt - 1), client.LONGEST_PAUSE)))
            try:
                found = self._send(url, body)
            except client.Unreachable as error:
                reason, wait = str(error), 0.0
                continue
            if 200 <= found.status < 300:
                return _value(url, found)
            if found.status not in client.AGAIN:
                raise UserError(f"{url} refused a request ({found.status}): {found.said}")
            reason, wait = f"it answers {found.status}: {found.said}", found.retry_after
        times = "once" if self.config.retries == 0 else f"{self.config.retries + 1} times"
        raise UserError(
            f"{url} gives no answer, tried {times}: {reason.rstrip('.')}. Is the server running, and is "
            "server.url right?"
        )

    def _send(self, url: str, body: Mapping[str, Any] | None) -> client.Answer:
        headers = {"Content-Type": "application/json", **client.authorization(self.config.key)}
        data = None if body is None else json.dumps(body).encode()
        return client.send(url, data, headers, timeout=self.config.timeout)


def _value(url: str, found: client.Answer) -> Any:
    """The JSON of an answer. Raises UserError."""
    try:
        return client.value_of(found)
    except ValueError as error:
        raise UserError(
            f"{url} answers what is no JSON ({str(error)[:80]}): {found.body[:80]!r}. Is server.url right?"
        ) from None


# ---- what is asked ----


def body_of(config: ServerConfig, ask: Ask, template: Mapping[str, Any]) -> dict[str, Any]:
    """A body of /chat/completions. What vLLM and SGLang call `chat_template_kwargs`, serve.py does too."""
    sampling, plain = ask.method.sampling, Sampling()
    body: dict[str, Any] = {"model": config.model, "messages": ask.messages, "max_tokens": ask.max_tokens}
    body |= {"temperature": sampling.temperature, "seed": ask.seed}
    for field in dataclasses.fields(Sampling):
        value = getattr(sampling, field.name)
        if field.name not in body and value != getattr(plain, field.name):
            body[field.name] = value
    if sampling.logit_bias:
        body["logit_bias"] = {str(token): bias for token, bias in sampling.logit_bias}
    if template:
        body["chat_template_kwargs"] = dict(template)
    if config.extensions:
        body |= {"return_token_ids": True, "search": _search(config, ask.method)}
    return body


def _search(config: ServerConfig, method: MethodConfig) -> dict[str, Any]:
    search: dict[str, Any] = {"method": method.method, **method.options, "return_cost": True}
    if method.profile is not None:
        search["profile"] = method.profile
    search["return_rewards"] = config.rewards and method.method != "beam"
    search["return_candidates"] = not issubclass(METHODS[method.method], Trees)
    return search


# ---- what it says ----


def reply_of(config: ServerConfig, found: Any, seconds: float) -> Reply:
    """The answer in a server's reply. Raises UserError for a reply that is none."""
    try:
        choice = found["choices"][0]
        text, finish = choice["message"]["content"], choice["finish_reason"]
    except (KeyError, IndexError, TypeError):
        raise UserError(
            f"{config.url} answers without choices[0].message.content or .finish_reason: {_shown(found)}"
        ) from None
    if not isinstance(text, str | None) or not isinstance(finish, str):
        raise UserError(f"{config.url} answers with the content {_shown(text)} and the finish_reason {finish!r:.80}.")
    try:
        tokens = [_whole_number(token) for token in choice.get("token_ids") or []]
        rewards = [reward for round_ in choice.get("search") or [] for reward in round_.get("rewards") or []]
        candidates = [_candidate(one) for one in choice.get("candidates") or []]
        cost = _cost(found, seconds)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{config.url} tells of a search what cannot be read ({error!r:.120}): {_shown(choice)}"
        ) from None
    if not all(_is_number(reward) for reward in rewards):
        raise UserError(f"{config.url} tells a reward that is no number; a channel with such weights measures nothing.")
    if rewards and len(rewards) != len(tokens):
        raise UserError(f"{config.url} tells {len(rewards)} rewards of {len(tokens)} tokens.")
    return Reply(text or "", tokens, finish, [float(x) for x in rewards], cost, candidates or None)


def _cost(found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """serve.py's account, or what OpenAI's usage says; without the former the seconds are those of the request."""
    told = found["choices"][0].get("cost")
    if told:
        return {name: _number(value) for name, value in told.items()}
    count = (found.get("usage") or {}).get("completion_tokens")
    return {"seconds": seconds, **({} if count is None else {"committed_tokens": _whole_number(count)})}


def _candidate(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": _text(one["text"]),
        "score": None if one["score"] is None else _number(one["score"]),
        "step_scores": [_number(score) for score in one.get("step_scores") or []],
        "finish": _text(one["finish"]),
        "n_tokens": _whole_number(one["n_tokens"]),
    }


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.80} is no text")
    return value


def _number(value: Any) -> Any:
    if not _is_number(value):
        raise TypeError(f"{value!r:.80} is no number")
    return value


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63)


def _whole_number(value: Any) -> Any:
    if isinstance(value, float) or not _is_number(value):
        raise TypeError(f"{value!r:.80} is no whole number")
    return value


def _shown(value: Any) -> str:
    """The beginning of what a server says."""
    return json.dumps(value, ensure_ascii=False)[:120]
