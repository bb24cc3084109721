"""Which judges, on which answers: frozen dataclasses, read from YAML and flags by `sla_jax.config`."""

import dataclasses
import re
from typing import Any

from sla_jax.config import Variables
from sla_jax.errors import UserError, nearest
from sla_jax.scoring.registry import KINDS as SCORERS
from sla_jax.scoring.registry import ScorerConfig
from sla_jax.text import check_date

PROXY = "teacher's proxy"
# kind → its label, if none is given
LABELS = {
    "channel": PROXY,
    "reward_model": "reward model",
    "prm": "process reward model",
    "verifier": "rule",
    "rules": "rule",
    "python": "function",
    "armo": "reward model",
    "math": "rule",
    "gsm8k": "rule",
    "ifeval": "rule",
    "intrinsic": "measure",
    "perplexity": "measure",
    "llm": "language model",
    "alpaca_eval": "language model",
}
# kind → the fields that it reads; what it needs stands first, scorers' own fields are theirs to check
TAKES: dict[str, tuple[str, ...]] = {
    "armo": ("checkpoint", "template", "date"),
    "math": ("timeout",),
    "gsm8k": (),
    "ifeval": (),
    "intrinsic": (),
    "perplexity": ("checkpoint", "template", "date"),
    "llm": ("url", "model", "baseline", "key_env", "retries", "timeout"),
    "alpaca_eval": ("baseline",),
}
NEEDS = {
    "armo": ("checkpoint",),
    "perplexity": ("checkpoint",),
    "llm": ("url", "model", "baseline"),
    "alpaca_eval": ("baseline",),
}
# the benchmark that a kind is for
OWN = {"math": "math500", "gsm8k": "gsm8k", "ifeval": "ifeval", "alpaca_eval": "alpaca_eval"}
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """One judge; each kind takes the fields that it needs and no others."""

    kind: str
    """channel, reward_model, prm, rules, verifier, python (a scorer: docs/scoring.md), armo, math, gsm8k, ifeval,
    intrinsic, perplexity, llm or alpaca_eval (files for its CLI, and back)."""
    name: str | None = None
    """The folder of its judgements; the kind if not given."""
    label: str | None = None
    """What tables call it: say independent. A channel is always the teacher's proxy."""
    scorer: ScorerConfig | None = None
    """channel, reward_model, prm, rules, verifier, python: the scorer."""
    checkpoint: str | None = None
    """armo, perplexity: a checkpoint directory."""
    template: Variables | None = None
    """armo, perplexity: variables of the checkpoint's chat template."""
    date: str | None = None
    """armo, perplexity: what that template takes for today, YYYY-MM-DD; 2024-07-26 if not given."""
    url: str | None = None
    """llm: the address of an OpenAI-compatible server, such as http://localhost:8000/v1."""
    model: str | None = None
    """llm: the model to ask for."""
    baseline: str | None = None
    """llm, alpaca_eval: the method that all others are compared with."""
    key_env: str | None = None
    """llm: the environment variable that holds the key."""
    retries: int | None = None
    """llm: how often a request is tried again; 4 if not given."""
    timeout: float | None = None
    """math: seconds for one comparison, 5 if not given. llm: seconds for one reply, 120 if not given."""
    benchmarks: tuple[str, ...] = ()
    """Judge the answers to these; if not given all, or of math, gsm8k, ifeval, alpaca_eval the set they are for."""

    def __post_init__(self) -> None:
        if self.kind not in LABELS:
            raise UserError(f"there is no judge {self.kind!r}; known: {', '.join(LABELS)}.{nearest(self.kind, LABELS)}")
        if not NAME.fullmatch(self.folder):
            raise UserError(f"the judge's name {self.folder!r} is a folder: letters, digits, '.', '_' and '-' only.")
        if self.kind == "channel" and self.label not in (None, PROXY):
            raise UserError(
                f"label={self.label!r} for a channel: search followed it, so it is the {PROXY} and nothing else; judge "
                "with another model."
            )
        self._check_fields()

    def _check_fields(self) -> None:
        scores = self.kind in SCORERS
        if scores and (self.scorer is None or self.scorer.kind != self.kind):
            raise UserError(f"the judge {self.kind!r} needs scorer.kind={self.kind} and that scorer's fields.")
        for name in NEEDS.get(self.kind, ()):
            if not getattr(self, name):
                raise UserError(f"the judge {self.kind!r} needs {name!r}; add it.")
        taken = ("scorer",) if scores else TAKES[self.kind]
        common = ("kind", "name", "label", "benchmarks")
        for name in [field.name for field in dataclasses.fields(self) if field.name not in (*common, *taken)]:
            if getattr(self, name) is not None:
                raise UserError(f"{name!r} means nothing to the judge {self.kind!r}; drop it.")
        if self.retries is not None and self.retries < 0:
            raise UserError(f"retries={self.retries} must be at least 0.")
        if self.date is not None:
            check_date(self.date)
        if self.timeout is not None and self.timeout <= 0:
            raise UserError(f"timeout={self.timeout} must be above 0.")

    def rendering(self) -> dict[str, Any]:
        """How a checkpoint's chats are rendered, as far as it is given."""
        given = {"template": self.template, "date": self.date}
        return {name: value for name, value in given.items() if value is not None}

    @property
    def folder(self) -> str:
        """The name of the folder of its judgements."""
        return self.name or self.kind

    @property
    def said(self) -> str:
        """The label in effect."""
        return self.label or LABELS[self.kind]

    def judges(self, benchmark: str) -> bool:
        """Whether answers to this benchmark are its business."""
        own = (OWN[self.kind],) if self.kind in OWN else ()
        return benchmark in (self.benchmarks or own or (benchmark,))

    def settings(self) -> dict[str, Any]:
        """What its judgements depend on."""
        unread = ("name", "label", "benchmarks", "retries", *(("timeout",) if self.kind == "llm" else ()))
        given = {name: value for name, value in dataclasses.asdict(self).items() if name not in unread}
        return {name: value for name, value in given.items() if value is not None}


@dataclasses.dataclass(frozen=True, kw_only=True)
class JudgeRun:
    """Judge the answers of one run."""

    out: str
    """The run's folder, in which `eval.py generate` has left OUT/answers."""
    judges: tuple[JudgeConfig, ...]
    methods: tuple[str, ...] = ()
    """Judge the answers of these; all if not given."""
    batch: int = 16
    """Answers that a judge is given at one time, and that are written together."""

    def __post_init__(self) -> None:
        if not self.judges:
            raise UserError(f"there is no judge; give at least one of {', '.join(LABELS)} under judges.")
        if self.batch < 1:
            raise UserError(f"batch={self.batch} must be at least 1.")
        names = [judge.folder for judge in self.judges]
        if twice := [name for name in names if names.count(name) > 1]:
            raise UserError(f"two judges are called {twice[0]!r}; give one of them another name.")
