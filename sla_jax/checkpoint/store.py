"""Our checkpoint: a self-sufficient directory, written whole or not at all, restorable into any sharding.

    params/NAME/         one orbax checkpoint per parameter (flat name, stacked over layers)
    config.json          the Hugging Face fields as they came; with a channel also tt_hidden_size, sr_head_layer, …
    tokenizer.json …     tokenizer, chat template and generation config as they came
    train.yaml           the resolved training config, if it was trained here
    sla_jax.json         format, type, parameter shapes, provenance; without it this is not a checkpoint
    sla_jax.sha256       the SHA-256 of all of them, which is compared when they are read (`staging`)

One orbax checkpoint per parameter, because orbax copies a whole tree of host arrays before it writes (measured: twice
the model), and this way writing, reading and converting hold one parameter at a time.
"""

import codecs
import contextlib
import dataclasses
import functools
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from sla_jax.checkpoint import staging
from sla_jax.checkpoint.sources import read_json
from sla_jax.checkpoint.staging import refuse, staged
from sla_jax.errors import UserError, nearest, shortened
from sla_jax.files import read_text
from sla_jax.model.config import CAUSAL, HEADS, SEQUENCE, TOKEN, ChannelConfig, ModelConfig, ScoreConfig, from_hf
from sla_jax.model.policy import Policy, param_paths, param_shapes, policy_from_params

FORMAT = 1
MARKER, PARAMS = "sla_jax.json", "params"
TRAIN_CONFIG = "train.yaml"
# what orbax raises of files that are not whole, beside a bare Exception
DAMAGED = (ValueError, TypeError, FileNotFoundError, KeyError)
DTYPES = ("float32", "bfloat16", "float16")
TEMPLATES = "additional_chat_templates/*.jinja"  # where transformers 5 puts all chat templates but the default one
# what is kept of a Hugging Face directory beside weights and config.json, as patterns
EXTRAS = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    TEMPLATES,
    "generation_config.json",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
)
Extras = Path | Mapping[str, str | bytes]
Shardings = Mapping[str, jax.sharding.Sharding] | Callable[[str, jax.ShapeDtypeStruct], jax.sharding.Sharding]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """A checkpoint without its arrays. `params` gives each stored parameter's shape and type, by flat name."""

    dir: Path
    config: ModelConfig
    raw_config: dict[str, Any]
    params: dict[str, jax.ShapeDtypeStruct]
    provenance: dict[str, Any]

    @property
    def dtype(self) -> str:
        """The policy's type (a channel may have another)."""
        return str(self.params["embed"].dtype)

    @property
    def channel(self) -> str:
        """Whose rewards it gives, for people: `smollm2-onpolicy/channel.safetensors (sha256 4947c2a167ff303b)`."""
        if self.config.channel is None:
            return "none"
        training, file, digests = (self.provenance.get(name) for name in ("training", "channel", "sha256"))
        if isinstance(training, Mapping):
            return f"trained with it ({training.get('steps')} steps)"
        if not isinstance(file, str) or not isinstance(digests, Mapping):
            return f"that of {self.provenance.get('source', self.dir.name)}"
        return f"{file} (sha256 {str(digests.get(Path(file).name))[:16]})"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A loaded checkpoint: parameters in the training layout (stacked), and what they are."""

    policy: Policy
    config: ModelConfig
    raw_config: dict[str, Any]
    dir: Path
    provenance: dict[str, Any]


def save(
    directory: Path,
    policy: Policy,
    raw_config: Mapping[str, Any],
    *,
    extras: Extras,
    provenance: Mapping[str, Any],
    train_config: str | None = None,
    channel: ChannelConfig | None = None,
    overwrite: bool = False,
) -> None:
    """Write a policy (stacked layout). `extras` is a directory to copy tokenizer files from, or the files by name.

    `channel` must be given when the policy has a channel that `raw_config` does not describe yet. Raises UserError when
    `directory` is taken."""
    raw = dict(raw_config) if channel is None else raw_with_channel(raw_config, channel)
    params = param_paths(policy).items()
    write(directory, raw, params, extras=extras, provenance=provenance, train_config=train_config, overwrite=overwrite)


def write(
    directory: Path,
    raw_config: Mapping[str, Any],
    params: Iterable[tuple[str, Any]],
    *,
    extras: Extras,
    provenance: Mapping[str, Any],
    train_config: str | None = None,
    overwrite: bool = False,
) -> None:
    """Like `save`, from a stream of (flat name, array): one array is held at a time."""
    directory, first = Path(directory), jax.process_index() == 0
    refuse(directory, overwrite=overwrite, ours=is_checkpoint)
    shapes = {name: want.shape for name, want in param_shapes(from_hf(raw_config)).items()}
    with staged(directory, first=first, wait=_meet) as part:
        dtypes = _write_params(part / PARAMS, params, shapes)
        if first:
            files = _files(extras) if train_config is None else {**_files(extras), TRAIN_CONFIG: train_config.encode()}
            write_extras(part, files)
            _write_json(part / "config.json", raw_config)
            described = {name: {"shape": shapes[name], "dtype": dtypes[name]} for name in shapes}
            marker = {"format": FORMAT, "parameters": described, "provenance": dict(provenance)}
            _write_json(part / MARKER, marker)


def _meet() -> None:
    """Wait for the other processes, if there are any."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("sla_jax.checkpoint")


def _write_params(
    folder: Path, params: Iterable[tuple[str, Any]], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, str]:
    """Write every parameter; returns their types. A name or shape that config.json does not have raises UserError."""
    import orbax.checkpoint as ocp

    dtypes = {}
    with _quiet(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as writer:
        for name, array in params:
            if name not in shapes or tuple(array.shape) != shapes[name]:
                raise UserError(
                    f"the parameter {name!r} with shape {tuple(array.shape)} does not fit its config.json, which says "
                    f"{shapes.get(name, 'there is none')}.{nearest(name, shapes)}"
                )
            writer.save(folder / name, ocp.args.PyTreeSave({name: array}))
            dtypes[name] = str(np.dtype(array.dtype))
            del array  # the next one is made while the loop's variable would still hold this one
    if missing := sorted(shapes.keys() - dtypes.keys()):
        raise UserError(f"the parameters {', '.join(missing)} are missing; config.json says that this model has them.")
    return dtypes


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """orbax warns that there is nothing to merge for each checkpoint that is not OCDBT; that is as intended."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def is_checkpoint(directory: Path) -> bool:
    """Whether `directory` holds a complete checkpoint of ours."""
    return (Path(directory) / MARKER).is_file()


def info(directory: Path) -> Info:
    """Read what a checkpoint is, without its arrays. UserError: it is not one, or a file beside them is damaged."""
    directory = Path(directory)
    if not directory.is_dir():
        raise UserError(
            f"there is no checkpoint at {directory}. Make one with `python convert.py import SRC {directory}`."
        )
    if not is_checkpoint(directory):
        raise UserError(
            f"{directory} is not a complete sla-jax checkpoint (no {MARKER}). If it is a Hugging Face directory, "
            f"import it: `python convert.py import {directory} DST`."
        )
    marker = read_json(directory / MARKER)
    if marker.get("format") != FORMAT:
        raise UserError(
            f"{directory} has format {marker.get('format')!r}; this version reads {FORMAT}. Import it again."
        )
    raw = read_json(directory / "config.json")
    config = from_hf(raw)
    try:
        params = {
            name: jax.ShapeDtypeStruct(tuple(found["shape"]), jnp.dtype(found["dtype"]))
            for name, found in marker["parameters"].items()
        }
        provenance = dict(marker["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        raise UserError(f"{directory / MARKER} is damaged: its parameters cannot be read. Import it again.") from None
    expected = {name: want.shape for name, want in param_shapes(config).items()}
    if {name: found.shape for name, found in params.items()} != expected:
        raise UserError(
            f"{directory}: config.json does not describe the stored parameters; it was edited after the import. Import "
            "the model again."
        )
    staging.check(directory, lambda name: not name.startswith(f"{PARAMS}/"))
    return Info(dir=directory, config=config, raw_config=raw, params=params, provenance=provenance)


def load(
    directory: Path, *, dtype: str | np.dtype[Any] | None = None, shardings: Shardings | None = None
) -> Checkpoint:
    """Restore a policy. `dtype` None keeps the stored type; `shardings` None puts all on the first device.

    Raises UserError for a file that is missing or damaged."""
    found = info(directory)
    single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    params = {}
    for name, stored in found.params.items():
        want = stored if dtype is None else jax.ShapeDtypeStruct(stored.shape, jnp.dtype(dtype))
        sharding = single if shardings is None else shardings(name, want) if callable(shardings) else shardings[name]
        params[name] = _restore(found.dir, name, jax.ShapeDtypeStruct(want.shape, want.dtype, sharding=sharding))
    if jax.process_index() == 0:  # after reading: what is in memory is not fetched twice
        staging.check(found.dir, lambda name: name.startswith(f"{PARAMS}/"))
    policy = policy_from_params(found.config, params)
    return Checkpoint(
        policy=policy, config=found.config, raw_config=found.raw_config, dir=found.dir, provenance=found.provenance
    )


def read_param(found: Info, name: str) -> np.ndarray:
    """One parameter as a host array, in the stored type. Raises UserError for a file of it that is damaged."""
    array = np.asarray(_restore(found.dir, name, None))
    staging.check(found.dir, lambda path: path.startswith(f"{PARAMS}/{name}/"))
    return array


def _restore(directory: Path, name: str, want: jax.ShapeDtypeStruct | None) -> Any:
    import orbax.checkpoint as ocp

    args = ocp.RestoreArgs(restore_type=np.ndarray)
    if want is not None:
        args = ocp.ArrayRestoreArgs(sharding=want.sharding, dtype=want.dtype, global_shape=want.shape)
    folder = directory.absolute() / PARAMS / name
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_ocdbt=False)) as reader:
            item = {name: 0 if want is None else want}
            return reader.restore(folder, args=ocp.args.PyTreeRestore(item=item, restore_args={name: args}))[name]
    except Exception as error:
        if type(error) is not Exception and not isinstance(error, DAMAGED):
            raise
        reason = shortened(str(error).splitlines()[0], 400) if str(error) else type(error).__name__
        raise UserError(
            f"{directory} is damaged: the parameter {name!r} cannot be restored ({reason}). Import it again."
        ) from None


def raw_with_channel(raw: Mapping[str, Any], channel: ChannelConfig | None) -> dict[str, Any]:
    """config.json with (or without) a channel's fields. Llama takes the public release's architecture name."""
    names = {"LlamaForCausalLM": "LlamaForCausalLMRewardTransformer"}
    fields = {"tt_hidden_size", "sr_head_layer", "sr_out_dim", "sr_hidden_size_rate"}
    out = {name: value for name, value in raw.items() if name not in fields}
    if channel is None:
        names = {new: old for old, new in names.items()}
    else:
        out["tt_hidden_size"] = channel.width
        out["sr_head_layer"] = channel.head_layers
        out["sr_out_dim"] = channel.head_outputs
        rate = channel.head_hidden_rate
        out["sr_hidden_size_rate"] = int(rate) if rate == int(rate) else rate
    out["architectures"] = [names.get(name, name) for name in raw.get("architectures") or []]
    return out


def raw_with_score(
    raw: Mapping[str, Any], score: ScoreConfig, kind: Literal["sequence", "token"] | None = None
) -> dict[str, Any]:
    """config.json with a score head in place of the LM head and of a channel, as transformers writes it.

    Without a `kind` a head with a bias is token classification. Labels that are there and fit stay, and so does
    pad_token_id, without which transformers' sequence classification reads one row at a time. UserError: a
    sequence-classification head with a bias, which transformers does not have."""
    kind = kind or ("token" if score.bias else "sequence")
    if kind == "sequence" and score.bias:
        raise UserError("a sequence-classification head has no bias; a head with one is kind 'token'.")
    out = raw_with_channel(raw, None)
    family = [functools.reduce(str.removesuffix, (CAUSAL, *HEADS), name) for name in out["architectures"]]
    out["architectures"] = [name + (SEQUENCE if kind == "sequence" else TOKEN) for name in family]
    out.pop("num_labels", None)  # transformers counts id2label
    out.pop("token_classification_bias", None)
    if kind == "token" and not score.bias:
        out["token_classification_bias"] = False
    labels = out.get("id2label") or {}
    if len(labels) != score.outputs:
        labels = {str(i): f"LABEL_{i}" for i in range(score.outputs)}
    return out | {"id2label": labels, "label2id": {name: int(i) for i, name in labels.items()}}


def raw_with_dtype(raw: Mapping[str, Any], dtype: str) -> dict[str, Any]:
    """config.json that says the type its weights were converted to, where it says one."""
    return {name: dtype if name in ("dtype", "torch_dtype") else value for name, value in raw.items()}


def _files(extras: Extras) -> dict[str, bytes]:
    if isinstance(extras, Mapping):
        return {name: text.encode() if isinstance(text, str) else text for name, text in extras.items()}
    return read_extras(extras)


def read_extras(directory: Path) -> dict[str, bytes]:
    """The files of EXTRAS that a directory has, by their path in it, without the byte order marks that readers reject.

    Raises UserError for one that is not UTF-8 or not JSON: who loads the checkpoint could not read it."""
    found = [path for pattern in EXTRAS for path in sorted(directory.glob(pattern)) if path.is_file()]
    return {path.relative_to(directory).as_posix(): _extra(path) for path in found}


def _extra(path: Path) -> bytes:
    if path.suffix == ".json":
        read_json(path)
    elif path.suffix != ".model":  # SentencePiece's is no text
        read_text(path)
    return path.read_bytes().removeprefix(codecs.BOM_UTF8)


def write_extras(directory: Path, files: Mapping[str, bytes]) -> None:
    """Write what `read_extras` gave."""
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_bytes(content)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
