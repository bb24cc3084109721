"""Request bodies: what a client may send, field by field.

What they have in common is in `body.py`, with the fields that may only ask for nothing; messages are in `messages.py`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field

from sla_jax.decode.sampling import MAX_BIASES, RANGES
from sla_jax.serving.body import Body, Many, NoOps, Nothing, NothingOrTrue
from sla_jax.serving.messages import Message, Templated, Variables
from sla_jax.serving.request import MAX_STOP_TOKENS

MAX_STOPS, MAX_STOP_LENGTH, MAX_TOP_LOGPROBS, MAX_INT = 16, 256, 20, 2**31 - 1
TOKEN_ID = "token-id"  # a format of ours: /openapi.json then says how many tokens the model knows

Token = Annotated[int, Field(ge=0, le=MAX_INT, json_schema_extra={"format": TOKEN_ID})]
Tokens = Annotated[Many[Token], Field(min_length=1)]
Text = Annotated[str, Field(min_length=1)]
StopTokens = Annotated[Many[Token], Field(max_length=MAX_STOP_TOKENS)]
Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
Stops = Annotated[
    Stop | Annotated[Many[Stop], Field(max_length=MAX_STOPS)],
    BeforeValidator(lambda given: [] if given == "" else given),
]
ModelName = Annotated[str | None, AfterValidator(lambda name: name or None)]  # an empty one is none
TokenKey = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,8})$")]


def _few(biases: Any) -> Any:
    """Refuse more biases than there may be before pydantic looks at each of them."""
    if isinstance(biases, dict) and len(biases) > MAX_BIASES:
        raise ValueError(f"it has {len(biases)} tokens; at most {MAX_BIASES} can have a bias")
    return biases


def _range(name: str, **more: Any) -> Any:
    """A field with the range that `Sampling` gives it."""
    low, high = RANGES[name]
    return Field(ge=low, le=high, **more)


Bias = Annotated[float, Field(ge=-100, le=100)]
Biases = Annotated[dict[TokenKey, Bias], Field(max_length=MAX_BIASES), BeforeValidator(_few)]


class StreamOptions(Body):
    """How to stream."""

    include_usage: bool = Field(False, description="A last chunk without choices says how many tokens were used.")
    include_obfuscation: NothingOrTrue = None  # OpenAI's default; it changes no answer
    continuous_usage_stats: bool = Field(False, description="Every chunk says how many tokens were used so far.")


class Search(Body):
    """Which of the declared search profiles to use: by its name or by its settings. And what to tell of the search.

    This object is ours, so that a name it does not know is a mistake.
    """

    model_config = ConfigDict(extra="forbid")

    profile: str | None = Field(None, description="A profile's name.")
    method: Literal["greedy", "sla", "beam", "best_of_n", "speculative_rejection", "step_beam", "dvts"] | None = None
    width: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(None, description="Branches at every node.")
    chunk: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(None, description="Tokens of a node.")
    depth: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(None, description="Levels looked ahead.")
    branch_first: bool | None = Field(None, description="Branch the first chunk as well.")
    beams: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(None, description="Running answers of beam search.")
    n: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(None, description="Candidates.")
    alpha: Annotated[float, Field(ge=0, lt=1)] | None = Field(None, description="The share given up each time.")
    thinking_budget: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(
        None, description="Tokens of an answer after which its thinking, if it goes on, is ended."
    )
    return_rewards: bool = Field(False, description="Say of every round: round, score, margin, rewards, token_ids.")
    return_candidates: bool = Field(False, description="Say of every candidate what became of it, and its text.")
    return_tree: bool = Field(False, description="As return_rewards, and what rounds grew. For profiles with traces.")
    return_cost: bool = Field(False, description="Say with the last part of every answer what it cost.")


class Sampled(NoOps):
    """What completions and chats have in common."""

    model: ModelName = Field(None, description="MODEL, or MODEL:profile to choose a search. Default: the model served.")
    stream: bool = False
    stream_options: StreamOptions = StreamOptions.model_validate({})
    n: Annotated[int, Field(ge=1, le=128)] = Field(1, description="Answers to every prompt.")
    best_of: Annotated[int, Field(ge=1, le=128)] | None = Field(None, description="Only the same as n.")
    temperature: Annotated[float, _range("temperature")] = Field(
        0.0, description="0, the default here (OpenAI's is 1): the best token always."
    )
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=-1, le=RANGES["top_k"][1])] = Field(0, description="0 or -1: all.")
    min_p: Annotated[float, _range("min_p")] = 0.0
    seed: Annotated[int, _range("seed")] | None = Field(
        None, description="Same seed, same answer. Choice 0 uses it as it is, the others seeds made from it."
    )
    stop: Stops | None = Field(
        None, description="The answer ends before the first of these strings, min_tokens or not."
    )
    stop_token_ids: StopTokens = Field([], description="The answer also ends before these tokens, ignore_eos or not.")
    skip_special_tokens: bool = Field(True, description="If false the text spells special tokens, the end token too.")
    logit_bias: Biases = Field({}, description="Token id → what is added to its logit.")
    presence_penalty: Annotated[float, _range("presence_penalty")] = 0.0
    frequency_penalty: Annotated[float, _range("frequency_penalty")] = 0.0
    repetition_penalty: Annotated[float, _range("repetition_penalty")] = 1.0
    ignore_eos: bool = Field(False, description="Go on to max_tokens.")
    min_tokens: Annotated[int, _range("min_tokens")] = Field(0, description="No end token before as many.")
    max_thinking_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(
        None, description="Another name of search.thinking_budget."
    )
    thinking_token_budget: Annotated[int, Field(ge=-1, le=MAX_INT)] | None = Field(
        None, description="vLLM's name of search.thinking_budget; -1 is none."
    )
    return_token_ids: bool = Field(False, description="Adds token_ids and prompt_token_ids to the choices.")
    user: str | None = Field(None, description="Written to the access log.")
    search: Search = Search.model_validate({})


class CompletionBody(Sampled):
    """POST /v1/completions."""

    prompt: Text | Annotated[Many[Text], Field(min_length=1)] | Tokens | Annotated[Many[Tokens], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=0, le=MAX_INT)] | None = Field(
        None, description="Exact. 16, or what the context leaves if that is less; 0 only together with echo."
    )
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    echo: bool = Field(False, description="The prompt first; with logprobs, its log-probabilities too.")
    add_special_tokens: bool = Field(True, description="With the tokens that the tokenizer puts around a prompt.")


class ChatBody(Sampled, Templated):
    """POST /v1/chat/completions."""

    messages: Annotated[Many[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(
        None, description="The older name of max_completion_tokens."
    )
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_INT)] | None = Field(
        None, description="Exact. What the context leaves, if absent."
    )
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] = 0
    echo: Nothing = None
    include_reasoning: bool = Field(True, description="false leaves the thinking out of the reply.")
    separate_reasoning: bool = Field(True, description="false leaves it in the content, with its tags.")


class RewardsBody(NoOps):
    """POST /v1/rewards: a prompt or messages, and a response or its token ids."""

    model: ModelName = None
    prompt: Text | Tokens | None = None
    messages: Annotated[Many[Message], Field(min_length=1)] | None = None
    chat_template_kwargs: Variables = {}
    response: str | None = None
    token_ids: Tokens | None = None


class TokenizeBody(NoOps, Templated):
    """POST /tokenize: a prompt or messages."""

    model: ModelName = None
    prompt: str | None = None
    messages: Annotated[Many[Message], Field(min_length=1)] | None = None
    return_token_strs: Nothing = None


class DetokenizeBody(Body):
    """POST /detokenize."""

    model: ModelName = None
    tokens: Many[Token]


class AbortBody(Body):
    """POST /abort_request."""

    request_id: str = Field(description="The x-request-id of the request, which its client may have chosen.")
