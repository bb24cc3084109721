"""Attention over whole rows, in four ways that agree: which one runs is a matter of memory and of the machine.

| kind | runs on | memory for T tokens | reads |
| --- | --- | --- | --- |
| xla | everything | scores float32 [B, N, T, T] | branches, windows |
| blocked | everything | scores of 128 queries at a time, made again in the backward pass | branches, windows |
| cudnn | NVIDIA, bfloat16 or float16 | nothing of T × T, except a mask [B, T, T] for branches and windows | both |
| flash | TPU (JAX's Pallas splash kernel) | nothing of T × T; blocks above the diagonal skipped | plain causal rows |

Forward and backward on two cores at SmolLM2's heads, xla against blocked: 4 × 512 tokens 535 and 448 ms, 156 and 46 MB;
2,048 tokens 3.6 and 1.9 s, 609 and 49 MB.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as splash_mask
from jaxtyping import Array, Bool, Float, Int

from sla_jax.errors import UserError, nearest
from sla_jax.model.config import ModelConfig
from sla_jax.sharding import ACTIVATIONS, spec

AttentionKind = Literal["xla", "blocked", "cudnn", "flash"]
KINDS: tuple[AttentionKind, ...] = get_args(AttentionKind)
MASKED = -1e30  # far below any score, finite so that a fully masked row cannot make NaN
QUERIES = 128  # of one block of `blocked`
SHORT = 256  # tokens; up to here `xla`: two blocks would save nothing worth a loop
FLASH_BLOCKS = (512, 256, 128)  # tokens; the largest that divides the padded length is used
CUDNN_HEAD_DIM = 128  # the largest that every card from Ampere on takes


class Reading(NamedTuple):
    """What decides which tokens of a row a token reads: earlier ones of its own branch and of the prompt (branch 0)."""

    positions: Int[Array, "B T"]  # B is 1 where all rows are alike
    branch: Int[Array, "B T"] | None


Attend = Callable[[Array, Array, Array, Array], Array]  # q [B,T,N,H], k and v [B,K,T,H], window [] -> [B,T,N,H]


def attender(kind: AttentionKind, config: ModelConfig, reading: Reading) -> Attend:
    """The function that every layer calls; what all layers share (masks) is made here, once."""
    length = reading.positions.shape[1]
    plain = reading.branch is None and not _slides(config, length)
    if kind == "blocked" and length > QUERIES:
        return lambda q, k, v, window: _blocked(q, k, v, config, reading, window)
    if kind == "flash":
        _refuse("flash", _flash_reason(reading.branch is not None, _slides(config, length)))
        return lambda q, k, v, window: flash(q, k, v)
    if kind == "cudnn" and plain:
        return lambda q, k, v, window: _cudnn(q, k, v, None)
    age = _ages(jnp.arange(length), reading, reading)
    if kind == "cudnn":
        return lambda q, k, v, window: _cudnn(q, k, v, (age >= 0) & (age < window))
    return lambda q, k, v, window: attend(q, k, v, config, (age >= 0) & (age < window))


def pick_attention(backend: str, branches: bool, length: int, head_dim: int) -> AttentionKind:
    """The kind for rows of `length` tokens on "cpu", "gpu" or "tpu".

    Short rows: xla. Long ones: flash on a TPU where the kernel can (no branches), else blocked. cudnn is never picked:
    whether a card, its driver and the parameters' type take it shows only there; ask for it by name.
    """
    if length <= SHORT:
        return "xla"
    return "flash" if attention_complaint("flash", backend, branches, head_dim) is None else "blocked"


def check_attention(kind: str, backend: str, branches: bool, head_dim: int) -> None:
    """Raise UserError when `kind` cannot run there; rows with sliding windows are refused by `trunk` itself."""
    if kind not in KINDS:
        raise UserError(f"there is no attention {kind!r}; expected one of {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    _refuse(kind, attention_complaint(kind, backend, branches, head_dim))


def attention_complaint(kind: str, backend: str, branches: bool, head_dim: int) -> str | None:
    """Why `kind` cannot run on a backend, or None."""
    backend = "gpu" if backend in ("cuda", "rocm") else backend
    needed = {"cudnn": "gpu", "flash": "tpu"}.get(kind, backend)
    if backend != needed:
        return f"needs a {needed.upper()} and this is a {backend.upper()}"
    if kind == "cudnn" and (head_dim > CUDNN_HEAD_DIM or head_dim % 8):
        return f"takes heads of a multiple of 8 up to {CUDNN_HEAD_DIM} numbers; this policy's have {head_dim}"
    return _flash_reason(branches, False) if kind == "flash" else None


def attend(
    q: Float[Array, "B T N H"], k: Float[Array, "B K S H"], v: Array, config: ModelConfig, mask: Bool[Array, "#B T S"]
) -> Float[Array, "B T N H"]:
    """Grouped-query attention under `mask`; scores and softmax in float32."""
    b, t, n, h = q.shape
    grouped = q.reshape(b, t, config.kv_heads, config.groups, h)
    scores = jnp.einsum("btkgh,bksh->bkgts", grouped, k, preferred_element_type=jnp.float32) * h**-0.5
    probabilities = jax.nn.softmax(jnp.where(mask[:, None, None], scores, MASKED), axis=-1).astype(v.dtype)
    return jnp.einsum("bkgts,bksh->btkgh", probabilities, v).reshape(b, t, n, h)


def flash(
    q: Float[Array, "B T N H"], k: Float[Array, "B K T H"], v: Float[Array, "B K T H"], *, interpret: bool = False
) -> Float[Array, "B T N H"]:
    """Causal attention by the splash kernel: rows and heads split as the mesh in force says, T padded to 128."""
    length = q.shape[1]
    room = ((0, 0), (0, 0), (0, -length % FLASH_BLOCKS[-1]), (0, 0))
    q = jnp.swapaxes(q, 1, 2) * jnp.asarray(q.shape[-1] ** -0.5, q.dtype)

    def rows(q: Array, k: Array, v: Array) -> Array:
        return jax.vmap(_splash_kernel(q.shape[1], q.shape[2], interpret))(q, k, v)

    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        split = spec("batch", "heads", None, None, rules=ACTIVATIONS)
        rows = jax.shard_map(rows, in_specs=(split, split, split), out_specs=split, check_vma=False)
    return jnp.swapaxes(rows(*(jnp.pad(x, room) for x in (q, k, v)))[:, :, :length], 1, 2)


def _splash_kernel(heads: int, length: int, interpret: bool) -> Callable[..., Any]:
    """The kernel for one row; its table of causal blocks is made of constants while tracing."""
    block = next(size for size in FLASH_BLOCKS if length % size == 0)
    sizes = splash.BlockSizes(
        block_q=block,
        block_kv=block,
        block_kv_compute=block,
        block_q_dkv=block,
        block_kv_dkv=block,
        block_kv_dkv_compute=block,
        block_q_dq=block,
        block_kv_dq=block,
    )
    mask = splash_mask.MultiHeadMask([splash_mask.CausalMask((length, length))] * heads)
    return splash.make_splash_mha(mask=mask, block_sizes=sizes, head_shards=1, q_seq_shards=1, interpret=interpret)


def _blocked(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B K T H"],
    v: Array,
    config: ModelConfig,
    reading: Reading,
    window: Int[Array, ""],
) -> Float[Array, "B T N H"]:
    """`attend` for QUERIES queries at a time; the last block is filled up with queries that nobody reads."""
    length = q.shape[1]

    def blocks(x: Array, axis: int) -> Array:
        room = [(0, 0)] * x.ndim
        room[axis] = (0, -length % QUERIES)
        cut = jnp.pad(x, room).reshape(*x.shape[:axis], -1, QUERIES, *x.shape[axis + 1 :])
        return jnp.moveaxis(cut, axis, 0)

    def one(block: tuple[Array, Array, Reading]) -> Array:
        queries, order, mine = block
        age = _ages(order, mine, reading)
        return attend(queries, k, v, config, (age >= 0) & (age < window))

    cut = (blocks(q, 1), blocks(jnp.arange(length), 0), jax.tree.map(lambda x: blocks(x, 1), reading))
    out = jnp.moveaxis(jax.lax.map(jax.checkpoint(one, prevent_cse=False), cut), 0, 1)
    return out.reshape(q.shape[0], -1, *q.shape[2:])[:, :length]


def _cudnn(
    q: Float[Array, "B T N H"], k: Float[Array, "B K T H"], v: Array, mask: Bool[Array, "#B T T"] | None
) -> Float[Array, "B T N H"]:
    if q.dtype not in (jnp.bfloat16, jnp.float16):
        _refuse("cudnn", f"computes in bfloat16 or float16 and this policy in {q.dtype}")
    k, v = jnp.swapaxes(k, 1, 2), jnp.swapaxes(v, 1, 2)
    if mask is None:
        return jax.nn.dot_product_attention(q, k, v, is_causal=True, implementation="cudnn")
    return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None], implementation="cudnn")


def _ages(order: Int[Array, "Q"], queries: Reading, keys: Reading) -> Int[Array, "B Q T"]:
    """[b, t, s]: how many positions token s lies before token t; -1 where t must not read s. `order`: t's column."""
    read = (order[:, None] >= jnp.arange(keys.positions.shape[1])[None, :])[None]
    age = queries.positions[:, :, None] - keys.positions[:, None, :]
    if queries.branch is not None and keys.branch is not None:
        own = queries.branch[:, :, None] == keys.branch[:, None, :]
        read = read & (own | (keys.branch[:, None, :] == 0))
    return jnp.where(read, age, -1)


def _slides(config: ModelConfig, length: int) -> bool:
    return any(window is not None and window < length for window in config.windows)


def _flash_reason(branches: bool, slides: bool) -> str | None:
    if branches:
        return "reads plain rows and not a prompt with several continuations in one row"
    return "reads whole rows and this policy has sliding windows shorter than the row" if slides else None


def _refuse(kind: str, complaint: str | None) -> None:
    if complaint is not None:
        raise UserError(f"attention {kind!r} {complaint}. Use 'blocked' (any backend, any rows) or 'xla' instead.")
