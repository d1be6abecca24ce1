"""Every setting of the server: a flag of ``sparsecbm serve``, an environment variable, or its default."""

from __future__ import annotations

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sparsecbm.errors import SetupError

ENV_PREFIX = "SPARSECBM_"
LogLevel = Literal["debug", "info", "warning", "error"]
_ORIGIN = re.compile(r"https?://[^/\s*?#@]+")


class Settings(BaseSettings):
    """How to serve a bundle. The environment's names are the fields' with ``SPARSECBM_`` before them."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    bundle: Path = Field(default=Path("models/restaurant-reviews"), description="Folder of the bundle to serve.")
    host: str = Field(
        default="127.0.0.1",
        description="IP address to listen on, such as 0.0.0.0 for all; on other than loopback ones keys are needed.",
    )
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on.")
    replicas: int = Field(default=1, ge=1, le=64, description="Processes that each hold the model.")
    threads: int = Field(
        default=0, ge=0, le=256, description="Threads per replica; 0 shares the cores out among the replicas."
    )
    state_dir: Path = Field(
        default=Path("var"), description="Folder of what outlives a run; the ledger, unless it is elsewhere."
    )
    keys_file: Path | None = Field(
        default=None, description="File of the API keys' hashes; by default keys.json in the state folder."
    )
    require_keys: bool = Field(
        default=False, description="Whether keys are needed on a loopback address too, as behind a proxy."
    )
    open_metrics: bool = Field(
        default=False, description="Whether /metrics needs no key; otherwise one of the role 'operate'."
    )
    ledger: str = Field(default="", description="Database URL of the ledger; by default SQLite in the state folder.")
    ledger_pool: int = Field(
        default=4, ge=1, le=64, description="Most connections, and threads, of a replica to the ledger's database."
    )
    ledger_timeout: float = Field(
        default=5.0,
        gt=0,
        le=600,
        description="Seconds that the ledger may take, waiting for other writers included; then it counts as away.",
    )
    ledger_connect_timeout: float = Field(
        default=2.0, gt=0, le=600, description="Seconds that connecting to the ledger's database may take."
    )
    store_texts: bool = Field(
        default=True, description="Whether the ledger keeps corrected texts, or only their SHA-256."
    )
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, description="Largest request body that is read, in bytes.")
    max_inputs: int = Field(default=256, ge=1, description="Most inputs in one request.")
    max_text_chars: int = Field(default=20_000, ge=1, description="Longest text, in characters.")
    max_json_depth: int = Field(default=16, ge=4, description="Deepest nesting of a request body's JSON.")
    request_timeout: float = Field(
        default=60,
        gt=0,
        description="Seconds that a request may take, unless its X-Request-Timeout says how many.",
    )
    max_request_timeout: float = Field(
        default=600, gt=0, description="Most seconds that a request's X-Request-Timeout may ask for."
    )
    max_queue: int = Field(
        default=1024, ge=1, description="Most texts that wait in a replica; more are answered with 429."
    )
    max_wait: float = Field(
        default=5, gt=0, description="Most seconds that a text is to wait in a replica; more are answered with 429."
    )
    max_batch: int = Field(default=64, ge=1, description="Most texts that a replica runs together.")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default=[],
        description=(
            "Another name than localhost under which clients may address the server; may be repeated. "
            "On other than loopback addresses any name will do unless some are given."
        ),
    )
    cors_origins: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Origin, such as https://reviews.example, whose pages may call the server; may be repeated.",
    )
    otlp_endpoint: str = Field(
        default="",
        pattern=r"^(https?://\S+)?$",
        description="Where traces are sent by OTLP over HTTP, such as http://127.0.0.1:4318; none are by default.",
    )
    trust_torchscript: bool = Field(
        default=False,
        description="Whether to load a TorchScript bundle, whose graphs are programs; only one whose maker you trust.",
    )
    log_level: LogLevel = Field(
        default="info", description="Least severe log line that is written; 'debug' has one per request."
    )
    log_texts: bool = Field(default=False, description="Whether request log lines hold the texts.")

    @field_validator("host")
    @classmethod
    def _address(cls, host: str) -> str:
        try:
            return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))
        except ValueError:
            raise ValueError(
                f"{host!r} is no IP address: give 127.0.0.1 for this machine alone, or 0.0.0.0 for all interfaces"
            ) from None

    @field_validator("allowed_hosts", "cors_origins", mode="before")
    @classmethod
    def _list(cls, given: object) -> object:
        parts = [given] if isinstance(given, str) else given
        if not isinstance(parts, list):
            return given
        return [item.lower() for part in parts for item in str(part).replace(",", " ").split()]

    @field_validator("cors_origins")
    @classmethod
    def _origins(cls, origins: list[str]) -> list[str]:
        for origin in origins:
            if not _ORIGIN.fullmatch(origin):
                raise ValueError(f"{origin!r} is no origin: give scheme and host, such as https://reviews.example")
        return origins

    @field_validator("bundle", "state_dir", "keys_file")
    @classmethod
    def _absolute(cls, path: Path | None) -> Path | None:
        return path.expanduser().absolute() if path is not None else None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_inputs > self.max_queue:
            raise ValueError(
                f"max_inputs ({self.max_inputs}) must not be above max_queue ({self.max_queue}), "
                "or the largest requests could never be taken"
            )
        if self.request_timeout > self.max_request_timeout:
            raise ValueError(
                f"request_timeout ({self.request_timeout:g}) must not be above max_request_timeout "
                f"({self.max_request_timeout:g})"
            )
        return self

    @property
    def ledger_url(self) -> str:
        """The ledger's database URL, an absolute one."""
        return self.ledger or f"sqlite:///{self.state_dir / 'ledger.db'}"

    @property
    def keys_path(self) -> Path:
        """The file of keys."""
        return self.keys_file or self.state_dir / "keys.json"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def needs_keys(self) -> bool:
        """Whether a request needs a key."""
        return self.require_keys or not self.loopback

    @property
    def known_hosts(self) -> frozenset[str] | None:
        """Names in a request's Host header that are answered, in lower case; None where all are."""
        if not self.loopback and not self.allowed_hosts:
            return None
        return frozenset(["localhost", "127.0.0.1", "[::1]", self.url_host, *self.allowed_hosts])

    @property
    def url_host(self) -> str:
        """The address as URLs have it."""
        return f"[{self.host}]" if ":" in self.host else self.host

    @property
    def threads_per_replica(self) -> int:
        """Threads that one replica computes with, at least 1."""
        return self.threads or max(1, len(os.sched_getaffinity(0)) // self.replicas)


def read_settings(**given: object) -> Settings:
    """Settings from what is given, then the environment, then the defaults; None counts as not given.

    Raises:
        SetupError: a value is of the wrong kind or out of bounds; names the setting and its environment twin.
    """
    try:
        return Settings(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        where = f"--{name.replace('_', '-')} ({ENV_PREFIX}{name.upper()})" if name else "The settings"
        raise SetupError(f"{where}: {first['msg']}.") from error
