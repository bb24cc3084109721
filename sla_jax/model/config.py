"""What a policy is, read from a Hugging Face `config.json` and from nothing else.

The model never looks at a model's name. Two architectures imply what no config file says (Qwen2 has biases on q, k
and v, Qwen3 normalizes q and k); `IMPLIED` says it once. Arguments that change the numbers have no defaults of ours: a
field that a file leaves out has the value of the library that wrote the file (`LIBRARY`), and `left_out` names it; any
other is an error, never a guess. A size is compared with `LARGEST` before anything is made of it: a file of strangers
can say that a model has a million million layers, and be believed until its weights are looked for.
"""

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, Literal

from sla_jax.errors import UserError, nearest, quoted

# model_type → what a config.json may leave out, and what transformers takes for it: the defaults of LlamaConfig,
# MistralConfig, Qwen2Config and Qwen3Config (models/*/configuration_*.py), the same from the first release that has the
# class (4.28, 4.34, 4.37 and 4.51) to 5.23. Releases that did not have a field yet computed with this value: Llama had
# no rope_theta in 4.31 and no mlp_bias in 4.37. Sizes are not here, as every release writes them, nor what follows from
# them: without num_key_value_heads a Llama has as many as heads, and head_dim is hidden_size / heads but for Qwen3.
_SHARED = {"hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": False}
_QWEN = {"max_position_embeddings": 32768, "num_key_value_heads": 32, "max_window_layers": 28}
_QWEN |= {"sliding_window": 4096, "use_sliding_window": False}
LIBRARY: dict[str, dict[str, Any]] = {
    "llama": {**_SHARED, "max_position_embeddings": 2048, "attention_bias": False, "mlp_bias": False},
    "mistral": {**_SHARED, "max_position_embeddings": 131072, "num_key_value_heads": 8, "sliding_window": 4096},
    "qwen2": {**_SHARED, **_QWEN},
    "qwen3": {**_SHARED, **_QWEN, "head_dim": 128, "attention_bias": False},
}
# what is read and has no value of the library's; a name that is read is never a misspelling of another
REQUIRED = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
)
# architecture → what no config.json says of it
IMPLIED: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM": {},
    "LlamaForCausalLMRewardTransformer": {},
    "MistralForCausalLM": {},
    "Qwen2ForCausalLM": {"qkv_bias": True},
    "Qwen3ForCausalLM": {"qk_norm": True},
}
CAUSAL, SEQUENCE, TOKEN = "ForCausalLM", "ForSequenceClassification", "ForTokenClassification"
VALUE, PROCESS = "ForPrmModel", "ForProcessRewardModel"  # Skywork-o1-Open-PRM, Qwen2.5-Math-PRM
HEADS = (SEQUENCE, TOKEN, VALUE, PROCESS)  # what stands in place of the LM head
IMPLIED |= {
    name.removesuffix(CAUSAL) + head: implied
    for name, implied in list(IMPLIED.items())
    if name.endswith(CAUSAL)
    for head in (SEQUENCE, TOKEN)
}
IMPLIED |= {"Qwen2" + head: IMPLIED["Qwen2ForCausalLM"] for head in (VALUE, PROCESS)}
# what a size may be at most: some ten times that of the largest published models
LARGEST = {
    **{"vocab_size": 2**22, "hidden_size": 2**16, "intermediate_size": 2**18, "num_hidden_layers": 2**10},
    **{"num_attention_heads": 2**9, "num_key_value_heads": 2**9, "head_dim": 2**9, "num_labels": 2**16},
    **{"tt_hidden_size": 2**16, "sr_head_layer": 16, "sr_out_dim": 2**16, "sr_hidden_size_rate": 64},
}
LARGEST_OTHER = 2**31 - 1  # positions are int32
LABELS = 2  # outputs of a score head whose config.json says neither id2label nor num_labels, as in transformers
ROPE_KINDS = ("default", "linear", "llama3")
LAYER_TYPES = ("full_attention", "sliding_attention")
WITH_CHANNEL = ("LlamaForCausalLMRewardTransformer",)
CHANNEL_DEFAULTS = {"tt_hidden_size": 512, "sr_head_layer": 1, "sr_out_dim": 2, "sr_hidden_size_rate": 1}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding; `factor` and the fields after it only matter to scaled kinds."""

    theta: float
    kind: Literal["default", "linear", "llama3"] = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ChannelConfig:
    """The reward channel: its width C and its head of `head_layers` linear layers, whose output 0 is the reward."""

    width: int
    head_layers: int = 1
    head_outputs: int = 2
    head_hidden_rate: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScoreConfig:
    """A head in place of the LM head, from the final norm's output: a reward model's or a classifier's.

    `kind` is what config.json calls it: "linear" as in transformers, "value" the same as TRL's value head, "mlp" with a
    hidden layer of width D, a bias and ReLU in front."""

    outputs: int
    bias: bool
    kind: Literal["linear", "value", "mlp"] = "linear"

    def __repr__(self) -> str:
        """As generated, but without `kind` where it is linear: caches are keyed by what earlier versions printed."""
        kind = "" if self.kind == "linear" else f", kind={self.kind!r}"
        return f"ScoreConfig(outputs={self.outputs}, bias={self.bias}{kind})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one Llama-family policy; hashable, so it can be a static argument."""

    vocab_size: int  # V
    width: int  # D
    ffn: int  # F
    layers: int  # L
    heads: int  # N
    kv_heads: int  # K
    head_dim: int  # H
    eps: float
    rope: Rope
    max_positions: int
    activation: str
    tied: bool
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    windows: tuple[int | None, ...] = ()  # one entry a layer: attend to this many last positions; None = all
    channel: ChannelConfig | None = None
    score: ScoreConfig | None = None  # with it there is no LM head, tied or not

    def __repr__(self) -> str:
        """As generated, but without `score` where it is None: caches are keyed by what earlier versions printed."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "score" or self.score is not None]
        return f"ModelConfig({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def __post_init__(self) -> None:
        if self.heads % self.kv_heads:
            raise UserError(
                f"num_attention_heads={self.heads} is not a multiple of num_key_value_heads={self.kv_heads}; if "
                "config.json leaves one out, it is the value that transformers takes. Write both into config.json."
            )
        if self.activation != "silu":
            raise UserError(f"hidden_act={self.activation!r} is not supported; this model family uses 'silu'.")
        if self.channel is not None and self.score is not None:
            raise UserError(
                "this model would have both a reward channel and a score head; a policy has one or the other. Take "
                "the channel (tt_hidden_size) or the classification architecture out of config.json."
            )
        if len(self.windows) != self.layers:
            object.__setattr__(self, "windows", (None,) * self.layers)

    @property
    def kv_numbers(self) -> int:
        """How many numbers the keys and values of one position are."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def groups(self) -> int:
        """Query heads per key/value head."""
        return self.heads // self.kv_heads


def from_hf(raw: Mapping[str, Any]) -> ModelConfig:
    """Read a Hugging Face `config.json`. Raises UserError naming the field that is missing or not supported."""
    arch = _architecture(raw)
    raw = {**left_out(raw), **raw}
    implied = IMPLIED[arch]
    if raw.get("mlp_bias"):
        raise UserError("config.json says mlp_bias=true; biases in the feed-forward layers are not supported.")
    width, heads = read_size(raw, "hidden_size"), read_size(raw, "num_attention_heads")
    layers = read_size(raw, "num_hidden_layers")
    bias = _flag(raw, "attention_bias")
    return ModelConfig(
        vocab_size=read_size(raw, "vocab_size"),
        width=width,
        ffn=read_size(raw, "intermediate_size"),
        layers=layers,
        heads=heads,
        kv_heads=read_size(raw, "num_key_value_heads", heads),
        head_dim=_head_dim(raw, width // heads),
        eps=read_number(raw, "rms_norm_eps"),
        rope=_rope(raw),
        max_positions=read_size(raw, "max_position_embeddings"),
        activation=_word(raw, "hidden_act"),
        tied=_flag(raw, "tie_word_embeddings"),
        qkv_bias=implied.get("qkv_bias", bias),
        out_bias=bias and "qkv_bias" not in implied,
        qk_norm=implied.get("qk_norm", False),
        windows=_windows(raw, layers),
        channel=channel_config(raw) if arch in WITH_CHANNEL or "tt_hidden_size" in raw else None,
        score=_score(raw, arch),
    )


def left_out(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that a `config.json` leaves out, each with the value that transformers takes for it.

    A field that is null is not left out."""
    arch = _architecture(raw).lower()
    library = next(values for model_type, values in LIBRARY.items() if arch.startswith(model_type))
    said = {*raw, *_scaling(raw)}
    return {name: value for name, value in library.items() if name not in said}


def _need(raw: Mapping[str, Any], name: str) -> Any:
    """A field without which there is no model; where it is missing, an error that names it."""
    if raw.get(name) is None:
        came = f"says null for {name!r}" if name in raw else f"has no {name!r}"
        hint = nearest(name, {*raw}.difference(REQUIRED, *LIBRARY.values()))
        raise UserError(f"config.json {came}; it changes the numbers, so it has no default.{hint}")
    return raw[name]


def read_size(raw: Mapping[str, Any], name: str, otherwise: int | None = None, least: int = 1) -> int:
    """A size of a config.json: a whole number, which may be written as 32.0. `otherwise` is that of a field that is
    absent or null, if it may be. Raises UserError."""
    value = _need(raw, name) if otherwise is None or raw.get(name) is not None else otherwise
    most = LARGEST.get(name, LARGEST_OTHER)
    whole = type(value) is int or (type(value) is float and value.is_integer())
    if not whole or not least <= value <= most:
        raise _unreadable(name, value, f"a whole number from {least} to {most}")
    return int(value)


def read_number(raw: Mapping[str, Any], name: str, where: str = "config.json") -> float:
    """A number of a config.json (or of the file `where`), finite and above 0. Raises UserError."""
    value, most = _need(raw, name), LARGEST.get(name, sys.float_info.max)
    if type(value) not in (int, float) or not 0 < value <= most:
        raise _unreadable(name, value, f"a number above 0 and up to {most:g}", where)
    return float(value)


def _word(raw: Mapping[str, Any], name: str) -> str:
    value = _need(raw, name)
    if not isinstance(value, str):
        raise _unreadable(name, value, "a text")
    return value


def _flag(raw: Mapping[str, Any], name: str, otherwise: bool = False) -> bool:
    value = otherwise if raw.get(name) is None else raw[name]
    if not isinstance(value, bool):
        raise _unreadable(name, value, "true or false")
    return value


def _unreadable(name: str, value: Any, wanted: str, where: str = "config.json") -> UserError:
    return UserError(f"{where}: {name}={quoted(value)}; expected {wanted}.")


def _head_dim(raw: Mapping[str, Any], otherwise: int) -> int:
    """The size of a head, which is rotated in pairs."""
    size = read_size(raw, "head_dim", otherwise)
    if size % 2:
        raise UserError(f"config.json: heads of size {size} (head_dim) cannot be rotated; expected an even number.")
    return size


def _architecture(raw: Mapping[str, Any]) -> str:
    names = raw.get("architectures") or []
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise _unreadable("architectures", names, "a list of one name")
    if len(names) == 1 and names[0] in IMPLIED:
        return str(names[0])
    shown = ", ".join(names) or "nothing"
    hint = nearest(names[0], IMPLIED) if names else ""
    raise UserError(f"config.json names the architecture {shown:.200}; supported are {', '.join(IMPLIED)}.{hint}")


def _scaling(raw: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_scaling` (transformers < 5), whose kind was called `type` at first, or `rope_parameters` (≥ 5).

    Raises UserError for anything but one object, such as one for each type of layer."""
    name = "rope_parameters" if raw.get("rope_parameters") else "rope_scaling"
    found = raw.get(name) or {}
    if not isinstance(found, Mapping) or any(isinstance(value, Mapping) for value in found.values()):
        raise UserError(
            f"config.json: {name}={found!r:.120}; expected one rotation for all layers, such as "
            "{'rope_type': 'linear', 'factor': 2.0}."
        )
    return dict(found)


def _rope(raw: Mapping[str, Any]) -> Rope:
    """`rope_theta`, beside the scaling (transformers < 5) or in it (≥ 5), and the scaling."""
    scaling = _scaling(raw)
    fields = {"rope_theta": raw.get("rope_theta"), **scaling}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind not in ROPE_KINDS:
        known = ", ".join(ROPE_KINDS)
        raise UserError(
            f"config.json asks for rope scaling {kind!r:.80}; supported are {known}.{nearest(str(kind), ROPE_KINDS)}"
        )
    theta = read_number(fields, "rope_theta")
    if kind == "default":
        return Rope(theta=theta)
    factor = read_number(fields, "factor")
    if kind == "linear":
        return Rope(theta=theta, kind="linear", factor=factor)
    low, high = read_number(fields, "low_freq_factor"), read_number(fields, "high_freq_factor")
    if high <= low:
        raise UserError(f"config.json: high_freq_factor={high:g} is not above low_freq_factor={low:g}.")
    return Rope(
        theta=theta,
        kind="llama3",
        factor=factor,
        low_freq_factor=low,
        high_freq_factor=high,
        original_max_position=read_size(fields, "original_max_position_embeddings"),
    )


def _windows(raw: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    """Sliding-window size per layer: `use_sliding_window: false` means none, `layer_types` says which layers slide."""
    if not raw.get("sliding_window") or not _flag(raw, "use_sliding_window", True):
        return (None,) * layers
    window, kinds = read_size(raw, "sliding_window"), raw.get("layer_types")
    if kinds is None:
        first = min(layers, read_size(raw, "max_window_layers", least=0)) if "use_sliding_window" in raw else 0
        return (None,) * first + (window,) * (layers - first)
    if not isinstance(kinds, list) or len(kinds) != layers or not all(kind in LAYER_TYPES for kind in kinds):
        raise _unreadable("layer_types", kinds, f"one of {', '.join(LAYER_TYPES)} for each of {layers} layers")
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)


def channel_config(raw: Mapping[str, Any]) -> ChannelConfig:
    """A channel from the public release's keys, of config.json or a channel's file; one that is left out has the
    release's own value. Raises UserError."""
    raw = {**CHANNEL_DEFAULTS, **raw}
    return ChannelConfig(
        width=read_size(raw, "tt_hidden_size"),
        head_layers=read_size(raw, "sr_head_layer"),
        head_outputs=read_size(raw, "sr_out_dim"),
        head_hidden_rate=read_number(raw, "sr_hidden_size_rate"),
    )


def _score(raw: Mapping[str, Any], arch: str) -> ScoreConfig | None:
    """Sequence classification has no bias; token classification has one unless config.json says otherwise."""
    if not arch.endswith(HEADS):
        return None
    if arch.endswith(VALUE):
        return ScoreConfig(outputs=1, bias=True, kind="value")
    labels, count = raw.get("id2label"), raw.get("num_labels")
    if labels is not None and (not isinstance(labels, Mapping) or count not in (None, len(labels))):
        raise UserError(
            f"config.json: num_labels={quoted(count)} and id2label={quoted(labels)} do not agree on the outputs of the "
            "score head."
        )
    said = (LABELS if count is None else count) if labels is None else len(labels)
    outputs = read_size({"num_labels": said}, "num_labels", least=0)
    if outputs < 1:
        raise UserError(f"config.json says {outputs} labels; a score head has at least one output.")
    if arch.endswith(PROCESS):
        return ScoreConfig(outputs=outputs, bias=True, kind="mlp")
    return ScoreConfig(outputs=outputs, bias=arch.endswith(TOKEN) and _flag(raw, "token_classification_bias", True))
