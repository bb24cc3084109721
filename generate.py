"""One answer, streamed while it is searched: `python generate.py CHECKPOINT "prompt" [--search.method METHOD …]`.

    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --search.width 4 --search.chunk 8
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --compare greedy      # side by side
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --json                # one object per chunk
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --sampling.temperature 0.8 --sampling.seed 1
    python generate.py .cache/smollm2 "How do I clean a pan?" --search.method best_of_n --sampling.temperature 0.8

Without --raw the prompt is a user's turn under the checkpoint's chat template; `-` reads it from standard input.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tyro

from sla_jax.config import Variables, parse
from sla_jax.decode.sampling import Sampling
from sla_jax.errors import UserError, front_door
from sla_jax.files import read_standard_input
from sla_jax.scoring.registry import ScorerConfig, make_scorer

if TYPE_CHECKING:
    from sla_jax.decode.methods import Decoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How to search. What belongs to another method is refused; what is not given is the method's own default."""

    method: Literal["sla", "greedy", "beam", "best_of_n", "speculative_rejection", "step_beam", "dvts"] = "sla"
    """sla: look ahead with the checkpoint's reward channel. greedy: the most probable token each time, or a draw.
    beam: the most probable answer that beam search finds.
    best_of_n: n sampled answers, the best one wins. speculative_rejection: the same, giving up the worst on the way.
    step_beam: after every step of n answers the best ones go on. dvts: the same in n/width trees of their own."""
    width: int | None = None
    """sla: branches per leaf (2). step_beam, dvts: next steps sampled of each answer that goes on (4)."""
    chunk: int | None = None
    """sla: tokens per level of the tree, committed at once (10). Elsewhere tokens a round."""
    depth: int | None = None
    """sla: levels of the tree beyond the first (2)."""
    draft: int | None = None
    """sla, greedy: tokens to guess in every forward pass, for the same answer in fewer of them (0)."""
    branch_first: bool = False
    """sla: branch the first chunk too; the first text then comes later."""
    early_margin: float | None = None
    """sla: commit before the tree is full what leads by this much mean reward."""
    branch_above: float | None = None
    """sla: branch only where the policy is at least this uncertain of the next token (docs/adaptive.md)."""
    end_above: float | None = None
    """sla: end a chunk early where the next token is this uncertain."""
    least: int | None = None
    """sla, with --search.end-above: a chunk has at least so many tokens (half of --search.chunk)."""
    uncertainty: Literal["entropy", "doubt"] | None = None
    """sla: entropy in nats, or doubt: 1 - the probability of the best token."""
    behind: float | None = None
    """sla: drop leaves whose mean reward is this far behind the best one's."""
    logprob_weight: float | None = None
    """sla: add so many times the mean log-probability to a leaf's score."""
    token_weight: float | None = None
    """sla, with --search.budget: what the next token's log-probability counts beside a leaf's score (0)."""
    beams: int | None = None
    """beam: running answers (4)."""
    length_penalty: float | None = None
    """beam: log-probabilities are divided by length to this power (1)."""
    early_stopping: Literal["true", "never"] | None = None
    """beam: true stops at the first BEAMS answers ended; never is the most patient."""
    n: int | None = None
    """best_of_n (8), speculative_rejection (16), step_beam (8), dvts (8): candidates."""
    alpha: float | None = None
    """speculative_rejection: the share given up each time (0.5)."""
    budget: int | None = None
    """sla: lanes at most. speculative_rejection: tokens whose keys and values all lanes together may hold."""
    reserve_gb: float | None = None
    """speculative_rejection: in place of a budget, all that the device's free memory holds, less so many GB."""
    score: str | None = None
    """best_of_n, speculative_rejection (reward); step_beam, dvts, of a step (reward_last): reward, reward_last,
    reward_min, logprob, logprob_mean, self_reward, or a sum like reward+0.5*logprob_mean."""
    lookahead: int | None = None
    """step_beam, dvts: greedy steps beyond a step that it is scored with (0)."""
    aggregate: Literal["last", "min", "prod", "mean"] | None = None
    """step_beam, dvts: what the scores of an answer's steps make (last)."""
    separator: str | None = None
    """step_beam, dvts: what ends a step (an empty line)."""
    max_steps: int | None = None
    """step_beam, dvts: steps, of which the last runs to its end (40)."""
    filter_duplicates: bool = False
    """step_beam: of candidates with the same tokens only one goes on."""
    boxed: bool = False
    """dvts: an answer is complete, too, with the step that completes \\boxed{…}."""

    def decoder(self) -> "Decoder":
        """The decoder that these settings name."""
        from sla_jax.decode.methods import decoder_of

        options = {name: value for name, value in vars(self).items() if name != "method"}
        if self.early_stopping == "true":
            options["early_stopping"] = True
        return decoder_of(self.method, options, "--search.")


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
    template: Variables = dataclasses.field(default_factory=dict)
    """Variables of the chat template: --template.enable_thinking false"""
    date: str | None = None
    """The day that a chat template takes for today, YYYY-MM-DD; today if not given."""
    json: bool = False
    """One JSON object per committed chunk, then a summary."""
    sampling: Sampling = Sampling()
    """Draw tokens instead of taking the best: --sampling.temperature, .top-k, .top-p, .min-p, .seed and penalties."""
    scorer: ScorerConfig | None = None
    """What ranks the candidates of best_of_n, speculative_rejection, step_beam and dvts in place of --search.score:
    --scorer.kind, .checkpoint, … (docs/scoring.md)."""
    trace: Path | None = None
    """Record the search in this file, as JSON lines (docs/traces.md); eval.py replay checks it."""
    compare: Literal["greedy"] | None = None
    """Answer with this method too and show both side by side, rewards as colour."""
    picture: Path | None = None
    """With --compare: save what was shown as an SVG file."""

    def __post_init__(self) -> None:
        if self.raw and self.system is not None:
            raise UserError("--system needs the chat template, which --raw switches off; use one of the two.")
        if self.raw and (self.template or self.date is not None):
            name = "--template" if self.template else "--date"
            raise UserError(f"{name} is for the chat template, which --raw switches off; use one of the two.")
        if self.json and self.compare:
            raise UserError("--json prints one answer and --compare two; run generate.py twice for JSON of both.")
        if self.picture and not self.compare:
            raise UserError("--picture draws two answers side by side; give --compare greedy with it.")


def main(argv: list[str]) -> None:
    """Load, search, print."""
    args = parse(Generate, argv, prog="generate.py", description="Stream one answer, looking ahead with rewards.")
    decoder = args.search.decoder()
    text = read_standard_input() if args.prompt == "-" else args.prompt

    import sla_jax
    from sla_jax import terminal
    from sla_jax.trace.record import record

    sla_jax.use_compilation_cache()
    with terminal.waiting("loading"):
        model = sla_jax.load(args.checkpoint, template=args.template, date=args.date)
    prompt = text if args.raw else _messages(args.system, text)
    common: dict[str, Any] = {"max_tokens": args.max_tokens, "sampling": args.sampling}
    scorer = None if args.scorer is None else make_scorer(args.scorer)
    if args.trace is None:
        chunks = model.stream(prompt, search=decoder, scorer=scorer, **common)
    else:
        chunks = record(model, prompt, args.trace, search=decoder, scorer=scorer, **common)
    if args.json:
        terminal.print_json(chunks)
    elif args.compare:
        other = model.stream(prompt, search=sla_jax.Greedy(chunk=args.search.chunk or 10), **common)
        before = model.prompt_ids(text) if args.raw else []
        columns = terminal.print_beside({"greedy": other, terminal.describe(decoder): chunks}, model.tokenizer, before)
        if args.picture:
            terminal.save_picture(columns, args.picture, title=text)
    else:
        terminal.print_stream(chunks)


def _messages(system: str | None, text: str) -> list[dict[str, str]]:
    head = [] if system is None else [{"role": "system", "content": system}]
    return [*head, {"role": "user", "content": text}]


if __name__ == "__main__":
    front_door(main)
