"""What we answer, for /openapi.json; the tests hold every reply against these."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict


class Reply(BaseModel):
    """Exactly these fields."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorDetail(Reply):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(Reply):
    """Any status from 400 on."""

    error: ErrorDetail


class PromptDetails(Reply):
    """`cached_tokens`: those of the prompt that did not have to be read again."""

    cached_tokens: int


class CompletionDetails(Reply):
    """`explored_tokens`: all that the search has read. `reasoning_tokens`: of the answer, those of its thinking."""

    explored_tokens: int
    reasoning_tokens: int | None = None


class Usage(Reply):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptDetails
    completion_tokens_details: CompletionDetails


class Branch(Reply):
    """A leaf of the tree, and what a round read in it (`decode/snapshot.py`)."""

    parent: int
    rank: int
    tokens: list[int]
    logprobs: list[float | None]
    rewards: list[float | None]
    entropies: list[float | None]
    score: float | None
    finish: Literal["stop", "length"] | None
    kept: bool


class Tree(Reply):
    """All leaves after a round, and the reward at the prompt's last token."""

    anchor: float | None
    best: int | None
    branches: list[Branch]


class Round(Reply):
    """A round of the search: what it committed, and what it thought of it."""

    round: int
    score: float | None
    margin: float | None
    rewards: list[float | None]
    token_ids: list[int]
    tree: Tree | None = None


class TopLogprob(Reply):
    """An alternative. `bytes` is null where a token is only part of a character."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprob(TopLogprob):
    """A token of a chat's answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(Reply):
    """Log-probabilities in the style of chats."""

    content: list[TokenLogprob]
    refusal: None


class TextLogprobs(Reply):
    """Log-probabilities in the style of completions."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class Candidate(Reply):
    """A whole answer that a search chose from. `round`: the phase, or step, after which its fate was known."""

    candidate: int
    text: str
    score: float | None
    finish: Literal["stop", "length", "rejected"]
    round: int
    n_tokens: int
    step_scores: list[float | None] | None = None


class Cost(Reply):
    """What an answer cost (`decode/cost.py`)."""

    steps: int
    lane_steps: int
    explored_tokens: int
    committed_tokens: int
    kv_bytes: int
    drafted_tokens: int
    accepted_tokens: int
    seconds: float


class Choice(Reply):
    """What the choices of completions and chats have in common. `abort`: somebody called /abort_request."""

    index: int
    finish_reason: Literal["stop", "length", "abort"]
    token_ids: list[int] | None = None
    prompt_token_ids: list[int] | None = None
    search: list[Round] | None = None
    candidates: list[Candidate] | None = None
    cost: Cost | None = None


class TextChoice(Choice):
    """A completion."""

    text: str
    logprobs: TextLogprobs | None


class AssistantMessage(Reply):
    """What the model says, and what it thought before, if that is told apart and there was any."""

    role: Literal["assistant"]
    content: str
    reasoning_content: str | None = None
    refusal: None


class ChatChoice(Choice):
    """A chat's answer."""

    message: AssistantMessage
    logprobs: ChatLogprobs | None


class CompletionReply(Reply):
    """POST /v1/completions without stream."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[TextChoice]
    usage: Usage


class ChatReply(Reply):
    """POST /v1/chat/completions without stream."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage


class RewardsReply(Reply):
    """POST /v1/rewards."""

    object: Literal["rewards"]
    model: str
    rewards: list[float | None]
    token_ids: list[int]
    mean: float | None
    last: float | None
    usage: Usage


class SearchEntry(Reply):
    """A search profile: its method with all options, and what a request to it may ask for."""

    profile: str
    method: str
    options: dict[str, Any]
    streams: bool
    traces: bool
    rewards: bool
    top_logprobs: int


class ModelEntry(Reply):
    """A model, or a model with one of its search profiles; `channel` says whose rewards it gives."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    channel: str
    search: SearchEntry | None = None


class ModelsReply(Reply):
    """GET /v1/models."""

    object: Literal["list"]
    data: list[ModelEntry]


class StatusReply(Reply):
    """GET /health and /ready."""

    status: str


class VersionReply(Reply):
    """GET /version."""

    version: str


class AddedToken(Reply):
    """A token that stands beside the vocabulary, as tokenizer_config.json has it."""

    content: str
    single_word: bool
    lstrip: bool
    rstrip: bool
    normalized: bool
    special: bool


class TokenizerInfoReply(Reply):
    """GET /tokenizer_info: what tokenizer_config.json says of a tokenizer. `model_max_length` is our context."""

    tokenizer_class: str
    model_max_length: int
    chat_template: str | dict[str, str] | None
    bos_token: str | None
    eos_token: str | None
    unk_token: str | None
    sep_token: str | None
    pad_token: str | None
    cls_token: str | None
    mask_token: str | None
    added_tokens_decoder: dict[str, AddedToken]


class TokenizeReply(Reply):
    """POST /tokenize."""

    tokens: list[int]
    count: int
    max_model_len: int


class DetokenizeReply(Reply):
    """POST /detokenize."""

    prompt: str


class AbortReply(Reply):
    """POST /abort_request. `aborted` is false if nothing runs under that id (any more)."""

    request_id: str
    aborted: bool
