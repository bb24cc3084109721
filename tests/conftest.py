"""What every test runs under: stricter than life, on fake devices, without a network.

Four CPU devices stand for a pod; dtypes and ranks promote only where the code says so; matmuls are full float32; every
call into `sla_jax` is checked against its annotations (jaxtyping shapes too) by beartype. Programs compiled once stay
in `.cache/jax`. All of it is set in `pytest_configure`, which runs before any test module, and so jax, is imported.
"""

import gc
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.flags import POD

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": POD,
    "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "MPLBACKEND": "Agg",
    "COLUMNS": "120",
}
MAPS = 40_000
# modules that take minutes: they begin, so that none of them runs on at the end with the other processes idle
LONGEST = (
    "training/test_mesh.py",
    "test_docs.py",
    "serving/test_whole_answers.py",
    "training/test_program.py",
    "training/test_hosts.py",
    "test_benchmarks.py",
    "serving/test_whole.py",
)
STRICT = {
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
    "jax_default_matmul_precision": "highest",
}


def pytest_configure(config: pytest.Config) -> None:
    os.environ.update(ENVIRONMENT, HF_HOME=tempfile.mkdtemp(prefix="sla-jax-tests-"))
    import jax
    from hypothesis import settings
    from jaxtyping import install_import_hook

    from tests.ledger import Ledger

    for name, value in STRICT.items():
        jax.config.update(name, value)
    install_import_hook("sla_jax", "beartype.beartype")
    # no deadline: never a timed test; in CI the same examples every time, at a desk new ones
    settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
    settings.load_profile("house")
    config.pluginmanager.register(Ledger(config, ROOT / ".cache" / "ledger.csv"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"tests/{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.location[0], len(places)))


def pytest_unconfigure(config: pytest.Config) -> None:
    shutil.rmtree(os.environ["HF_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., Any]:
    """`tiny_config(**changes)`: a Llama of 2 layers, D=32, F=64, N=4, K=2, H=8, V=97."""
    from tests import tiny

    return tiny.tiny_config


@pytest.fixture(scope="session")
def tiny_tokenizer() -> Any:
    """Byte-level BPE with ChatML; <|im_start|> is 1 and <|im_end|> is 2. Do not change it: the session shares it."""
    from tests import tiny

    return tiny.byte_level_tokenizer()


@pytest.fixture(scope="session")
def tiny_tokenizer_dir(tiny_tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same tokenizer as files: tokenizer.json, tokenizer_config.json, chat_template.jinja. Read only."""
    directory = tmp_path_factory.mktemp("tokenizer")
    tiny_tokenizer.save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a random tiny Llama with a reward channel (`tests.programs.tiny_checkpoint`). Read only."""
    from tests.programs import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("session") / "tiny")


@pytest.fixture(scope="session")
def bare_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without a reward channel. Read only."""
    from tests.programs import tiny_checkpoint

    return tiny_checkpoint(tmp_path_factory.mktemp("session") / "bare", channel=False)


@pytest.fixture(scope="session")
def model(checkpoint: Path) -> Any:
    """The `LanguageModel` of `checkpoint`: what one test has compiled, the others of its process use."""
    import sla_jax

    return sla_jax.load(checkpoint)


@pytest.fixture(scope="session")
def bare_model(bare_checkpoint: Path) -> Any:
    """The `LanguageModel` of `bare_checkpoint`."""
    import sla_jax

    return sla_jax.load(bare_checkpoint)


@pytest.fixture(autouse=True, scope="module")
def limit_memory_maps() -> Iterator[None]:
    """Let compiled programs go when they take many memory maps, of which a process may have 65,530."""
    yield
    maps = Path("/proc/self/maps")
    if not maps.exists() or maps.read_bytes().count(b"\n") > MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@pytest.fixture
def compiled() -> Iterator[list[str]]:
    """Everything that JAX lowers while the test runs, whether or not its cache on disk then has it."""
    import jax.monitoring

    seen: list[str] = []

    def listen(event: str, duration_secs: float, **details: str | int) -> None:
        if event == "/jax/core/compile/jaxpr_to_mlir_module_duration":
            seen.append(str(details))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield seen
    jax.monitoring.unregister_event_duration_listener(listen)
