"""The viewer without a model: `eval.py view FOLDER`, for whoever sits at this machine.

It listens on 127.0.0.1 and answers only to that name, so that no page of another host can reach it under its own
name. Who wants it elsewhere, or with an API key, has serve.py show it (`ui: FOLDER`).
"""

import dataclasses
from pathlib import Path

import tyro
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware

from sla_jax.errors import UserError
from sla_jax.evaluation.viewer.pages import mount

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
    app = Starlette(middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])])
    mount(app, folder, playground=False)
    return app


def view(config: ViewConfig) -> None:
    """Serve until interrupted; says where."""
    import uvicorn

    settings = uvicorn.Config(create_app(config.folder), host=HOST, port=config.port, log_level="warning", ws="none")
    try:
        listener = settings.bind_socket()
    except SystemExit:
        raise UserError(f"port {config.port} of {HOST} is in use; give --port another number (0: any free).") from None
    print(f"ready: http://{HOST}:{listener.getsockname()[1]}/ui/ shows {config.folder}", flush=True)
    uvicorn.Server(settings).run(sockets=[listener])
