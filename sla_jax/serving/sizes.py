"""The shapes that a server compiles: pieces that prompts are read in, lengths of the cache, and rows of a round.

A text's pieces and the cache length of each depend on the text alone. So the keys and values of a prefix are the same
bits whether they were just computed or found in the prefix cache, and whatever else is being served.
"""

import dataclasses

from sla_jax.decode.best_of_n import whole
from sla_jax.errors import UserError
from sla_jax.serving.settings import Engines, Profile

SMALLEST_PIECE = 16
FIRST_BUCKET = 256
FACTOR = 4  # between one length and the next, and between one number of rows and the next
SMALLEST_PLACES = 64
ROUND_TO = 16  # positions; what accelerators tile by


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes:
    """`context` positions at most, `buckets` ascending up to it; `slack` more for the chunk being committed."""

    context: int
    buckets: tuple[int, ...]
    piece: int
    slack: int

    @property
    def pieces(self) -> tuple[int, ...]:
        """Padded lengths of a piece: `piece`, a quarter of it, and so on down to 16."""
        sizes = [self.piece]
        while sizes[-1] // FACTOR >= SMALLEST_PIECE:
            sizes.append(sizes[-1] // FACTOR)
        return tuple(reversed(sizes))

    @property
    def capacities(self) -> tuple[int, ...]:
        """Lengths of the cache."""
        return tuple(bucket + self.slack for bucket in self.buckets)

    def holding(self, tokens: int) -> int:
        """The shortest cache for a text of this many tokens."""
        return next(size for bucket, size in zip(self.buckets, self.capacities, strict=True) if bucket >= tokens)

    def next_piece(self, start: int, tokens: int) -> tuple[int, int]:
        """(tokens to read, their padded length) of the piece that begins at `start`, a multiple of `piece`."""
        count = min(self.piece, tokens - start)
        return count, next(size for size in self.pieces if size >= count)


def sizes_of(settings: Engines, profiles: tuple[Profile, ...], *, max_positions: int) -> Sizes:
    """The shapes of one server. Raises UserError where the settings contradict each other or the model."""
    piece, context = settings.prefill_chunk, settings.context
    assert context is not None, "context.with_context says it where the user does not"
    if piece < SMALLEST_PIECE or piece & (piece - 1):
        raise UserError(f"engine.prefill_chunk={piece} is no power of two of at least {SMALLEST_PIECE}.")
    if not 2 <= context <= max_positions:
        raise UserError(
            f"engine.context={context} is out of range: the checkpoint's context is {max_positions} tokens."
        )
    top = -(-context // piece) * piece
    wanted = settings.buckets or tuple(_powers(top))
    if list(wanted) != sorted(set(wanted)) or wanted[-1] < context or wanted[0] < 1:
        raise UserError(
            f"engine.buckets={list(wanted)} has to ascend and to end at engine.context={context} or above it."
        )
    buckets = tuple(dict.fromkeys(min(-(-size // piece) * piece, top) for size in wanted))
    chunks = [profile.decoder().chunk for profile in profiles if profile.streams]
    slack = -(-max(chunks, default=0) // ROUND_TO) * ROUND_TO
    return Sizes(context=context, buckets=buckets, piece=piece, slack=slack)


def _powers(top: int) -> list[int]:
    """256, 1024, 4096, … and the top itself."""
    size, sizes = FIRST_BUCKET, []
    while size < top:
        sizes.append(size)
        size *= FACTOR
    return [*sizes, top]


def rows_of(slots: int, data: int) -> tuple[int, ...]:
    """How many slots a round may be run for: all, a quarter, a sixteenth, …, as far as they divide over `data`."""
    rows = [slots]
    while rows[-1] >= FACTOR * data:
        rows.append(rows[-1] // FACTOR // data * data)
    return tuple(reversed(rows))


def places_of(context: int, chunk: int) -> tuple[int, ...]:
    """How much room whole answers are compiled for, in tokens: the longest answer's, a quarter of it, and so on."""
    sizes = [whole(context - 1, chunk)]
    while sizes[-1] // FACTOR >= max(SMALLEST_PLACES, chunk):
        sizes.append(whole(sizes[-1] // FACTOR, chunk))
    return tuple(reversed(sizes))
