"""The viewer without a model: `eval.py view FOLDER`, for whoever sits at this machine.

It listens on 127.0.0.1 and answers only to names that no stranger can own (`sla_jax.web`), so that no page of another
host can reach it under its own name. Who wants it elsewhere, or with an API key, has serve.py show it (`ui: FOLDER`).
"""

import dataclasses
from pathlib import Path

import tyro
from starlette.applications import Starlette
from starlette.middleware import Middleware

from sla_jax.errors import UserError
from sla_jax.evaluation.viewer.pages import mount
from sla_jax.web import KnownHosts, SafeHeaders, listen

HOST = "127.0.0.1"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViewConfig:
    """What to look at."""

    folder: tyro.conf.Positional[Path] = Path("runs")
    """Traces (generate.py --trace) and entropies (eval.py entropy) below it can be opened; nothing else can."""
    port: int = 8001
    """0 takes a free one."""

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise UserError(
                f"the viewer's folder {self.folder} is no directory; give one that has traces or entropies."
            )
        if not 0 <= self.port <= 65535:
            raise UserError(f"port={self.port} is not a port; it has to be 0 (any free one) to 65535.")


def create_app(folder: Path) -> Starlette:
    """The viewer and nothing else."""
    app = Starlette(middleware=[Middleware(SafeHeaders), Middleware(KnownHosts)])
    mount(app, folder, playground=False)
    return app


def view(config: ViewConfig) -> None:
    """Serve until interrupted; says where."""
    import uvicorn

    with listen(HOST, config.port) as listener:
        print(f"ready: http://{HOST}:{listener.getsockname()[1]}/ui/ shows {config.folder}", flush=True)
        settings = uvicorn.Config(create_app(config.folder), log_level="warning", ws="none")
        uvicorn.Server(settings).run(sockets=[listener])
