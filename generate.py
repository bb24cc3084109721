"""One answer, streamed while it is searched: `python generate.py CHECKPOINT "prompt" [--search.method METHOD …]`.

    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --search.width 4 --search.chunk 8
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --compare greedy      # side by side
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --json                # one object per chunk
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --sampling.temperature 0.8 --sampling.seed 1
    python generate.py .cache/smollm2 "How do I clean a pan?" --search.method best_of_n --sampling.temperature 0.8

Without --raw the prompt is a user's turn under the checkpoint's chat template; `-` reads it from standard input.
"""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from sla_jax.config import parse
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError, front_door
from sla_jax.scoring.registry import ScorerConfig, make_scorer

if TYPE_CHECKING:
    from sla_jax.api import Search as Decoder


METHODS = {
    "sla": "SLA",
    "greedy": "Greedy",
    "beam": "BeamSearch",
    "best_of_n": "BestOfN",
    "speculative_rejection": "SpeculativeRejection",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How to search. What belongs to another method is refused; what is not given is the method's own default."""

    method: Literal["sla", "greedy", "beam", "best_of_n", "speculative_rejection"] = "sla"
    """sla: look ahead with the checkpoint's reward channel. greedy: the most probable token each time, or a draw.
    beam: the most probable answer that beam search finds.
    best_of_n: n sampled answers, the best one wins. speculative_rejection: the same, giving up the worst on the way."""
    width: int | None = None
    """sla: branches per leaf (2)."""
    chunk: int | None = None
    """sla: tokens per level of the tree, committed at once (10). Elsewhere tokens a round."""
    depth: int | None = None
    """sla: levels of the tree beyond the first (2)."""
    branch_first: bool = False
    """sla: branch the first chunk too; the first text then comes later."""
    beams: int | None = None
    """beam: running answers (4)."""
    length_penalty: float | None = None
    """beam: log-probabilities are divided by length to this power (1)."""
    early_stopping: Literal["true", "never"] | None = None
    """beam: true stops at the first BEAMS answers ended; never is the most patient."""
    n: int | None = None
    """best_of_n (8), speculative_rejection (16): candidates."""
    alpha: float | None = None
    """speculative_rejection: the share given up each time (0.5)."""
    budget: int | None = None
    """speculative_rejection: tokens whose keys and values all lanes together may hold."""
    score: str | None = None
    """best_of_n, speculative_rejection: reward, reward_last, reward_min, logprob, logprob_mean, self_reward, or a sum
    like reward+0.5*logprob_mean."""

    def decoder(self) -> "Decoder":
        """The decoder that these settings name."""
        import sla_jax

        kind = getattr(sla_jax, METHODS[self.method])
        known = {field.name for field in dataclasses.fields(kind)}
        given = {name: value for name, value in vars(self).items() if value is not None and value is not False}
        del given["method"]
        if self.early_stopping == "true":
            given["early_stopping"] = True
        for name in given:
            if name not in known:
                takes = ", ".join(f"--search.{one}" for one in sorted(known) if hasattr(self, one))
                raise UserError(f"--search.{name} means nothing to --search.method {self.method}; that takes {takes}.")
        return kind(**given)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Generate:
    """What to generate."""

    checkpoint: tyro.conf.Positional[str]
    """Directory made by convert.py or train.py."""
    prompt: tyro.conf.Positional[str]
    """The user's turn; - reads standard input."""
    search: Search = dataclasses.field(default_factory=Search)
    max_tokens: int = 256
    """Exact upper bound on new tokens."""
    system: str | None = None
    """System message."""
    raw: bool = False
    """Give the prompt to the model as it is, without the chat template."""
    json: bool = False
    """One JSON object per committed chunk, then a summary."""
    sampling: Sampling = Sampling()
    """Draw tokens instead of taking the best: --sampling.temperature, .top-k, .top-p, .min-p, .seed and penalties."""
    scorer: ScorerConfig | None = None
    """What ranks the candidates of best_of_n and speculative_rejection in place of --search.score."""
    compare: Literal["greedy"] | None = None
    """Answer with this method too and show both side by side, rewards as colour."""
    picture: Path | None = None
    """With --compare: save what was shown as an SVG file."""

    def __post_init__(self) -> None:
        if self.raw and self.system is not None:
            raise UserError("--system needs the chat template, which --raw switches off; use one of the two.")
        if self.json and self.compare:
            raise UserError("--json prints one answer and --compare two; run generate.py twice for JSON of both.")
        if self.picture and not self.compare:
            raise UserError("--picture draws two answers side by side; give --compare greedy with it.")


def main(argv: list[str]) -> None:
    """Load, search, print."""
    args = parse(Generate, argv, prog="generate.py", description="Stream one answer, looking ahead with rewards.")
    decoder = args.search.decoder()
    text = sys.stdin.read() if args.prompt == "-" else args.prompt

    import sla_jax
    from sla_jax import terminal

    sla_jax.use_compilation_cache()
    with terminal.waiting("loading"):
        model = sla_jax.load(args.checkpoint)
    prompt = text if args.raw else _messages(args.system, text)
    common = {"max_tokens": args.max_tokens, "sampling": args.sampling}
    scorer = None if args.scorer is None else make_scorer(args.scorer)
    chunks = model.stream(prompt, search=decoder, scorer=scorer, **common)
    if args.json:
        terminal.print_json(chunks)
    elif args.compare:
        other = model.stream(prompt, search=sla_jax.Greedy(chunk=args.search.chunk or 10), **common)
        columns = terminal.print_beside({"greedy": other, terminal.describe(decoder): chunks}, model.tokenizer)
        if args.picture:
            terminal.save_picture(columns, args.picture, title=text)
    else:
        terminal.print_stream(chunks)


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]


if __name__ == "__main__":
    front_door(main)
