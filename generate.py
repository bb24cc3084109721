"""One answer, streamed while it is searched: `python generate.py CHECKPOINT "prompt" [--search.method sla|greedy …]`.

    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --search.width 4 --search.chunk 8
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --compare greedy      # side by side
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --json                # one object per chunk
    python generate.py .cache/smollm2 "How do I clean a cast-iron pan?" --sampling.temperature 0.8 --sampling.seed 1

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

if TYPE_CHECKING:
    from sla_jax import SLA, Greedy


@dataclasses.dataclass(frozen=True, kw_only=True)
class Search:
    """How to look ahead. Width and depth belong to look-ahead alone and are refused elsewhere."""

    method: Literal["sla", "greedy"] = "sla"
    """sla: look ahead with the checkpoint's reward channel. greedy: the most probable token each time."""
    width: int | None = None
    """Branches per leaf (2)."""
    chunk: int = 10
    """Tokens per level of the tree, committed at once."""
    depth: int | None = None
    """Levels of the tree beyond the first (2)."""
    branch_first: bool = False
    """Branch the first chunk too; the first text then comes later."""

    def decoder(self) -> "SLA | Greedy":
        """The decoder that these settings name."""
        from sla_jax import SLA, Greedy

        if self.method == "sla":
            width, depth = (2 if x is None else x for x in (self.width, self.depth))
            return SLA(width=width, chunk=self.chunk, depth=depth, branch_first=self.branch_first)
        given = {"width": self.width is not None, "depth": self.depth is not None, "branch_first": self.branch_first}
        for name, is_given in given.items():
            if is_given:
                raise UserError(f"--search.{name} means nothing to --search.method greedy; drop it, or use method sla.")
        return Greedy(chunk=self.chunk)


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
    prompt = model.prompt_ids(text if args.raw else _messages(args.system, text))
    common = {"max_tokens": args.max_tokens, "sampling": args.sampling}
    chunks = model.stream(prompt, search=decoder, **common)
    if args.json:
        terminal.print_json(chunks)
    elif args.compare:
        other = model.stream(prompt, search=sla_jax.Greedy(chunk=args.search.chunk), **common)
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
