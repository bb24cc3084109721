"""What a decoder needs from a model: five functions on a cache it never looks into.

A decoder imports no model. It is handed `Steps`, whose cache is any pytree: the real one (`model/decoding.py`), or a
toy whose whole state is one integer per lane. R requests, W lanes each; t counts tokens within the current chunk.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Array

Cache = Any


class Steps(NamedTuple):
    """The five moves on a cache.

    step(tokens [R, W], t [], cache) → (logits [R, W, V] float32, reward [R, W] float32, cache):
        every lane reads its token t of the current chunk; the reward is that of the token just read.
    read(tokens [R, W, m], done [R, W], cache) → (logits [R, W, m, V] float32, reward [R, W, m] float32, cache):
        every lane reads m tokens at once, the first of them as token done[r, w] of the current chunk. What does not
        fit into the chunk is dropped; what is read again at the same place is forgotten.
    fork(cache, parents [R, W], held [R, W], read [R, W]) → cache:
        a new chunk begins: lane w goes on from lane parents[r, w], of whose `held` uncommitted tokens `read` are in the
        places of the chunk that ends. They move left by so many, and its last one is then at place T-k-1.
    commit(cache, lane [R], start [R], count [R]) → cache:
        request r's prefix grows by `count` tokens of lane[r]'s uncommitted ones, from place start[r] of the T
        places on (right-aligned: the chunk just decoded begins at place T-k). A count of 0 changes nothing.
    regroup(cache, parents [R, W'], places) → cache:
        the same uncommitted tokens in other lanes, as many as there are parents, with room for `places` ≥ T tokens.
    """

    step: Callable[[Array, Array, Cache], tuple[Array, Array, Cache]]
    read: Callable[[Array, Array, Cache], tuple[Array, Array, Cache]]
    fork: Callable[[Cache, Array, Array, Array], Cache]
    commit: Callable[[Cache, Array, Array, Array], Cache]
    regroup: Callable[[Cache, Array, int], Cache]
