"""The server as a process with a toy for a model: `python -m tests.serving.toy_server MODE`.

MODE is `well`, `stuck` (loading never ends), `unloadable` (the user's fault), `failing` (the fiftieth round raises),
`hanging` (the fiftieth round never comes back, and there is no grace) or `tokenizing` (no text is ever tokenized, and
the grace is short). A result takes the device a few milliseconds.
"""

import dataclasses
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from sla_jax.errors import UserError, front_door
from sla_jax.serving import process, prompts
from sla_jax.serving.settings import Limits, ModelInfo, Profile, ServeConfig
from tests.serving.toy_worker import ToyWorker
from tests.tiny import byte_level_tokenizer

PROFILES = (
    Profile(name="greedy", method="greedy", slots=4),
    Profile(name="sla", method="sla", width=2, chunk=10, depth=2, slots=2),
)
CONFIG = ServeConfig(checkpoint="toy", profiles=PROFILES, port=0, limits=Limits(queue=16, grace=20.0))
INFO = ModelInfo(
    name="toy",
    profiles=PROFILES,
    context=10**5,
    vocabulary=320,
    end_tokens=(2,),
    has_channel=True,
    channel="tests",
    top_logprobs=5,
    created=0,
)


@dataclasses.dataclass
class Toy:
    """What `open_model` returns, for a model that there is not."""

    mode: str
    model: ModelInfo = INFO
    tokenizer: Any = dataclasses.field(default_factory=byte_level_tokenizer)

    def worker(self, progress: Callable[[str], None]) -> ToyWorker:
        progress("loading a toy")
        if self.mode == "stuck":
            threading.Event().wait()
        if self.mode == "unloadable":
            raise UserError("the toy is broken; mend it.")
        worker = ToyWorker({profile.name: profile.slots for profile in PROFILES})
        worker.gate.pace = 0.003
        worker.on_call = lambda name, what: self._on_call(worker)
        return worker

    def _on_call(self, worker: ToyWorker) -> None:
        if worker.calls["round"] >= 50 and self.mode == "failing":
            raise RuntimeError("the device is gone")
        if worker.calls["round"] >= 50 and self.mode == "hanging":
            print("hanging", flush=True)
            threading.Event().wait()


def never_tokenize(tokenizer: Any, text: str, *, special: bool = False) -> NoReturn:
    """In the place of the tokenizer's encoding."""
    print("tokenizing", flush=True)
    while True:
        threading.Event().wait()


def main(argv: list[str]) -> None:
    """Serve the toy in one of its modes."""
    config = CONFIG
    if argv[0] == "hanging":
        process.PATIENCE = 0.1
        config = dataclasses.replace(CONFIG, limits=Limits(grace=0.0))
    if argv[0] == "tokenizing":
        prompts.encoding = never_tokenize
        config = dataclasses.replace(CONFIG, limits=Limits(grace=0.1))
    with process.listen(config.host, config.port) as listener:
        process.serve(config, listener, Toy(argv[0]))


if __name__ == "__main__":
    front_door(main, sys.argv[1:])
