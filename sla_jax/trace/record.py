"""Recording: every chunk of a search, with the lines that a trace has of it.

for chunk in trace.record(model, messages, Path("search.jsonl"), search=sla_jax.SLA()):
    print(chunk.text, end="")
"""

import dataclasses
import hashlib
import importlib.metadata
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

from sla_jax import sums
from sla_jax.api import GREEDY, Chunk, LanguageModel, Messages, Search, is_chat
from sla_jax.decode.completion import Completion
from sla_jax.decode.cost import Cost
from sla_jax.decode.greedy import Greedy
from sla_jax.decode.methods import METHODS, Trees
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.scoring.candidate import Scorer
from sla_jax.text import NO_VARIABLES, spell
from sla_jax.trace.lines import FORMAT, Candidate, End, Header, Line, PoolRound, TreeRound, as_json, tokens_of

Prompt = Messages | Sequence[int] | str


def record(
    model: LanguageModel,
    prompt: Prompt,
    path: Path,
    *,
    search: Search | None = None,
    max_tokens: int = 256,
    sampling: Sampling = GREEDY,
    scorer: Scorer | None = None,
    template: Mapping[str, Any] = NO_VARIABLES,
) -> Iterator[Chunk]:
    """`model.stream`'s chunks; each is in the file before it is given. Raises UserError where it cannot be written."""
    if not path.parent.is_dir():
        raise UserError(f"the trace {path} cannot be written: there is no directory {path.parent}.")
    options: dict[str, Any] = {"search": search, "max_tokens": max_tokens, "sampling": sampling, "scorer": scorer}
    return _written(path, traced(model, prompt, template=template, **options))


def _written(path: Path, steps: Iterator[tuple[Chunk, list[Line]]]) -> Iterator[Chunk]:
    first = next(steps)  # nothing is written for a search that is refused
    try:
        with path.open("w", encoding="utf-8", newline="\n") as file:
            for chunk, lines in itertools.chain([first], steps):
                file.writelines(sums.with_member(as_json(line) + "\n") for line in lines)
                file.flush()
                yield chunk
    except OSError as error:
        raise UserError(f"the trace {path} cannot be written: {error.strerror}.") from None


def traced(
    model: LanguageModel,
    prompt: Prompt,
    *,
    search: Search | None = None,
    max_tokens: int = 256,
    sampling: Sampling = GREEDY,
    scorer: Scorer | None = None,
    template: Mapping[str, Any] = NO_VARIABLES,
    continues: bool | None = None,
) -> Iterator[tuple[Chunk, list[Line]]]:
    """Every chunk of a search and the lines of a trace that come with it: the header with the first, the end with the
    last."""
    decoder, ids = search or Greedy(), model.prompt_ids(prompt, template)
    options: dict[str, Any] = {"max_tokens": max_tokens, "sampling": sampling, "scorer": scorer}
    continues = not is_chat(prompt) if continues is None else continues
    told: dict[str, Any] = {"return_tree": isinstance(decoder, Trees), "template": template, "continues": continues}
    chunks = model.stream(prompt, search=decoder, **told, **options)
    text, tokens, before, ended = "", set[int](), None, list[Completion]()
    for chunk in chunks:
        ended += chunk.ended
        round_ = _pool_round(chunk, before, ended) if chunk.tree is None else _tree_round(chunk)
        lines: list[Line] = [round_]
        if before is None:
            lines = [_header(model, ids, decoder, chunk, continues=continues, **options), round_]
        text, before = text + chunk.text, chunk.cost
        tokens |= tokens_of(round_)
        if chunk.finish_reason is not None:
            pieces = {str(token): spell(model.tokenizer, token) for token in sorted(tokens)}
            lines.append(End(finish_reason=chunk.finish_reason, text=text, cost=chunk.cost, pieces=pieces))
        yield chunk, lines


def _header(
    model: LanguageModel,
    ids: list[int],
    decoder: Search,
    chunk: Chunk,
    *,
    continues: bool,
    max_tokens: int,
    sampling: Sampling,
    scorer: Scorer | None,
) -> Header:
    return Header(
        format=FORMAT,
        sla_jax=importlib.metadata.version("sla-jax"),
        jax=jax.__version__,
        checkpoint=model.name,
        fingerprint=fingerprint(model.policy),
        dtype=str(model.policy.norm[...].dtype),
        backend=jax.default_backend(),
        method=next(name for name, kind in METHODS.items() if kind is type(decoder)),
        search=dataclasses.asdict(decoder),
        sampling=dataclasses.asdict(sampling),
        scorer=None if scorer is None else scorer.name,
        prompt=ids,
        continues=continues,
        text=model.tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False),
        max_tokens=max_tokens,
        end_tokens=list(model.end_tokens),
        anchor=None if chunk.tree is None else chunk.tree.anchor,
    )


def _tree_round(chunk: Chunk) -> TreeRound:
    assert chunk.tree is not None, "it was asked for"
    return TreeRound(
        round=chunk.round,
        tokens=chunk.token_ids,
        chosen=chunk.tree.best if chunk.token_ids else None,
        score=chunk.score,
        margin=chunk.margin,
        alive=chunk.alive,
        drafted=chunk.cost.drafted_tokens,
        accepted=chunk.cost.accepted_tokens,
        **_counts(chunk),
        branches=chunk.tree.branches,
    )


def _pool_round(chunk: Chunk, before: Cost | None, ended: Sequence[Completion]) -> PoolRound:
    assert chunk.phase is not None, "the others have trees"
    steps, lane_steps = (before.steps, before.lane_steps) if before else (0, 0)
    return PoolRound(
        round=chunk.round,
        phase=chunk.phase,
        tokens=chunk.token_ids,
        chosen=None if chunk.finish_reason is None else _chosen(chunk, ended),
        score=chunk.score,
        lanes=(chunk.cost.lane_steps - lane_steps) // max(chunk.cost.steps - steps, 1),
        alive=chunk.alive,
        **_counts(chunk),
        candidates=[Candidate(**{**one._asdict(), "step_scores": list(one.step_scores)}) for one in chunk.ended],
    )


def _chosen(chunk: Chunk, ended: Sequence[Completion]) -> int:
    return min(one.candidate for one in ended if one.finish != "rejected" and one.tokens == chunk.token_ids)


def _counts(chunk: Chunk) -> dict[str, Any]:
    cost = chunk.cost
    return {"steps": cost.steps, "lane_steps": cost.lane_steps, "explored": cost.explored_tokens}


def fingerprint(params: Any) -> str:
    """16 hex digits from the shapes, types and bits of all parameters: the same on every backend."""
    leaves = jax.tree.leaves(params)
    described = " ".join(f"{leaf.shape} {leaf.dtype}" for leaf in leaves)
    return hashlib.sha256(described.encode() + np.asarray(_sums(leaves)).tobytes()).hexdigest()[:16]


@jax.jit
def _sums(leaves: list[Array]) -> UInt32[Array, "n"]:
    """Of every array, Σ (2i + 1) · bits_i modulo 2³²: whole numbers, so that the order of adding changes nothing."""

    def one(leaf: Array) -> Array:
        wide = jnp.uint32 if leaf.dtype.itemsize == 4 else jnp.uint16
        bits = jax.lax.bitcast_convert_type(leaf, wide).astype(jnp.uint32).reshape(-1)
        return (bits * (2 * jnp.arange(bits.size, dtype=jnp.uint32) + 1)).sum(dtype=jnp.uint32)

    return jnp.stack([one(leaf) for leaf in leaves])
