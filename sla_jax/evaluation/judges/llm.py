"""A language model behind an OpenAI-compatible server as a pairwise judge: asked twice, with the answers swapped.

Models prefer what they read first, or last. So a method wins only if both orders say so; two replies that disagree, and
a reply without a verdict, are a tie, and details say which of these it was. Temperature 0. The way of asking is that of
MT-Bench (arXiv 2306.05685, in our own words): two answers, a short explanation, a verdict [[A]], [[B]] or [[C]].
"""

import json
import os
import re
import time
from collections.abc import Callable
from typing import Any

from sla_jax import client
from sla_jax.errors import UserError
from sla_jax.evaluation.judges.protocol import Comparison, Winner
from sla_jax.evaluation.judges.verify import named
from sla_jax.evaluation.rows import Answer
from sla_jax.scoring.candidate import Message

RETRIES, TIMEOUT = 4, 120.0
VERDICT = re.compile(r"\[\[([ABC])\]\]")
INSTRUCTIONS = (
    "You compare two assistants' answers to the same user. Judge how helpful, relevant, correct, thorough and harmless "
    "they are. Neither the order in which the answers stand nor their length nor the assistants' names may count. If a "
    "reference answer is given, it is right. Explain your comparison in a few sentences, then end with exactly one of: "
    "[[A]] if assistant A is better, [[B]] if assistant B is better, [[C]] if they are equally good."
)
Ask = Callable[[list[Message]], str]


class LlmJudge:
    """Compares a method's answer with the baseline's, all turns of a conversation at once."""

    def __init__(self, ask: Ask):
        self.ask = ask

    def compare(self, method: Answer, baseline: Answer) -> Comparison:
        """The better one. Raises UserError if the server cannot be asked."""
        try:
            replies = [self.ask(question(method, baseline)), self.ask(question(baseline, method))]
        except UserError as error:
            raise UserError(f"{named(method)} against {baseline.method} could not be compared: {error}") from None
        verdicts = [verdict(reply) for reply in replies]
        details: dict[str, Any] = {"verdicts": verdicts, "replies": replies}
        return Comparison(method.id, baseline.method, winner(verdicts[0], verdicts[1]), details)


def question(first: Answer, second: Answer) -> list[Message]:
    """What the model is asked, with `first` as assistant A."""
    parts = [] if first.reference is None else [f"[Reference answer]\n{first.reference}"]
    for letter, answer in (("A", first), ("B", second)):
        last = {"role": "assistant", "content": answer.turns[-1].text}
        said = [f"[{one['role']}]\n{one['content']}" for one in (*answer.messages(len(answer.turns) - 1), last)]
        parts.append(f"<conversation with assistant {letter}>\n" + "\n\n".join(said) + "\n</conversation>")
    return [{"role": "system", "content": INSTRUCTIONS}, {"role": "user", "content": "\n\n".join(parts)}]


def verdict(reply: str) -> str | None:
    """The last verdict of a reply: A, B or C; None if it gives none."""
    found = VERDICT.findall(reply)
    return found[-1] if found else None


def winner(straight: str | None, swapped: str | None) -> Winner:
    """Both orders' word: in the first the method is A, in the second B."""
    if (straight, swapped) == ("A", "B"):
        return "method"
    return "baseline" if (straight, swapped) == ("B", "A") else "tie"


class Server:
    """Chat completions of one model, by POST URL/chat/completions; refused and broken requests are tried again."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        key_env: str | None = None,
        retries: int = RETRIES,
        timeout: float = TIMEOUT,
        sleep: Callable[[float], None] = time.sleep,
    ):
        if not url.startswith(("http://", "https://")):
            raise UserError(f"url={url!r} is no address; give one such as http://localhost:8000/v1.")
        key = os.environ.get(key_env) if key_env else None
        if key_env and not key:
            raise UserError(f"key_env={key_env!r}: that environment variable is empty; put the server's key into it.")
        self.url, self.model = f"{url.rstrip('/')}/chat/completions", model
        self.headers = {"Content-Type": "application/json", **client.authorization(key or None)}
        self.retries, self.timeout, self.sleep = retries, timeout, sleep

    def __call__(self, messages: list[Message]) -> str:
        """The model's reply. Raises UserError naming the address and what it said."""
        body = json.dumps({"model": self.model, "messages": messages, "temperature": 0.0}).encode()
        said = ""
        for attempt in range(self.retries + 1):
            if attempt:
                self.sleep(min(60.0, 2.0**attempt))
            try:
                found = client.send(self.url, body, self.headers, timeout=self.timeout)
            except client.Unreachable as error:  # refused, reset, timed out, cut short, no such host
                said = f"it cannot be reached ({error})"
                continue
            if 200 <= found.status < 300:
                return self._text(found)
            said = f"it answered {found.status}: {found.said}"
            if found.status not in client.AGAIN:
                break
        raise UserError(f"the judge at {self.url} did not reply: {said}. What is already judged is kept; run it again.")

    def _text(self, found: client.Answer) -> str:
        try:
            return str(client.value_of(found)["choices"][0]["message"]["content"])
        except (ValueError, KeyError, IndexError, TypeError):
            shown = found.body[:200].decode(errors="replace")
            raise UserError(f"the judge at {self.url} replied what is no chat completion: {shown!r}.") from None
