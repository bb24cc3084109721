"""`eval.py channel` and `eval.py steps`: what a checkpoint's channel or head says of pairs, and of steps.

Both load a checkpoint for reading, make tokens of files as training does (kept in memory), and print figures with
standard errors. Pairs are ranked by the channel or a scalar head, steps judged by the channel or a two-class head.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from sla_jax.checkpoint import store
from sla_jax.checkpoint.channel_file import load_channel
from sla_jax.config import load_yaml
from sla_jax.errors import UserError
from sla_jax.files import write_text
from sla_jax.model.axes import param_shardings
from sla_jax.model.config import ModelConfig
from sla_jax.model.policy import with_channel, without_channel
from sla_jax.progress import bar, say
from sla_jax.sharding import TRAIN, make_mesh
from sla_jax.training import metrics
from sla_jax.training.batch import TokenSource
from sla_jax.training.config import ChannelOptions, EvalConfig, HeadOptions, StepsConfig, TrainConfig
from sla_jax.training.data import load_examples
from sla_jax.training.data_config import DataConfig, Task
from sla_jax.training.examples import Examples
from sla_jax.training.heldout import THRESHOLD, step_rows
from sla_jax.training.metrics import PairRewards
from sla_jax.training.objective import Frozen, Parts, Plan
from sla_jax.training.process import StepRow, best_threshold, process_figures
from sla_jax.training.rank import Found, rank
from sla_jax.training.resume import CONFIG_FILE
from sla_jax.training.step import OutputsFn, jit_outputs

COMMAND = {"pairs": "channel", "steps": "steps"}  # of eval.py, by what it reads
OTHER = {"pairs": "steps", "steps": "pairs"}
OUTPUTS = {"pairs": 1, "steps": 2}  # of the head that reads it
Figures = dict[str, metrics.Figure]


class Judge(NamedTuple):
    """A checkpoint that is read, compiled once for all files."""

    plan: Plan
    parts: Parts
    frozen: Frozen
    run: OutputsFn
    mesh: Mesh


class Judged(NamedTuple):
    """Figures of step labels, and the threshold of P(good) that they were taken at."""

    figures: Figures
    threshold: float


def evaluate_channel(config: EvalConfig) -> Figures:
    """Rank the pairs and return the figures; with `config.json` they are written there too. Raises UserError."""
    judge = _judge(config, "pairs")
    found, _ = _read(judge, config, _data(config, judge.plan.model, config.data, config.split))
    figures = metrics.summarize([PairRewards(*one.rewards) for one in found if one.rewards is not None])
    _write(config, figures, {"pairs": len(found)})
    return figures


def evaluate_steps(config: StepsConfig) -> Judged:
    """Judge the steps; the threshold is the given one, the best on other files, or 0.5. Raises UserError."""
    judge = _judge(config, "steps")
    threshold = config.threshold
    if config.choose:
        threshold = best_threshold(_step_rows(judge, config, config.choose, config.choose_split))
    threshold = THRESHOLD if threshold is None else threshold
    rows = _step_rows(judge, config, config.data, config.split)
    figures = process_figures(rows, threshold)
    _write(config, figures, {"answers": len(rows), "threshold": threshold})
    return Judged(figures, threshold)


def _step_rows(judge: Judge, config: StepsConfig, files: tuple[str, ...], split: str | None) -> list[StepRow]:
    data = _data(config, judge.plan.model, files, split)
    found, examples = _read(judge, config, dataclasses.replace(data, separator=_separator(config)))
    lost = examples.counts["cut_labels"]
    if lost:
        raise UserError(
            f"{lost} labels of {', '.join(files)} lie beyond max_length={data.max_length} tokens, and an answer "
            "without its bad step would count as right; raise --max-length, or leave these answers out."
        )
    return step_rows(found, examples, np.arange(len(examples)))


def _separator(config: StepsConfig) -> str:
    """What stands behind every step: as told, as in training, or a line break."""
    return _trained(config).separator if config.separator is None else config.separator


def _trained(config: EvalConfig) -> DataConfig:
    """How the checkpoint's rows became tokens when it was trained, if it was trained here."""
    file = Path(config.checkpoint) / CONFIG_FILE
    return load_yaml(TrainConfig, file).data if file.is_file() else DataConfig(generated=1)


def _data(config: EvalConfig, model: ModelConfig, files: tuple[str, ...], split: str | None) -> DataConfig:
    longest, trained = config.max_length or min(model.max_positions, 1024), _trained(config)
    return DataConfig(
        files=files,
        split=split,
        heldout=0,
        max_length=longest,
        max_prompt_length=config.max_prompt_length or longest * 3 // 4,
        on_bad_row=config.on_bad_row,
        max_bad=config.max_bad,
        limit=config.limit,
        template=trained.template if config.template is None else config.template,
        date=config.date or trained.date,
        cache=None,
    )


def _read(judge: Judge, config: EvalConfig, data: DataConfig) -> tuple[list[Found], Examples]:
    """What the model gives at every scored token of the files, and the examples."""
    plan, mesh = judge.plan, judge.mesh
    examples = load_examples(
        data,
        plan.config.task,
        Path(config.checkpoint),
        max_positions=plan.model.max_positions,
        vocabulary=plan.model.vocab_size,
        seed=0,
        progress=lambda done, total: None,
        say=say,
    )
    with jax.set_mesh(mesh), bar("reading") as tell:
        found = rank(
            judge.run,
            judge.parts,
            judge.frozen,
            TokenSource(examples, shared=plan.shared),
            np.arange(len(examples)),
            mesh,
            batch_tokens=config.batch_tokens,
            progress=lambda done, total: tell(done, total, "rows"),
        )
    return found, examples


def _write(config: EvalConfig, figures: Figures, more: dict[str, Any]) -> None:
    if config.json is not None:
        described = {"config": dataclasses.asdict(config), **more, "figures": metrics.as_json(figures)}
        write_text(Path(config.json), json.dumps(described, indent=2) + "\n")


def _judge(config: EvalConfig, task: Task) -> Judge:
    """The checkpoint's own channel or head, or the channel of a file on its policy."""
    if not config.checkpoint or not config.data:
        raise UserError(f"eval.py {COMMAND[task]} needs a checkpoint directory and --data FILE …; see --help.")
    directory, mesh = Path(config.checkpoint), make_mesh(data=jax.device_count())
    model = store.info(directory).config
    _check_reader(config, model, task)
    with jax.set_mesh(mesh):
        loaded = store.load(directory, dtype=config.dtype, shardings=param_shardings(model, mesh, TRAIN))
        policy, head = loaded.policy, float(model.score is not None)
        if model.score is not None:
            parts = Parts(score=policy.score)
        else:
            bare, channel = without_channel(model), policy.channel
            if config.channel is not None:
                channel, described = load_channel(Path(config.channel), bare)
                model = dataclasses.replace(bare, channel=described)
            parts = Parts(channel=jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), channel))
            policy = with_channel(policy, bare, None)
        read_by = TrainConfig(
            task=task, dtype=config.dtype, channel=ChannelOptions(weight=1 - head), head=HeadOptions(weight=head)
        )
        plan = Plan(config=read_by, model=model, attention="xla")
        return Judge(plan, parts, Frozen(policy=policy), jit_outputs(plan, mesh), mesh)


def _check_reader(config: EvalConfig, model: ModelConfig, task: Task) -> None:
    """Raises UserError when nothing in the checkpoint can read this kind of rows."""
    if config.channel is None and model.channel is None and model.score is None:
        raise UserError(f"the checkpoint {config.checkpoint} has no reward channel; train one, or pass --channel FILE.")
    if config.channel is not None and model.score is not None:
        raise UserError(
            f"{config.checkpoint} is a reward model; a channel belongs on a language model. Leave --channel out."
        )
    if model.score is not None and model.score.outputs != OUTPUTS[task]:
        raise UserError(
            f"{config.checkpoint} has a score head of {model.score.outputs} outputs, and {task} are read by one of "
            f"{OUTPUTS[task]}. Is `eval.py {COMMAND[OTHER[task]]}` meant?"
        )
