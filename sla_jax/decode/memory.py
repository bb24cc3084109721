"""How many tokens' keys and values a device has room for."""

import dataclasses
import os
from typing import TypeVar

import jax

from sla_jax.decode.speculative_rejection import SpeculativeRejection
from sla_jax.errors import UserError

Decoder = TypeVar("Decoder")


def free_bytes() -> int | None:
    """Free memory of the first device; None where it does not say, as a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" not in stats:
        return None
    return int(stats["bytes_limit"]) - int(stats.get("bytes_in_use", 0))


def total_bytes() -> int:
    """Memory of the first device; the machine's where it does not say, as a CPU."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def fitted(decoder: Decoder, position_bytes: int, free: int | None, requests: int = 1) -> Decoder:
    """The decoder with its budget, if it leaves that to the device: its share of the free bytes less the reserve.

    `position_bytes`: keys and values of one token; `requests` that share the memory. Raises UserError where the device
    does not say what it has, or the reserve leaves too little for one chunk in every lane.
    """
    if not isinstance(decoder, SpeculativeRejection) or decoder.reserve_gb is None:
        return decoder
    if free is None:
        raise UserError("reserve_gb: this device does not say how much memory it has; give a budget in tokens instead.")
    room = int((free - decoder.reserve_gb * 1e9) / requests / position_bytes)
    least = decoder.n * decoder.chunk
    if room < least:
        raise UserError(
            f"reserve_gb={decoder.reserve_gb} of {free / 1e9:.2f} free GB leaves room for {max(room, 0)} tokens a "
            f"request; n={decoder.n} lanes of one chunk of {decoder.chunk} need {least}. Lower the reserve, n or chunk."
        )
    return dataclasses.replace(decoder, budget=room, reserve_gb=None)
