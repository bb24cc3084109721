"""Answers from a server that speaks OpenAI's chat completions; serve.py also tells candidates, rewards and costs.

A request is sent again, after a pause that doubles or as long as Retry-After says, when the server is unreachable, busy
or failing. What it refuses is an error at once. Nothing but the standard library is needed.
"""

import dataclasses
import functools
import http.client
import json
import math
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any

from sla_jax.decode.methods import METHODS, Trees
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.evaluation.answering import Ask, Reply
from sla_jax.evaluation.settings import MethodConfig, ServerConfig
from sla_jax.files import whole_characters
from sla_jax.text import NO_VARIABLES

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504)  # statuses that may pass
LONGEST_PAUSE = 60.0
UNREACHABLE = (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError)


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
        return dict(self._entry(f":{method.profile}")["search"]["options"])

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
                self._pause(max(wait, min(2.0 ** (attempt - 1), LONGEST_PAUSE)))
            try:
                return self._send(url, body)
            except urllib.error.HTTPError as error:
                reason, wait = _said(error), _retry_after(error)
                if error.code not in AGAIN:
                    raise UserError(f"{url} refused a request ({error.code}): {reason}") from None
                reason = f"it answers {error.code}: {reason}"
            except UNREACHABLE as error:
                reason, wait = f"{getattr(error, 'reason', None) or error!r}", 0.0
        times = "once" if self.config.retries == 0 else f"{self.config.retries + 1} times"
        raise UserError(
            f"{url} gives no answer, tried {times}: {reason.rstrip('.')}. Is the server running, and is "
            "server.url right?"
        )

    def _send(self, url: str, body: Mapping[str, Any] | None) -> Any:
        headers = {"Content-Type": "application/json"}
        if self.config.key is not None:
            headers["Authorization"] = f"Bearer {self.config.key}"
        data, method = (None, "GET") if body is None else (json.dumps(body).encode(), "POST")
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, timeout=self.config.timeout) as response:
            text = response.read()
        try:
            return json.loads(text)
        except ValueError:
            raise UserError(f"{url} answers what is no JSON: {text[:80]!r}. Is server.url right?") from None


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
        shown = json.dumps(found, ensure_ascii=False)[:120]
        raise UserError(f"{config.url} answers without choices[0].message.content or .finish_reason: {shown}") from None
    if not isinstance(text, str | None) or not isinstance(finish, str):
        raise UserError(f"{config.url} answers with the content {text!r} and the finish_reason {finish!r}.")
    tokens = list(choice.get("token_ids") or [])
    rewards = [reward for round_ in choice.get("search") or [] for reward in round_.get("rewards") or []]
    if not all(isinstance(reward, int | float) and math.isfinite(reward) for reward in rewards):
        raise UserError(f"{config.url} tells a reward that is no number; a channel with such weights measures nothing.")
    if rewards and len(rewards) != len(tokens):
        raise UserError(f"{config.url} tells {len(rewards)} rewards of {len(tokens)} tokens.")
    candidates = [_candidate(one) for one in choice.get("candidates") or []]
    return Reply(
        whole_characters(text or ""),
        tokens,
        finish,
        [float(x) for x in rewards],
        _cost(found, seconds),
        candidates or None,
    )


def _cost(found: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """serve.py's account, or what OpenAI's usage says; without the former the seconds are those of the request."""
    told = found["choices"][0].get("cost")
    if told:
        return dict(told)
    count = (found.get("usage") or {}).get("completion_tokens")
    return {"seconds": seconds, **({} if count is None else {"committed_tokens": count})}


def _candidate(one: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "text": whole_characters(one["text"]),
        "score": one["score"],
        "step_scores": list(one.get("step_scores") or []),
        "finish": one["finish"],
        "n_tokens": one["n_tokens"],
    }


def _said(error: urllib.error.HTTPError) -> str:
    """The message of an error object, or the beginning of what came."""
    with error:
        text = error.read().decode("utf-8", "replace")
    try:
        return str(json.loads(text)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return text[:200].strip() or error.reason


def _retry_after(error: urllib.error.HTTPError) -> float:
    value = error.headers.get("Retry-After", "")
    return min(float(value), LONGEST_PAUSE) if value.isdigit() else 0.0
