"""Serve a checkpoint: `python serve.py configs/serve/NAME.yaml [--field value …]`.

python serve.py configs/serve/smollm2.yaml                                  the checkpoint of `make demo`, on port 8000
python serve.py configs/serve/smollm2.yaml --host 0.0.0.0 --port 80         on every interface
python serve.py configs/serve/smollm2.yaml --dry-run --target v5e:2x4       what it takes on a machine that is not here

OpenAI's routes, JetStream's and the original SLA's (/docs lists them), and the viewer (/ui). SIGTERM finishes what runs
and exits 0.
"""

import functools
from pathlib import Path

from sla_jax.config import parse
from sla_jax.errors import UserError, front_door

EXAMPLE = Path(__file__).parent / "configs" / "serve" / "smollm2.yaml"


def main(argv: list[str]) -> None:
    """Take the port, open the model, serve until told to stop."""
    if not (argv and argv[0].endswith((".yaml", ".yml"))):
        if not {"-h", "--help"} & set(argv):
            raise UserError("serve.py needs a config: python serve.py configs/serve/smollm2.yaml")
        argv = [str(EXAMPLE), *argv]  # profiles have no default to show, so help shows those of an example

    from sla_jax.serving.settings import ServeConfig

    config = parse(ServeConfig, argv, prog="serve.py", description="Serve many searches at once over HTTP.")
    if config.dry_run:
        from sla_jax.serving.dry_run import report

        report(config)
        return

    from sla_jax.evaluation.viewer.pages import PUBLIC, mount
    from sla_jax.loading import use_compilation_cache
    from sla_jax.serving import process
    from sla_jax.serving.http import Pages
    from sla_jax.serving.worker import open_model

    with process.listen(config.host, config.port) as listener:
        use_compilation_cache()
        pages = Pages(functools.partial(mount, folder=config.ui), PUBLIC)
        process.serve(config, listener, open_model(config), pages)


if __name__ == "__main__":
    front_door(main)
