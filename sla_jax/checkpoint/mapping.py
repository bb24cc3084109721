"""The names of parameters: one table, read left to right to export and right to left to import.

Each row says our flat name, the public (Hugging Face) name, and the GGUF name. `{i}` is the layer; a name with `{i}`
has a row per layer in the file and one stacked array [L, …] with us. Matrices are [out, in] in public files and [in,
out] with us, so they are transposed. The channel's public names are those of the SLA release (arXiv 2503.00029,
CognitiveKernel/SLA). Whatever a checkpoint holds that the table does not say is an error that names it, and so is the
reverse.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

from sla_jax.errors import UserError, nearest
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import param_shapes

SHOWN = 3  # names listed in an error before "and N more"
CHANNEL_PREFIXES = ("tt_layers.", "sr_head.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One row. `first` is the layer of the stacked array's index 0; `rotary` marks interleaved rows in GGUF."""

    ours: str
    public: str
    gguf: str | None = None
    transpose: bool = False
    first: int = 0
    rotary: Literal["heads", "kv_heads"] | None = None
    when: Callable[[ModelConfig], bool] = lambda config: True


@dataclasses.dataclass(frozen=True, kw_only=True)
class Slot:
    """Where one public tensor lives with us: `layer` indexes the stacked array, None means the whole array."""

    public: str
    ours: str
    layer: int | None
    transpose: bool
    shape: tuple[int, ...]  # as in the public file


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ignored:
    """A public name that may be there and holds nothing new; `same_as` must then be equal to it, value for value."""

    pattern: str
    why: str
    same_as: str | None = None
    when: Callable[[ModelConfig], bool] = lambda config: True


def _tied_head(config: ModelConfig) -> bool:
    return config.tied and config.score is None


def _own_head(config: ModelConfig) -> bool:
    return not config.tied and config.score is None


def _score(config: ModelConfig) -> bool:
    return config.score is not None and config.score.kind == "linear"


def _score_bias(config: ModelConfig) -> bool:
    return config.score is not None and config.score.kind == "linear" and config.score.bias


def _value(config: ModelConfig) -> bool:
    return config.score is not None and config.score.kind == "value"


def _mlp(config: ModelConfig) -> bool:
    return config.score is not None and config.score.kind == "mlp"


def _unread_head(config: ModelConfig) -> bool:
    return _value(config) or _mlp(config)


def _qkv_bias(config: ModelConfig) -> bool:
    return config.qkv_bias


def _out_bias(config: ModelConfig) -> bool:
    return config.out_bias


def _qk_norm(config: ModelConfig) -> bool:
    return config.qk_norm


def _channel(config: ModelConfig) -> bool:
    return config.channel is not None


def _attention(name: str, gguf: str, rotary: Literal["heads", "kv_heads"] | None, bias: Any) -> tuple[Entry, Entry]:
    """The rows of one projection: its weight, and its bias where the config has one."""
    public, ours = f"model.layers.{{i}}.self_attn.{name}_proj", f"blocks.attn.{name}"
    blk = f"blk.{{i}}.{gguf}"
    weight = Entry(ours=ours, public=f"{public}.weight", gguf=f"{blk}.weight", transpose=True, rotary=rotary)
    return weight, Entry(ours=f"{ours}_bias", public=f"{public}.bias", gguf=f"{blk}.bias", rotary=rotary, when=bias)


def _layer(ours: str, public: str, gguf: str | None, **more: Any) -> Entry:
    return Entry(
        ours=f"blocks.{ours}",
        public=f"model.layers.{{i}}.{public}.weight",
        gguf=f"blk.{{i}}.{gguf}.weight" if gguf else None,
        **more,
    )


TABLE: tuple[Entry, ...] = (
    Entry(ours="embed", public="model.embed_tokens.weight", gguf="token_embd.weight"),
    _layer("attn_norm", "input_layernorm", "attn_norm"),
    *_attention("q", "attn_q", "heads", _qkv_bias),
    *_attention("k", "attn_k", "kv_heads", _qkv_bias),
    *_attention("v", "attn_v", None, _qkv_bias),
    *_attention("o", "attn_output", None, _out_bias),
    _layer("attn.q_norm", "self_attn.q_norm", None, when=_qk_norm),
    _layer("attn.k_norm", "self_attn.k_norm", None, when=_qk_norm),
    _layer("mlp_norm", "post_attention_layernorm", "ffn_norm"),
    _layer("mlp.gate", "mlp.gate_proj", "ffn_gate", transpose=True),
    _layer("mlp.up", "mlp.up_proj", "ffn_up", transpose=True),
    _layer("mlp.down", "mlp.down_proj", "ffn_down", transpose=True),
    Entry(ours="norm", public="model.norm.weight", gguf="output_norm.weight"),
    Entry(ours="head", public="lm_head.weight", gguf="output.weight", transpose=True, when=_own_head),
    Entry(ours="score.weight", public="score.weight", transpose=True, when=_score),
    Entry(ours="score.bias", public="score.bias", when=_score_bias),
    Entry(ours="score.weight", public="v_head.summary.weight", transpose=True, when=_value),
    Entry(ours="score.bias", public="v_head.summary.bias", when=_value),
    Entry(ours="score.hidden", public="score.0.weight", transpose=True, when=_mlp),
    Entry(ours="score.hidden_bias", public="score.0.bias", when=_mlp),
    Entry(ours="score.weight", public="score.2.weight", transpose=True, when=_mlp),
    Entry(ours="score.bias", public="score.2.bias", when=_mlp),
    Entry(ours="channel.first_norm", public="tt_layers.0.tt_layernorm.weight", when=_channel),
    Entry(ours="channel.first", public="tt_layers.0.tt_linear.weight", transpose=True, when=_channel),
    Entry(ours="channel.norm", public="tt_layers.{i}.tt_layernorm.weight", first=1, when=_channel),
    Entry(ours="channel.linear", public="tt_layers.{i}.tt_linear.weight", first=1, transpose=True, when=_channel),
)

IGNORED: tuple[Ignored, ...] = (
    Ignored(pattern=r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq", why="computed from config.json"),
    Ignored(
        pattern=r"lm_head\.weight",
        why="the head is tied to the embedding (tie_word_embeddings)",
        same_as="model.embed_tokens.weight",
        when=_tied_head,
    ),
    Ignored(pattern=r"lm_head\.weight", why="its own head is all that a process reward model reads", when=_unread_head),
)


def head_entries(config: ModelConfig) -> tuple[Entry, ...]:
    """The channel's head: `sr_head.weight` alone, or `sr_head.0`, `.2`, `.4` … with an activation between."""
    if config.channel is None:
        return ()
    if config.channel.head_layers == 1:
        return (Entry(ours="channel.head.0", public="sr_head.weight", transpose=True),)
    return tuple(
        Entry(ours=f"channel.head.{j}", public=f"sr_head.{2 * j}.weight", transpose=True)
        for j in range(config.channel.head_layers)
    )


def slots(config: ModelConfig) -> list[Slot]:
    """Every public tensor of this config, in the order of the table, with its public shape."""
    shapes = param_shapes(config)
    entries = [entry for entry in (*TABLE, *head_entries(config)) if entry.when(config)]
    missing = shapes.keys() - {entry.ours for entry in entries}
    assert not missing, f"parameters without a row in the table: {missing}"
    return [slot for entry in entries for slot in _expand(entry, shapes[entry.ours].shape)]


def _expand(entry: Entry, shape: tuple[int, ...]) -> list[Slot]:
    stacked = "{i}" in entry.public
    one = shape[1:] if stacked else shape
    public_shape = one[::-1] if entry.transpose else one
    layers = range(shape[0]) if stacked else (None,)
    return [
        Slot(
            public=entry.public if layer is None else entry.public.format(i=layer + entry.first),
            ours=entry.ours,
            layer=layer,
            transpose=entry.transpose,
            shape=public_shape,
        )
        for layer in layers
    ]


def check(config: ModelConfig, found: Mapping[str, tuple[int, ...]], where: str) -> list[str]:
    """Match a file's names and shapes against the table. Returns the public names that are ignored on purpose."""
    wanted = {slot.public: slot for slot in slots(config)}
    ignored = [name for name in found if name not in wanted and ignorable(config, name)]
    unknown = [name for name in found if name not in wanted and name not in ignored]
    missing = [name for name in wanted if name not in found]
    if unknown:
        raise UserError(_unknown(unknown, missing or list(wanted), where))
    if missing:
        hint = " Or is it tied, and tie_word_embeddings missing?" if missing == ["lm_head.weight"] else ""
        raise UserError(
            f"{where} lacks {listed(missing)}, which config.json says this model has. Is the download complete?{hint}"
        )
    for name, slot in wanted.items():
        if tuple(found[name]) != slot.shape:
            raise UserError(
                f"{where}: the tensor {name!r} has shape {tuple(found[name])}; config.json says {slot.shape}. Check "
                "that weights and config.json belong together."
            )
    return ignored


def ignorable(config: ModelConfig, name: str) -> Ignored | None:
    """The row of IGNORED that allows this public name, if any."""
    return next((row for row in IGNORED if row.when(config) and re.fullmatch(row.pattern, name)), None)


def _unknown(unknown: list[str], known: Iterable[str], where: str) -> str:
    channel = all(name.startswith(CHANNEL_PREFIXES) for name in unknown)
    hint = " config.json does not describe this reward channel (tt_hidden_size, sr_head_layer)." if channel else ""
    if any(name.startswith(("score.", "v_head.")) for name in unknown):
        hint = (
            " A score head belongs to the architectures …ForSequenceClassification and …ForTokenClassification, "
            "v_head.summary to Qwen2ForPrmModel, score.0 and score.2 to Qwen2ForProcessRewardModel."
        )
    return (
        f"{where} holds {listed(unknown)}, which this architecture does not have, so nothing was imported: a tensor "
        f"that is dropped silently is a model that is wrong silently.{nearest(unknown[0], known)}{hint}"
    )


def listed(names: list[str]) -> str:
    """`the tensor 'a'`, or `4 tensors ('a', 'b', 'c', …)`."""
    if len(names) == 1:
        return f"the tensor {names[0]!r}"
    return f"{len(names)} tensors ({', '.join(map(repr, names[:SHOWN]))}{', …' if len(names) > SHOWN else ''})"
