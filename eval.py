"""Measure a model, compare methods, look at what they did.

python eval.py generate CONFIG.yaml [--out FOLDER …]
    answer the prompts of benchmarks by several methods; goes on where it was stopped
python eval.py judge CONFIG.yaml [--out FOLDER …]
    have judges say how good those answers are
python eval.py report FOLDER [--baseline METHOD …]
    tables, plots and one HTML page of a judged run
python eval.py judge-data CONFIG.yaml
    preference pairs for a judge that shares no prompt with a channel
python eval.py entropy CHECKPOINT --data FILE … --out ROWS.jsonl
    how uncertain a model is of every token of texts
python eval.py view [FOLDER] [--port 8001]
    look at recorded searches and entropies in a browser; with a model to talk to, serve.py shows the same at /ui
python eval.py channel CHECKPOINT --data FILE … [--split test] [--channel FILE] [--json FILE]
    how well a reward channel, or a reward model, ranks preference pairs: accuracies with standard errors
python eval.py steps CHECKPOINT --data FILE … [--threshold 0.5 | --choose FILE …] [--json FILE]
    how well a reward channel, or a two-class head, finds the first bad step of an answer: ProcessBench's figures
python eval.py replay TRACE [--checkpoint CHECKPOINT] [--tolerance X] [--teacher-forced]
    whether a recorded search (generate.py --trace) agrees with itself, and with the model; see docs/traces.md
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sla_jax.config import parse
from sla_jax.errors import UserError, front_door, nearest
from sla_jax.escape import printable

T = TypeVar("T")


def channel(argv: list[str]) -> None:
    """Print the table of a channel's or a reward model's figures on pairs."""
    from sla_jax.training import metrics
    from sla_jax.training.config import EvalConfig
    from sla_jax.training.evaluate import evaluate_channel

    described = "Rank preference pairs with a reward channel or a reward model."
    config = parse(EvalConfig, named(argv), prog="eval.py channel", description=described)
    figures = evaluate_channel(config)
    print(f"{config.checkpoint}: {', '.join(config.data)}, split {config.split or 'all'}")
    print(metrics.table(figures))


def steps(argv: list[str]) -> None:
    """Print the table of a channel's or a two-class head's figures on answers in steps."""
    from sla_jax.training import metrics
    from sla_jax.training.config import StepsConfig
    from sla_jax.training.evaluate import evaluate_steps

    described = "Find the first bad step of answers with a reward channel or a two-class head."
    config = parse(StepsConfig, named(argv), prog="eval.py steps", description=described)
    figures, threshold = evaluate_steps(config)
    chosen = f", chosen on {', '.join(config.choose)}" if config.choose else ""
    print(f"{config.checkpoint}: {', '.join(config.data)}, split {config.split or 'all'}")
    print(f"a step is called bad below P(good) = {threshold:.4f}{chosen}")
    print(metrics.table(figures))


def replay(argv: list[str]) -> None:
    """Check a trace; say what was compared, or the first thing that differs and exit 1."""
    from sla_jax.trace.config import ReplayConfig

    config = parse(ReplayConfig, argv, prog="eval.py replay", description="Check a recorded search.")
    from sla_jax.trace.report import replayed

    said, good = replayed(config)
    print(printable(said))
    if not good:
        sys.exit(1)


def generate(argv: list[str]) -> None:
    """Answer benchmarks by several methods; say where the answers are."""
    from sla_jax.evaluation.generate import generate as run
    from sla_jax.evaluation.settings import GenerateConfig

    described = "Answer the prompts of benchmarks by several methods (docs/evaluation.md)."
    config = configured(GenerateConfig, argv, "generate", described)
    if config.server is not None:
        from sla_jax.evaluation.remote import Remote

        print(run(config, Remote(config.server, template=config.template)))
        return
    import jax

    import sla_jax
    from sla_jax.checkpoint import store
    from sla_jax.evaluation.local import Local
    from sla_jax.trace.record import fingerprint

    sla_jax.use_compilation_cache()
    assert config.checkpoint is not None, "the config has checked it"
    model = sla_jax.load(config.checkpoint, template=config.template, date=config.day)
    about = {"checkpoint": model.name, "channel": store.info(Path(config.checkpoint)).channel}
    about |= {"fingerprint": fingerprint(model.policy)}
    about |= {"dtype": str(model.policy.norm[...].dtype), "backend": jax.default_backend()}
    print(run(config, Local(model, config.methods, about)))


def judge(argv: list[str]) -> None:
    """Judge a run's answers; a line a judge."""
    from sla_jax.evaluation.judges.config import JudgeRun
    from sla_jax.evaluation.judges.run import run_judges
    from sla_jax.loading import use_compilation_cache

    described = "Judge the answers of a run (docs/evaluation.md)."
    config = configured(JudgeRun, argv, "judge", described)
    use_compilation_cache()
    print(*run_judges(config), sep="\n")


def judge_data(argv: list[str]) -> None:
    """Write pairs for an independent judge; say what was kept and dropped."""
    import json

    from sla_jax.evaluation.judges.data import JudgeData, write_judge_data

    described = "Write preference pairs whose prompts a channel did not learn from."
    config = configured(JudgeData, argv, "judge-data", described)
    print(json.dumps(write_judge_data(config), indent=1, ensure_ascii=False))


def report(argv: list[str]) -> None:
    """Write a run's report; say where it is."""
    from sla_jax.evaluation.report.config import ReportConfig
    from sla_jax.evaluation.report.program import report as run

    described = "Tables, plots and a page of a run that was judged (docs/evaluation.md)."
    print(run(parse(ReportConfig, argv, prog="eval.py report", description=described)))


def entropy(argv: list[str]) -> None:
    """Write the entropies of texts, print their figures."""
    from sla_jax.evaluation.entropy.config import EntropyConfig

    described = "Measure how uncertain a model is of every token of texts (docs/evaluation.md)."
    config = parse(EntropyConfig, named(argv), prog="eval.py entropy", description=described)
    import jax.numpy as jnp

    from sla_jax.evaluation.entropy.figures import table
    from sla_jax.evaluation.entropy.run import measure
    from sla_jax.loading import load_model, use_compilation_cache
    from sla_jax.progress import bar
    from sla_jax.trace.record import fingerprint

    use_compilation_cache()
    dtype = config.dtype and jnp.dtype(config.dtype)
    model = load_model(Path(config.checkpoint), dtype=dtype, template=config.template, date=config.date)
    with bar("entropy") as tell:
        found = measure(config, model, fingerprint(model.policy), tell)
    print(table(found))


def view(argv: list[str]) -> None:
    """Serve the viewer without a model, until interrupted."""
    from sla_jax.evaluation.viewer import standalone

    described = "Look at recorded searches and entropies in a browser."
    standalone.view(parse(standalone.ViewConfig, argv, prog="eval.py view", description=described))


def configured(cls: type[T], argv: list[str], command: str, described: str) -> T:
    """What a config file says, and the flags behind it. Raises UserError without a file."""
    usage = f"python eval.py {command} CONFIG.yaml [--field value …]"
    if argv and argv[0].endswith((".yaml", ".yml")):
        return parse(cls, argv, prog=f"eval.py {command}", description=described)
    if {"-h", "--help"}.intersection(argv):
        print(f"{described}\n\nusage: {usage}\n\nBehind a config, --help lists every flag; configs/eval/ has some.")
        sys.exit(0)
    raise UserError(f"eval.py {command} begins with a config file: {usage}; configs/eval/ has some.")


def named(argv: list[str]) -> list[str]:
    """The first word, if it is neither a flag nor a config, is the checkpoint."""
    bare = argv and not argv[0].startswith("--") and not argv[0].endswith((".yaml", ".yml"))
    return ["--checkpoint", *argv] if bare else argv


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "generate": generate,
    "judge": judge,
    "report": report,
    "judge-data": judge_data,
    "entropy": entropy,
    "view": view,
    "channel": channel,
    "steps": steps,
    "replay": replay,
}


def main(argv: list[str]) -> None:
    """Run one of COMMANDS."""
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"eval.py has no {argv[0]!r}; it has {', '.join(COMMANDS)}.{nearest(argv[0], COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


if __name__ == "__main__":
    front_door(main)
