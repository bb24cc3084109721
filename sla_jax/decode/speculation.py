"""Several tokens a pass, and not one of them different: guess, read, and keep what is right.

Between two branchings a lane's next token is a function of the text before it: the best one, or at a temperature the
one that the seed's noise makes best there. So a guess (`drafting.py`) is verified exactly. A pass reads every lane's
next token and the guesses behind it, each lane from where it is. Then its numbers are gone through token by token as if
each had been read alone; the first wrong guess ends that, and what was read beyond it is overwritten by the next pass.

A pass reads guesses only where they can save one: a chunk takes as long as its slowest lane, so every lane that is
furthest from the chunk's end has to have a guess. That is decided per request, and counted so: a request's steps do not
depend on what is decoded beside it.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sla_jax.decode import drafting
from sla_jax.decode import lanes as moves
from sla_jax.decode.choice import Choice, quiet
from sla_jax.decode.lanes import INSIDE, Lanes, Pause, Roll
from sla_jax.decode.steps import Steps
from sla_jax.errors import UserError


def guessing(draft: int) -> Roll | None:
    """How `lanes.rollout` reads with `draft` guesses a pass; one by one with none."""
    return functools.partial(_rollout, draft) if draft else None


def check_draft(draft: int, chunk: int) -> None:
    """Raise UserError unless a chunk has room for the next token and `draft` guesses."""
    if not 0 <= draft < chunk:
        raise UserError(
            f"draft={draft} is out of range: a pass reads the next token and the guesses behind it within a chunk, so "
            f"with chunk={chunk} it takes 0 to {chunk - 1}."
        )


def _rollout(draft: int, steps: Steps, lanes: Lanes, rank: Array, chunk: int, pause: Pause | None) -> Lanes:
    read = functools.partial(_read, steps, quiet(lanes.choice, lanes.done), rank, chunk, pause)

    def going(carry: tuple[Lanes, Array]) -> Array:
        return jnp.any(carry[1])

    def alone(lanes: Lanes, active: Array, guessed: Array, there: Array) -> tuple[Lanes, Array]:
        return read(lanes, active, guessed[..., :0], there[..., :0])

    def advance(carry: tuple[Lanes, Array]) -> tuple[Lanes, Array]:
        lanes, active = carry
        guessed, there = drafting.guess(lanes.history, _texts(lanes, chunk), draft)
        room = _room(lanes, chunk)
        there &= active[..., None] & (jnp.arange(1, draft + 1)[None, None, :] < room[..., None])
        worth = _worth(there[..., 0], room, active)
        there &= worth[:, None, None]
        lanes = moves.passed(lanes, active, 1 + draft * worth.astype(jnp.int32))
        lanes = lanes._replace(drafted=lanes.drafted + there.sum(axis=(1, 2)))
        return jax.lax.cond(jnp.any(worth), read, alone, lanes, active, guessed, there)

    active = lanes.live & ~lanes.finished
    lanes, _ = jax.lax.while_loop(going, advance, (lanes, active))
    return lanes._replace(history=drafting.noted(lanes.history, _texts(lanes, chunk), active))


def _read(
    steps: Steps,
    choice: Choice,
    rank: Int[Array, "R W"],
    chunk: int,
    pause: Pause | None,
    lanes: Lanes,
    active: Bool[Array, "R W"],
    guessed: Int[Array, "R W m"],
    there: Bool[Array, "R W m"],
) -> tuple[Lanes, Bool[Array, "R W"]]:
    """One pass: the lanes with what was right, and which of them go on."""
    tokens = jnp.concatenate([lanes.next.tokens[..., :1], guessed], axis=2)
    logits, reward, cache = steps.read(tokens, lanes.read, lanes.cache)
    behind, there = (jnp.pad(x, ((0, 0), (0, 0), (0, 1))) for x in (guessed, there))
    first = lanes.tokens.shape[-1] - chunk

    def going(carry: tuple[Array, Lanes, Array, Array]) -> Array:
        return jnp.any(carry[3])

    def take(carry: tuple[Array, Lanes, Array, Array]) -> tuple[Array, Lanes, Array, Array]:
        i, lanes, active, right = carry
        each = functools.partial(jax.lax.dynamic_index_in_dim, index=i, axis=2, keepdims=False)
        place = first + lanes.read
        begins = jnp.where(lanes.read == 0, rank, INSIDE)
        full = jnp.any(right & (lanes.read == chunk - 1)) if pause is None else True
        lanes = moves.grown(lanes, choice, each(logits), each(reward), begins, place, right, full=full)
        ended = lanes.finished | (lanes.read == chunk)
        if pause is not None:
            ended |= pause(lanes, place)
        active &= ~(right & ended)
        right &= ~ended & each(there) & (lanes.next.tokens[..., 0] == each(behind))
        lanes = lanes._replace(accepted=lanes.accepted + right.sum(axis=-1))
        return i + 1, lanes, active, right

    carry = (jnp.int32(0), lanes._replace(cache=None), active, active)
    _, lanes, active, _ = jax.lax.while_loop(going, take, carry)
    return lanes._replace(cache=cache), active


def _room(lanes: Lanes, chunk: int) -> Int[Array, "R W"]:
    """Tokens that each lane can still read in this chunk."""
    return jnp.minimum(chunk - lanes.read, lanes.limit[:, None] - lanes.length)


def _worth(guessed: Bool[Array, "R W"], room: Int[Array, "R W"], active: Bool[Array, "R W"]) -> Bool[Array, "R"]:
    """Whether a guess can save a pass: all lanes that are furthest from their end have one."""
    most = jnp.where(active, room, 0).max(axis=-1, keepdims=True)
    return active.any(axis=-1) & (guessed | ~active | (room < most)).all(axis=-1)


def _texts(lanes: Lanes, chunk: int) -> Int[Array, "R W N"]:
    start, held = moves.start(lanes, chunk), moves.held(lanes)
    return drafting.texts(lanes.history, lanes.tokens, start, held, lanes.next.tokens[..., 0])
