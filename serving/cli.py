"""The commands ``sparsecbm serve``, ``keys`` and ``correct``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer

from serving import keys
from serving.correct import correct
from serving.keys import Role
from serving.settings import ENV_PREFIX, Settings, read_settings

_JSON = typer.Option("--json", help="Print JSON.")

app = typer.Typer(no_args_is_help=True)
app.command()(correct)
_keys = typer.Typer(no_args_is_help=True, help="Make, list and revoke the API keys of a server.")
app.add_typer(_keys, name="keys")


def _settings(*names: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command settings as its flags, so that the model alone says what there is.

    Args:
        names: of the settings; without any, all.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind != parameter.VAR_KEYWORD]
        flags = [_parameter(name) for name in names or Settings.model_fields]
        vars(command)["__signature__"] = signature.replace(parameters=[*own, *flags])
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *flags]}
        return command

    return decorate


def _parameter(name: str) -> inspect.Parameter:
    field = Settings.model_fields[name]
    kind = _kind(field.annotation)
    flag = name.replace("_", "-")
    default = str(field.default)
    if kind is bool:
        default = flag if field.default else f"no-{flag}"
    told: dict[str, Any] = {
        "envvar": f"{ENV_PREFIX}{name.upper()}",
        "help": field.description,
        "show_default": False if field.default in (None, "", []) else default,
    }
    if name == "bundle":
        option = typer.Argument(**told)
    elif kind is bool:
        option = typer.Option(f"--{flag}/--no-{flag}", **told)
    else:
        option = typer.Option(f"--{flag.removesuffix('s') if kind == list[str] else flag}", **told)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )


def _kind(annotation: Any) -> Any:
    """The type that Typer is to read a setting as; pydantic then reads it more closely, and says more."""
    if get_origin(annotation) is Literal:
        return str
    if get_origin(annotation) in (Union, UnionType):
        return next(part for part in get_args(annotation) if part is not NoneType)
    return annotation


@app.command()
@_settings()
def serve(**given: object) -> None:
    """Serve a bundle over HTTP until Ctrl-C: predictions, explanations, corrections, and the web console."""
    from serving.server import serve as run
    from sparsecbm.bundle import Manifest

    settings = read_settings(**given)

    def announce(manifest: Manifest, seconds: float) -> None:
        typer.echo(
            f"ready: {manifest.name} {manifest.version} on http://{settings.url_host}:{settings.port} "
            f"({settings.replicas} × {settings.threads_per_replica} threads, started in {seconds:.1f} s)"
        )

    typer.echo(f"starting {settings.bundle} …", err=True)
    run(settings, announce)


@_keys.command()
@_settings("state_dir", "keys_file")
def create(
    name: Annotated[str, typer.Option(help="Whose key it is, as the ledger will say; several may have one name.")],
    role: Annotated[Role, typer.Option(help="What it may do; each role may do what the ones before it may.")],
    as_json: Annotated[bool, _JSON] = False,
    **given: object,
) -> None:
    """Make a key and show it, this once."""
    path = read_settings(**given).keys_path
    secret, key = keys.create(path, name, role)
    if as_json:
        typer.echo(json.dumps({"key": secret, **_shown(key)}))
    else:
        typer.echo(
            f"key {key.id} of {key.name}, who may {key.role}; it is kept as a hash, so this is its only copy:", err=True
        )
        typer.echo(secret)


@_keys.command("list")
@_settings("state_dir", "keys_file")
def list_keys(as_json: Annotated[bool, _JSON] = False, **given: object) -> None:
    """List the keys, oldest first, without what they are."""
    found = [_shown(key) for key in keys.read(read_settings(**given).keys_path)]
    if as_json:
        typer.echo(json.dumps(found))
        return
    for key in found:
        typer.echo(f"{key['id']}  {key['created_at']}  {key['role']:<7}  {key['name']}")


@_keys.command()
@_settings("state_dir", "keys_file")
def revoke(
    id: Annotated[str, typer.Argument(help="The key's id, as 'sparsecbm keys list' shows it.")], **given: object
) -> None:
    """Take a key away; running servers refuse it within seconds."""
    key = keys.revoke(read_settings(**given).keys_path, id)
    typer.echo(f"revoked: key {key.id} of {key.name}")


def _shown(key: keys.Key) -> dict[str, str]:
    return {
        "id": key.id,
        "name": key.name,
        "role": key.role,
        "created_at": key.created_at.isoformat(timespec="seconds"),
    }
