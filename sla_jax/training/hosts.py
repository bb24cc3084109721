"""Several processes as one run: joining, meeting, agreeing, and what is said when one is lost.

Every process runs the same program; process 0 alone writes logs and speaks. OUT has to be one folder that all of them
see. Nothing here does anything when there is one process.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from sla_jax import client
from sla_jax.errors import UserError
from sla_jax.training.config import HostsConfig

WORKERS = "http://metadata.google.internal/computeMetadata/v1/instance/attributes/worker-network-endpoints"
POD = ("TPU_WORKER_HOSTNAMES", "MEGASCALE_NUM_SLICES")  # set on the hosts of a Cloud TPU pod


def join(config: HostsConfig) -> None:
    """Become one of several processes: by the flags, or as a TPU pod says. Must come before any use of a device."""
    if jax.distributed.is_initialized():
        return
    if config.coordinator is None and not on_pod():
        return
    address, count, which = config.coordinator, config.processes, config.process
    try:
        if address is None:
            jax.distributed.initialize(heartbeat_timeout_seconds=config.timeout)
        else:
            jax.distributed.initialize(address, count, which, heartbeat_timeout_seconds=config.timeout)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"this process could not join the others ({str(error).splitlines()[0]}). Start the same command on every "
            "host, with hosts.process counting from 0 and a hosts.coordinator that all can reach."
        ) from error


def on_pod() -> bool:
    """Whether this machine is one of several hosts of TPUs: by its environment (GKE), or by Google Cloud's metadata."""
    if "," in os.environ.get(POD[0], "") or POD[1] in os.environ:
        return True
    return _chips() and len(_workers().split(",")) > 1


def _chips() -> bool:
    """Whether TPUs are in this machine."""
    return bool([*Path("/dev").glob("accel*"), *Path("/dev/vfio").glob("[0-9]*")])


def _workers() -> str:
    """The addresses of all hosts of a TPU VM's slice, "" where nobody says."""
    try:
        answer = client.send(WORKERS, headers={"Metadata-Flavor": "Google"}, timeout=2.0, limit=2**16)
    except client.Unreachable:
        return ""
    return answer.body.decode(errors="replace") if answer.status == 200 else ""


def first() -> bool:
    """Whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def meet(place: str) -> None:
    """Wait until all processes are here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"sla_jax.{place}")


def agreed(value: int) -> int:
    """Process 0's number, for all: what was read from a shared folder may reach hosts at different times."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def on_host(tree: Any) -> Any:
    """The whole arrays as numpy in every process, wherever their parts are."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    return jax.tree.map(lambda leaf: np.asarray(multihost_utils.process_allgather(leaf, tiled=True)), tree)


@contextlib.contextmanager
def together() -> Iterator[None]:
    """A run of several processes ends with a message when one of them is lost; what was saved stays."""
    try:
        yield
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().splitlines()[0][:300]
        raise UserError(
            f"process {jax.process_index()} of {jax.process_count()} cannot go on: another process of this run "
            f"seems to be lost ({reason}). Start the same command on every host again: it goes on from the last "
            "checkpoint."
        ) from error


class Stop:
    """Whether the run should stop after this step, and why: SIGINT or SIGTERM here, or on any of several processes.

    JAX's preemption service spreads a SIGTERM to all processes and names a step at which all of them stop.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    def after(self, step: int) -> bool:
        """Ask after every step; with several processes all of them get the same answer."""
        if jax.process_count() == 1:
            return self.signal is not None
        if multihost_utils.reached_preemption_sync_point(step):
            self.signal = signal.SIGTERM
            return True
        return False


@contextlib.contextmanager
def stopping() -> Iterator[Stop]:
    """SIGINT and SIGTERM ask to stop after the step under way; a second SIGINT raises at once."""
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def handle(number: int, frame: object) -> None:
        if stop.signal == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        stop.signal = number

    # with several processes SIGTERM belongs to JAX's preemption service
    numbers = (signal.SIGINT, signal.SIGTERM) if jax.process_count() == 1 else ()
    before = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
