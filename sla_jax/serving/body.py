"""What every request body has in common, and the fields of other servers' APIs that ask for nothing.

Types are strict ("1" is no number, true is no integer). A field that is null is absent, at every depth. A name that no
model has is not refused here: `complaints.UnknownFields` tells the client of it, or refuses it if the server is strict.

A body with a million mistakes has a few errors: a list (`Many`) ends at its first bad element, an object that forbids
unknown names at the first one.
"""

import json
from collections.abc import Sequence
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema, PydanticCustomError, PydanticOmit, core_schema

EMPTY: tuple[Any, ...] = (None, False, "", [], {})
NOT_HONOURED = "not_honoured"
Item = TypeVar("Item")
Many = Annotated[list[Item], Field(fail_fast=True)]  # every list in a body


def _nullable(schema: dict[str, Any]) -> None:
    """Say in a schema that every field that may be absent may be null."""
    for name, field in schema.get("properties", {}).items():
        if name not in schema.get("required", []) and {"type": "null"} not in field.get("anyOf", []):
            schema["properties"][name] = {"anyOf": [field, {"type": "null"}]}


class Body(BaseModel):
    """An object that a client sends: strict about types, null is absent."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=(), json_schema_extra=_nullable)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, data: Any) -> Any:
        """Without nulls; of names that this object does not know, one is enough to refuse it."""
        if not isinstance(data, dict):
            return data
        data = without_nulls(data)
        if cls.model_config.get("extra") != "forbid":
            return data
        unknown = [name for name in data if name not in cls.model_fields][:1]
        return {name: value for name, value in data.items() if name in cls.model_fields or name in unknown}


def without_nulls(data: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not null."""
    return {name: value for name, value in data.items() if value is not None}


def _is_one_of(value: Any, values: Sequence[Any]) -> bool:
    """Whether a value is among others; 0 is not false, and 1 not true."""
    return any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in values)


class Neutral:
    """Lets a field have only a value that asks for nothing: null, false, empty, or one of `values`; it is None then.

    An object counts without its fields that are null, false or empty: {"type": "text", "json_schema": null} is text.
    """

    def __init__(self, *values: Any):
        self._values = (*EMPTY, *values)

    def check(self, value: Any) -> None:
        """Raise pydantic's error, of the type NOT_HONOURED, for a value that asks for something."""
        if isinstance(value, dict):
            value = {name: item for name, item in value.items() if not _is_one_of(item, EMPTY)}
        if not _is_one_of(value, self._values):
            allowed = ", ".join(["null", "false", "empty", *map(json.dumps, self._values[len(EMPTY) :])])
            raise PydanticCustomError(NOT_HONOURED, "it may only be {allowed}", {"allowed": allowed})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_plain_validator_function(self.check)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Leave the field out of /openapi.json: it says what may be asked for."""
        raise PydanticOmit


Nothing = Annotated[Any, Neutral()]
NothingOrTrue = Annotated[Any, Neutral(True)]
NothingOrZero = Annotated[Any, Neutral(0)]
NothingOrChoice = Annotated[Any, Neutral("none", "auto")]
NothingOrMedium = Annotated[Any, Neutral("medium")]  # OpenAI's default of both


class NoOps(Body):
    """Fields of OpenAI's, vLLM's and SGLang's APIs that this server does not honour: the one table of what they may be.

    The first ones name or hint at something and cannot change an answer, whatever they say. The others are taken with a
    value that asks for nothing, which is often their default there, and refused by name with any other.
    """

    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    spaces_between_special_tokens: bool | None = None
    request_id: str | None = None
    rid: str | Many[str] | None = None
    session_id: str | None = None
    custom_labels: dict[str, Any] | None = None

    # OpenAI
    audio: Nothing = None
    function_call: NothingOrChoice = None
    functions: Nothing = None
    modalities: Annotated[Any, Neutral(["text"])] = None
    moderation: Nothing = None
    prediction: Nothing = None
    reasoning_effort: NothingOrMedium = None
    response_format: Annotated[Any, Neutral({"type": "text"})] = None
    suffix: Nothing = None
    tool_choice: NothingOrChoice = None
    tools: Nothing = None
    verbosity: NothingOrMedium = None
    web_search_options: Nothing = None

    # vLLM
    allowed_token_ids: Nothing = None
    bad_words: Nothing = None
    cache_salt: Nothing = None
    chat_template: Nothing = None
    documents: Nothing = None
    early_stopping: Nothing = None
    ec_transfer_params: Nothing = None
    guided_choice: Nothing = None
    guided_decoding_backend: Nothing = None
    guided_grammar: Nothing = None
    guided_json: Nothing = None
    guided_json_object: Nothing = None
    guided_regex: Nothing = None
    guided_whitespace_pattern: Nothing = None
    include_reasoning: NothingOrTrue = None
    include_stop_str_in_output: Nothing = None
    kv_transfer_params: Nothing = None
    length_penalty: Annotated[Any, Neutral(1.0)] = None
    logprob_token_ids: Nothing = None
    logits_processors: Nothing = None
    media_io_kwargs: Nothing = None
    mm_processor_kwargs: Nothing = None
    priority: NothingOrZero = None
    prompt_embeds: Nothing = None
    prompt_logprobs: Nothing = None
    repetition_detection: Nothing = None
    return_mm_kwargs: NothingOrTrue = None
    return_prompt_text: Nothing = None
    return_token_offsets: Nothing = None
    return_tokens_as_token_ids: Nothing = None
    routed_experts_prompt_start: NothingOrZero = None
    stream_interval: Annotated[Any, Neutral(1)] = None
    structural_tag: Nothing = None
    structured_outputs: Nothing = None
    truncate_prompt_tokens: Nothing = None
    truncation_side: Nothing = None
    use_beam_search: Nothing = None
    vllm_xargs: Nothing = None
    watermarking: Nothing = None

    # SGLang
    bootstrap_host: Nothing = None
    bootstrap_port: Nothing = None
    bootstrap_room: Nothing = None
    custom_logit_processor: Nothing = None
    custom_params: Nothing = None
    data_parallel_rank: Nothing = None
    disagg_prefill_dp_rank: Nothing = None
    ebnf: Nothing = None
    extra_key: Nothing = None
    images_config: Nothing = None
    input_ids: Nothing = None
    json_schema: Nothing = None
    lora_path: Nothing = None
    max_dynamic_patch: Nothing = None
    min_dynamic_patch: Nothing = None
    ngram_corpus_id: Nothing = None
    no_stop_trim: Nothing = None
    reasoning: Nothing = None
    regex: Nothing = None
    return_cached_tokens_details: Nothing = None
    return_hidden_states: Nothing = None
    return_meta_info: Nothing = None
    return_prompt_token_ids: Nothing = None
    return_routed_experts: Nothing = None
    routed_dp_rank: Nothing = None
    routed_experts_start_len: NothingOrZero = None
    separate_reasoning: NothingOrTrue = None
    session_params: Nothing = None
    stop_regex: Nothing = None
    stream_reasoning: NothingOrTrue = None
    task: Nothing = None
    use_audio_in_video: Nothing = None
