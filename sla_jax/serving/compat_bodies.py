"""What the routes of `compat.py` take and give: JetStream's bodies, and the fields of vLLM 0.2's SamplingParams."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from sla_jax.decode.sampling import Sampling
from sla_jax.serving.body import Body, Many, NoOps, Nothing
from sla_jax.serving.errors import bad
from sla_jax.serving.replies import Reply
from sla_jax.serving.schema import MAX_INT, Stops, StopTokens, Text, Token

SEARCH = "StreamingTreeSearch"


class TextContent(Body):
    """A prompt as text."""

    text: Text


class TokenContent(Body):
    """A prompt as token ids; nothing is put before them."""

    token_ids: Annotated[Many[Token], Field(min_length=1)]


class JetStreamBody(Body):
    """POST /v1/generate: one of the two contents."""

    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)]
    text_content: TextContent | None = None
    token_content: TokenContent | None = None

    def prompt(self) -> str | list[int]:
        """The one that is given. Raises ApiError for none or both."""
        if (self.text_content is None) == (self.token_content is None):
            raise bad("give text_content or token_content, and not both.", "text_content")
        return (
            self.text_content.text if self.text_content else self.token_content.token_ids if self.token_content else []
        )


class OriginalBody(NoOps):
    """POST /generate and /ck_generate: the fields of vLLM 0.2's SamplingParams, and those of its search."""

    prompt: Text
    stream: bool = False
    return_all_info: bool = Field(False, description="/ck_generate, streamed: what the search thought of every piece.")
    n: Annotated[int, Field(ge=1, le=128)] = 1
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(
        None, description="Draw as many answers and give the n most probable; not streamed."
    )
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=0.01, le=2)] = 1.0
    temperature: Annotated[float, Field(ge=0, le=100)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=MAX_INT)] = -1
    min_p: Annotated[float, Field(ge=0, le=1)] = 0.0
    stop: Stops | None = None
    stop_token_ids: StopTokens = []
    ignore_eos: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] = 16
    logprobs: Nothing = None
    skip_special_tokens: bool = True
    ck_mode: Literal["Normal", "StreamingTreeSearch"] | None = "Normal"
    ck_n: Annotated[int, Field(ge=1, le=MAX_INT)] | None = 2
    ck_k: Annotated[int, Field(ge=1, le=MAX_INT)] | None = 8
    ck_d: Annotated[int, Field(ge=0, le=MAX_INT)] | None = 0
    ck_length_penalty: float | None = 0

    @property
    def searches(self) -> bool:
        """Whether it asks for a tree search."""
        return self.ck_mode == SEARCH

    @property
    def stops(self) -> Sequence[str]:
        """Its stop strings."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    @property
    def drawn(self) -> int:
        """Answers to make."""
        return self.best_of or self.n

    def check(self) -> None:
        """Raise ApiError for what does not go together."""
        if self.ck_length_penalty not in (0, 1, None):
            raise bad(
                f"ck_length_penalty is {self.ck_length_penalty}; the original server ignores it and scores by the mean "
                "reward, and so does this one: leave it out, or send 0 or 1.",
                "ck_length_penalty",
            )
        if self.top_k == 0:
            raise bad("top_k is 0; it has to be -1 (all tokens) or at least 1.", "top_k")
        if self.drawn < self.n:
            raise bad(f"best_of is {self.best_of} and n is {self.n}; best_of has to be at least n.", "best_of")
        if self.drawn > self.n and self.stream:
            raise bad("best_of above n cannot be streamed: the best is known at the end.", "best_of")
        if self.drawn > 1 and (self.searches or self.temperature < 1e-5):
            raise bad("n and best_of above 1 need a temperature above 0 and ck_mode Normal.", "n")
        if self.searches and (self.top_p, self.top_k, self.min_p) != (1.0, -1, 0.0):
            raise bad(
                "top_p, top_k and min_p have no meaning in a search for the best tokens; leave them out.", "top_p"
            )

    def sampling(self, seed: int) -> Sampling:
        """How tokens are chosen; without a temperature, or in a search, nothing is drawn."""
        drawn = not self.searches and self.temperature >= 1e-5
        return Sampling(
            temperature=self.temperature if drawn else 0.0,
            top_p=self.top_p if drawn else 1.0,
            top_k=max(self.top_k, 0) if drawn else 0,
            min_p=self.min_p if drawn else 0.0,
            seed=seed,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            repetition_penalty=self.repetition_penalty,
        )


class TextsReply(Reply):
    """POST /generate: prompt and answer, of every answer."""

    text: list[str]


class TextReply(Reply):
    """POST /ck_generate: the answer."""

    text: str


class RewardsReply(Reply):
    """POST /ck_check_reward_score."""

    positive_logits: list[float | None]


class RewardBody(Body):
    """POST /ck_check_reward_score."""

    prompt: Text
    response: Text
    max_tokens: Annotated[int, Field(ge=1, le=1)] | None = Field(
        None, description="Nothing is generated; the original's client sends 1."
    )
