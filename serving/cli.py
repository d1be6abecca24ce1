"""The command ``sparsecbm serve``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serving.settings import ENV_PREFIX, Settings

app = typer.Typer(no_args_is_help=True)


def _default(name: str) -> str:
    default = Settings.model_fields[name].default
    return str(default) if default or default == 0 else ""


def _option(name: str, *flags: str) -> Any:
    return typer.Option(
        *flags,
        envvar=f"{ENV_PREFIX}{name.upper()}",
        help=Settings.model_fields[name].description,
        show_default=_default(name),
    )


@app.command()
def serve(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            envvar=f"{ENV_PREFIX}BUNDLE",
            help=Settings.model_fields["bundle"].description,
            show_default=_default("bundle"),
        ),
    ] = None,
    host: Annotated[str | None, _option("host")] = None,
    port: Annotated[int | None, _option("port")] = None,
    replicas: Annotated[int | None, _option("replicas")] = None,
    threads: Annotated[int | None, _option("threads")] = None,
    state_dir: Annotated[Path | None, _option("state_dir")] = None,
    ledger: Annotated[str | None, _option("ledger")] = None,
    max_body_bytes: Annotated[int | None, _option("max_body_bytes")] = None,
    max_inputs: Annotated[int | None, _option("max_inputs")] = None,
    max_text_chars: Annotated[int | None, _option("max_text_chars")] = None,
    max_queue: Annotated[int | None, _option("max_queue")] = None,
    max_batch: Annotated[int | None, _option("max_batch")] = None,
    allowed_hosts: Annotated[list[str] | None, _option("allowed_hosts", "--allowed-host")] = None,
    trust_torchscript: Annotated[
        bool | None, _option("trust_torchscript", "--trust-torchscript/--no-trust-torchscript")
    ] = None,
    log_level: Annotated[str | None, _option("log_level")] = None,
    log_texts: Annotated[bool | None, _option("log_texts", "--log-texts/--no-log-texts")] = None,
) -> None:
    """Serve a bundle over HTTP until Ctrl-C: predictions, explanations, corrections, and the web console."""
    given = locals()
    from serving.server import serve as run
    from serving.settings import read_settings
    from sparsecbm.bundle import Manifest

    settings = read_settings(**given)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host

    def announce(manifest: Manifest, seconds: float) -> None:
        typer.echo(
            f"ready: {manifest.name} {manifest.version} on http://{host}:{settings.port} "
            f"({settings.replicas} × {settings.threads_per_replica} threads, started in {seconds:.1f} s)"
        )

    typer.echo(f"starting {settings.bundle} …", err=True)
    run(settings, announce)
