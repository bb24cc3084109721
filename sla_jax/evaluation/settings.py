"""What `eval.py generate` is told: the types behind configs/eval/*.yaml and its flags; and what a run writes of it."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from sla_jax.config import Variables, from_tree
from sla_jax.decode.methods import METHODS, Decoder, useless_option
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError
from sla_jax.scoring.registry import ScorerConfig
from sla_jax.text import DAY, check_date

FORMAT = 1
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
VERSUS = ".vs."  # stands between two names in the files of pairwise judges
Layout = Literal["mt_bench", "arena_hard", "alpaca_eval", "math500", "gsm8k", "ifeval", "any"]
LAYOUTS: tuple[Layout, ...] = ("mt_bench", "arena_hard", "alpaca_eval", "math500", "gsm8k", "ifeval", "any")
Option = bool | int | float | str
# what serve.py lets a request ask for; the rest of a search is its profile's
ASKED_FOR = ("width", "chunk", "depth", "branch_first", "beams", "n", "alpha")


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Prompts from a file, or from a data set that `datasets` loads, and which of them."""

    name: str
    """What its files are called; one of the layouts' names has that layout."""
    file: str | None = None
    """.jsonl or .json, plain or .gz."""
    hub: str | None = None
    """Instead: a name that `datasets.load_dataset` knows, or a folder."""
    subset: str | None = None
    """hub: its configuration, if it has several."""
    split: str | None = None
    """hub: the split (test if not given). file: only rows whose `split` says so."""
    layout: Layout | None = None
    """mt_bench, arena_hard, alpaca_eval, math500, gsm8k, ifeval, or any; by the name if not given."""
    references: str | None = None
    """mt_bench: a file of reference answers in FastChat's layout."""
    fold: int | None = None
    """Only prompts whose md5 is divisible by this: 5 leaves the test part of data that was split so."""
    limit: int | None = None
    """Only so many prompts: those with the smallest md5 of "limit:" + prompt, in the order of the file."""
    exclude: tuple[str, ...] = ()
    """Ids of prompts to leave out."""
    turns: int | None = None
    """Only so many turns of every prompt, from the first."""
    template: str = "{prompt}"
    """What is asked in every turn; {prompt} stands for the prompt."""
    system: str | None = None
    """A system message in front of it."""

    def __post_init__(self) -> None:
        check_name("benchmark", self.name)
        where = f"the benchmark {self.name}"
        if (self.file is None) == (self.hub is None):
            raise UserError(f"{where} needs either a file or a hub name; it has {'both' if self.file else 'neither'}.")
        if self.subset is not None and self.hub is None:
            raise UserError(f"{where} has a subset, which belongs to a hub name; leave it out.")
        if self.references is not None and self.kind != "mt_bench":
            raise UserError(f"{where} has references, which belong to the layout mt_bench; its layout is {self.kind}.")
        for name, low in (("fold", 2), ("limit", 1), ("turns", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise UserError(f"{where} has {name}={value}; it has to be at least {low}.")
        if "{prompt}" not in self.template:
            raise UserError(f"{where} has the template {self.template!r}; {{prompt}} has to stand in it.")

    @property
    def kind(self) -> Layout:
        """The layout of its rows."""
        if self.layout is not None:
            return self.layout
        return next((layout for layout in LAYOUTS if layout == self.name), "any")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MethodConfig:
    """One way to answer: a decoder, how it draws, and what ranks its candidates."""

    name: str
    """What its files, and its rows in tables, are called."""
    method: Literal["sla", "greedy", "beam", "best_of_n", "speculative_rejection", "step_beam", "dvts"]
    options: dict[str, Option] = dataclasses.field(default_factory=dict)
    """The method's own options (docs/decoders.md); what is not given is its default."""
    sampling: Sampling = Sampling()
    """Temperature and the rest. The seed of every turn is made from the run's, so this one stays 0."""
    scorer: ScorerConfig | None = None
    """What ranks candidates in place of the option `score` (docs/scoring.md)."""
    profile: str | None = None
    """With a server that is serve.py: the profile that answers; its options are the server's."""

    def __post_init__(self) -> None:
        check_name("method", self.name)
        where = f"the method {self.name}"
        if self.sampling.seed != 0:
            raise UserError(f"{where} has sampling.seed={self.sampling.seed}; the run has one seed, for all of them.")
        if useless := useless_option(self.decoder(), self.sampling):
            raise UserError(f"{where}: {useless[1]}")

    def decoder(self) -> Decoder:
        """The decoder that this names. Raises UserError for an option that is unknown, mistyped or out of range."""
        return from_tree(METHODS[self.method], dict(self.options), f"the options of the method {self.name}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """A server that speaks OpenAI's chat completions."""

    url: str
    """Up to the version: http://127.0.0.1:8000/v1"""
    model: str
    """Its name there."""
    key_variable: str = "OPENAI_API_KEY"
    """The environment variable that holds the API key, if there is one; keys stand in no file."""
    extensions: bool = False
    """It is serve.py: searches, top_k and the like can be asked of it; it tells candidates, rewards and costs."""
    rewards: bool = True
    """With extensions: ask for rewards. A model without a reward channel has none."""
    parallel: int = 1
    """Requests at a time."""
    timeout: float = 600.0
    """Seconds for one answer."""
    retries: int = 5
    """Times that a request is sent again when the server is unreachable, busy or failing; the pause doubles."""

    def __post_init__(self) -> None:
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"server.url is {self.url!r}; it has to begin with http:// or https://.")
        for name, low in (("parallel", 1), ("retries", 0)):
            if getattr(self, name) < low:
                raise UserError(f"server.{name}={getattr(self, name)}; it has to be at least {low}.")
        if not self.timeout > 0:
            raise UserError(f"server.timeout={self.timeout}; it has to be above 0.")

    @property
    def key(self) -> str | None:
        """The API key, from the environment."""
        return os.environ.get(self.key_variable) or None


@dataclasses.dataclass(frozen=True, kw_only=True)
class GenerateConfig:
    """Which prompts are answered how, and by what."""

    name: str
    """Of the run."""
    benchmarks: tuple[BenchmarkConfig, ...]
    """In YAML."""
    methods: tuple[MethodConfig, ...]
    """In YAML."""
    out: Path | None = None
    """The run's folder; runs/eval/NAME if not given. The same command again goes on where it stopped."""
    checkpoint: str | None = None
    """Directory made by convert.py or train.py: answers are made in this process."""
    server: ServerConfig | None = None
    """Instead: a server that answers."""
    max_tokens: int = 256
    """Limit of every turn."""
    template: Variables = dataclasses.field(default_factory=dict)
    """Variables of the chat template: --template.enable_thinking false (to a server: chat_template_kwargs)."""
    date: str | None = None
    """checkpoint: what its chat template takes for today, YYYY-MM-DD; 2024-07-26 if not given."""
    seed: int = 0
    """With the benchmark, the prompt's id and the turn it decides every draw."""

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.server is None):
            have = "both" if self.checkpoint else "neither"
            raise UserError(f"who answers is a checkpoint or a server; there is {have}. Give --checkpoint DIR alone.")
        for what, given in (("benchmark", self.benchmarks), ("method", self.methods)):
            names = [one.name for one in given]
            if not names:
                raise UserError(f"there is no {what}; name at least one under {what}s.")
            if len({name.casefold() for name in names}) < len(names):
                raise UserError(f"two {what}s have one name: {', '.join(names)}.")
        if self.max_tokens < 1:
            raise UserError(f"max_tokens={self.max_tokens}; it has to be at least 1.")
        if self.date is not None:
            check_date(self.date)
        if self.date is not None and self.server is not None:
            raise UserError(f"date={self.date} is for a checkpoint; a server has its own day, so leave it out.")
        for method in self.methods:
            check_server(method, self.server)

    @property
    def day(self) -> str | None:
        """What the template takes for today; a server's is not known."""
        return (self.date or DAY) if self.server is None else None

    @property
    def folder(self) -> Path:
        """OUT."""
        return self.out or Path("runs") / "eval" / self.name


def check_name(what: str, name: str) -> None:
    """Raise UserError for a name that cannot be a file's."""
    if not NAME.fullmatch(name) or VERSUS in name:
        raise UserError(
            f"a {what} is named {name!r}; names are files: letters, digits, '.', '_' and '-', and not {VERSUS!r}."
        )


def check_server(method: MethodConfig, server: ServerConfig | None) -> None:
    """Raise UserError for what the one who answers cannot be asked for: nothing that a method says is dropped."""
    where = f"the method {method.name}"
    if server is None:
        if method.profile is not None:
            raise UserError(f"{where} has a profile, which is a server's; leave it out, or give a server.")
        return
    if method.scorer is not None:
        raise UserError(f"{where} has a scorer, and a server is asked; scorers rank candidates in process only.")
    if server.extensions:
        strange = [name for name in method.options if name not in ASKED_FOR]
        if strange and method.profile is None:
            raise UserError(
                f"{where} has {', '.join(strange)}, which serve.py takes from its profiles alone; a request can ask "
                f"for {', '.join(ASKED_FOR)}. Declare a profile there and name it here: profile: NAME."
            )
        if method.options and method.profile is not None:
            raise UserError(f"{where} names a profile and options; the options are the profile's, so leave them out.")
        return
    plain = Sampling(**{name: getattr(method.sampling, name) for name in PLAIN})
    if method.method != "greedy" or method.options or method.profile is not None or method.sampling != plain:
        raise UserError(
            f"{where} is more than {', '.join(PLAIN)}, which is all that an OpenAI-compatible server takes; for one "
            "that is serve.py set server.extensions to true."
        )


PLAIN = ("temperature", "top_p", "presence_penalty", "frequency_penalty", "logit_bias")  # of Sampling, in OpenAI's API


# ---- what a run writes down of it ----


def resolved(
    config: GenerateConfig,
    digests: Mapping[str, tuple[str, int]],
    about: Mapping[str, str],
    options: Callable[[MethodConfig], Mapping[str, Any]],
) -> dict[str, Any]:
    """Everything that decides the answers. `digests`: of every benchmark's prompts, and how many there are; `about`:
    what is known of the model; `options`: of a method's decoder."""
    server = None if config.server is None else {"url": config.server.url, "model": config.server.model}
    return {
        "format": FORMAT,
        "model": {**(server or {}), **about},
        "max_tokens": config.max_tokens,
        "template": config.template,
        "date": config.day,
        "seed": config.seed,
        "benchmarks": {one.name: _benchmark(one, *digests[one.name]) for one in config.benchmarks},
        "methods": {one.name: _method(one, options(one)) for one in config.methods},
    }


def completed(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run, with the defaults of what was none when older ones were written."""
    return {"template": {}, "date": None if "url" in settings["model"] else DAY} | settings


def _benchmark(config: BenchmarkConfig, digest: str, count: int) -> dict[str, Any]:
    return {"source": config.file or f"hub:{config.hub}", "layout": config.kind, "prompts": count, "sha256": digest}


def _method(config: MethodConfig, options: Mapping[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = {"method": config.method, "options": dict(options)}
    whole |= {"sampling": dataclasses.asdict(config.sampling), "profile": config.profile}
    whole |= {"scorer": None if config.scorer is None else dataclasses.asdict(config.scorer)}
    return whole


def joined(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Settings of a run that goes on with these: benchmarks and methods of either are in it."""
    return new | {name: old[name] | new[name] for name in ("benchmarks", "methods")}


def first_difference(old: dict[str, Any], new: dict[str, Any]) -> str | None:
    """`methods.sla.options.width: was 2, now 4`, or None. A benchmark or a method that only one has is no difference,
    and neither is where a benchmark's prompts were read: their hash is compared."""
    return next(_differences(old, json.loads(json.dumps(new)), ""), None)


def _differences(old: Any, new: Any, at: str) -> Iterator[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        both = [name for name in old if name in new]
        if at not in ("benchmarks", "methods"):
            both = [name for name in {**old, **new} if name != "source"]
        for name in both:
            yield from _differences(old.get(name), new.get(name), f"{at}.{name}".lstrip("."))
    elif old != new:
        yield f"{at}: was {json.dumps(old)}, now {json.dumps(new)}"
