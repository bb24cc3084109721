"""What a server is told: the types behind configs/serve/*.yaml and serve.py's flags."""

import dataclasses
import os
from pathlib import Path
from typing import Literal

from sla_jax.config import Variables
from sla_jax.decode.methods import Decoder, Pools, Steppers, Trees, decoder_of, useless_option
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.text import check_date
from sla_jax.web import check_hosts

BEARABLE = 8  # answers, one after the other, that somebody may have to wait for


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """A search that the server compiles and offers, with its own slots. Slots are requests decoded at once."""

    name: str
    method: Literal["greedy", "sla", "beam", "best_of_n", "speculative_rejection", "step_beam", "dvts"]
    slots: int
    width: int | None = None
    chunk: int | None = None
    depth: int | None = None
    branch_first: bool = False
    early_margin: float | None = None
    branch_above: float | None = None
    end_above: float | None = None
    least: int | None = None
    uncertainty: Literal["entropy", "doubt"] | None = None
    behind: float | None = None
    logprob_weight: float | None = None
    token_weight: float | None = None
    draft: int | None = None
    beams: int | None = None
    length_penalty: float | None = None
    early_stopping: bool | Literal["never"] = False
    n: int | None = None
    alpha: float | None = None
    budget: int | None = None
    reserve_gb: float | None = None
    score: str | None = None
    lookahead: int | None = None
    aggregate: str | None = None
    separator: str | None = None
    max_steps: int | None = None
    filter_duplicates: bool = False
    boxed: bool = False
    traces: bool = False
    template: Variables = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.name or ":" in self.name or "/" in self.name:
            raise UserError(f"a profile is named {self.name!r}; a name is not empty and has no colon or slash.")
        if not 1 <= self.slots <= 1024:
            raise UserError(f"the profile {self.name} has slots={self.slots}; it has to be 1 to 1024.")
        if self.method == "sla" and (self.width is None or self.depth is None):
            raise UserError(f"the profile {self.name} needs width and depth: {{method: sla, width: 2, depth: 2, …}}.")
        decoder = self.decoder()
        if self.traces and not isinstance(decoder, Trees):
            raise UserError(
                f"the profile {self.name} has traces and {self.method} grows no tree; its candidates can be had anyway "
                "(search.return_candidates)."
            )

        if isinstance(decoder, Steppers) and decoder.aggregate == "prod":
            raise UserError(
                f"the profile {self.name}: aggregate 'prod' multiplies probabilities, and the score {decoder.score!r} "
                "gives none; it has to be last, min or mean."
            )

    def decoder(self) -> Decoder:
        """The decoder that these settings name; what is not given is its own default."""
        own = ("name", "method", "slots", "traces", "template")
        options = {name: value for name, value in vars(self).items() if name not in own}
        return decoder_of(self.method, options, f"profiles.{self.name}.")

    @property
    def streams(self) -> bool:
        """Whether text comes while it decodes; if not, progress does, and the answer at the end."""
        return isinstance(self.decoder(), Trees)

    def check_limit(self, limit: int) -> None:
        """Raise UserError where no schedule of this search holds `limit` tokens."""
        decoder = self.decoder()
        if isinstance(decoder, Pools):
            decoder.phases(limit)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeshShape:
    """How many devices split the slots (data) and the heads (tensor)."""

    data: int = 1
    tensor: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engines:
    """What is compiled, and how much memory it may take."""

    dtype: Literal["float32", "bfloat16"] | None = None
    """Weights and cache; float32 on CPU and bfloat16 elsewhere unless said."""
    mesh: MeshShape = MeshShape()
    """Devices to use; their product has to be the number there is."""
    context: int | None = None
    """Longest prompt and answer together, in tokens; unless said, the model's own, as memory allows (context.py)."""
    buckets: tuple[int, ...] = ()
    """Cache lengths to compile for, ascending; short requests run in short ones. Empty: 256, 1024, … to the context."""
    prefill_chunk: int = 64
    """Prompts are read in pieces of this many tokens (a power of two), so that a long one never holds up the others."""
    prefix_cache_mb: int = 256
    """Memory for keys and values of recent prompts; a prompt that begins like one of them is read from there on."""
    top_logprobs: int = 20
    """Most alternatives that a request may ask for beside each token."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Limits:
    """What is refused, dropped or cut off, and when."""

    queue: int | None = None
    """Requests that may wait for a slot of one profile, or for the tokenizer; more get 503. Unless said, 8 times the
    profile's slots (`queue_of`), and for the tokenizer as many as for all slots together."""
    body_bytes: int = 4 * 2**20
    """Largest request body; more is answered with 413."""
    head: float = 15.0
    """Seconds for the head of a request, from the connection or its first byte on; then the connection is closed."""
    body: float = 30.0
    """Seconds for the body of a request; a slower one is answered with 408."""
    unread: float = 60.0
    """Seconds that a client may read nothing of its answer; then the connection is cut."""
    timeout: float = 600.0
    """Seconds that a request may take, waiting included."""
    grace: float = 30.0
    """Seconds that running requests get to finish after SIGTERM."""
    choices: int = 16
    """Most answers of one request: prompts times n."""

    def queue_of(self, slots: int) -> int:
        """Requests that may wait for one of so many slots: `queue`, or slots × the bearable wait ÷ an answer's length.

        The bearable wait is as long as BEARABLE answers. But a queue is not so short that it could not hold the largest
        request, `choices` answers and as many prompts to look at.
        """
        return max(BEARABLE * slots, 2 * self.choices) if self.queue is None else self.queue


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tls:
    """Serve HTTPS."""

    cert: Path | None = None
    """PEM file of the certificate chain."""
    key: Path | None = None
    """PEM file of its private key."""

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise UserError("tls.cert and tls.key belong together; one of them is missing.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class HttpRules:
    """Which requests are answered, and how strictly they are read."""

    strict: bool = False
    """Refuse fields of a body that this server does not know; else they are ignored, and a header names them."""
    hosts: tuple[str, ...] = ()
    """Names that clients may call this server by, beside addresses, localhost and names without a dot; * for all."""

    def __post_init__(self) -> None:
        check_hosts(self.hosts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """What to serve and how."""

    checkpoint: str
    """Directory made by convert.py or train.py."""
    profiles: tuple[Profile, ...]
    """The searches on offer; the first is the default."""
    model: str | None = None
    """The model's name in the API; the checkpoint directory's if not given."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for every interface."""
    port: int = 8000
    """0 takes a free port; the log says which."""
    api_key: str | None = None
    """Clients must send it (Authorization: Bearer KEY); $SLA_JAX_API_KEY works too and is not seen in `ps`."""
    engine: Engines = Engines()
    limits: Limits = Limits()
    http: HttpRules = HttpRules()
    tls: Tls = Tls()
    cors: tuple[str, ...] = ()
    """Origins of web pages that may call this server; * for all."""
    keep_alive: float = 15.0
    """Seconds without text after which a stream gets a comment, so that proxies do not close it."""
    reasoning: Literal["auto", "off", "think"] = "auto"
    """Whether `<think>…</think>` of a chat is told as `reasoning_content`; auto: if the model knows the tags."""
    date: str | None = None
    """The day that a chat template takes for today, YYYY-MM-DD; today if not given."""
    log_prompts: bool = False
    """Write prompts and answers to the log."""
    ui: Path | None = None
    """Folder whose traces and entropies the viewer at /ui may open; without one it opens none of this machine."""
    grpc_port: int | None = None
    """Also serve JetStream's gRPC Orchestrator there (needs the extra `jetstream`)."""
    dry_run: bool = False
    """Compile every profile, print what it needs, and exit."""
    target: str | None = None
    """With --dry-run: a slice that need not be there, as libtpu names it (v5e:2x4)."""

    def __post_init__(self) -> None:
        names = [profile.name for profile in self.profiles]
        if not names:
            raise UserError("there are no profiles; give at least {name: greedy, method: greedy, slots: 8}.")
        if len(set(names)) < len(names):
            raise UserError(f"two profiles have one name: {', '.join(names)}.")
        if useless := useless_option(self.profiles[0].decoder(), Sampling()):
            raise UserError(
                f"the profile {names[0]} is the first and so the default, also of requests that give no temperature: "
                f"{useless[1]} Put another profile first."
            )
        if self.date is not None:
            check_date(self.date)
        if self.ui is not None and not self.ui.is_dir():
            raise UserError(f"ui={self.ui} is no directory; give one whose recorded files the viewer may open.")
        if self.target and not self.dry_run:
            raise UserError("--target names a machine to compile for; it goes with --dry-run.")

    @property
    def name(self) -> str:
        """The model's name in the API."""
        return self.model or Path(self.checkpoint).resolve().name

    @property
    def waiting(self) -> int:
        """Requests that may wait for the tokenizer: `limits.queue`, or unless said as many as for all slots."""
        queue = self.limits.queue
        return sum(self.limits.queue_of(one.slots) for one in self.profiles) if queue is None else queue

    @property
    def key(self) -> str | None:
        """The API key, from the config or the environment."""
        return self.api_key or os.environ.get("SLA_JAX_API_KEY") or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What HTTP has to know of the model that the service runs."""

    name: str
    profiles: tuple[Profile, ...]
    context: int  # prompt and answer together
    vocabulary: int
    end_tokens: tuple[int, ...]
    has_channel: bool
    channel: str  # whose rewards it gives (`checkpoint.store.Info.channel`)
    top_logprobs: int
    created: int  # Unix seconds
