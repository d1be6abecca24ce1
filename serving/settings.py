"""Every setting of the server: a flag of ``sparsecbm serve``, an environment variable, or its default."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from sparsecbm.errors import SetupError

ENV_PREFIX = "SPARSECBM_"
LogLevel = Literal["debug", "info", "warning", "error"]


class Settings(BaseSettings):
    """How to serve a bundle. The environment's names are the fields' with ``SPARSECBM_`` before them."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    bundle: Path = Field(default=Path("models/restaurant-reviews"), description="Folder of the bundle to serve.")
    host: str = Field(default="127.0.0.1", description="Address to listen on; a loopback address.")
    port: int = Field(default=8000, ge=1, le=65535, description="Port to listen on.")
    replicas: int = Field(default=1, ge=1, le=64, description="Processes that each hold the model.")
    threads: int = Field(
        default=0, ge=0, le=256, description="Threads per replica; 0 shares the cores out among the replicas."
    )
    state_dir: Path = Field(
        default=Path("var"), description="Folder of what outlives a run; the ledger, unless it is elsewhere."
    )
    ledger: str = Field(default="", description="Database URL of the ledger; by default SQLite in the state folder.")
    max_body_bytes: int = Field(default=4 * 2**20, ge=1024, description="Largest request body that is read, in bytes.")
    max_inputs: int = Field(default=256, ge=1, description="Most inputs in one request.")
    max_text_chars: int = Field(default=20_000, ge=1, description="Longest text, in characters.")
    max_queue: int = Field(
        default=1024, ge=1, description="Most texts that wait in a replica; more are answered with 429."
    )
    max_batch: int = Field(default=64, ge=1, description="Most texts that a replica runs together.")
    allowed_hosts: Annotated[list[str], NoDecode] = Field(
        default=[],
        description="Another name than localhost under which clients may address the server; may be repeated.",
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
        return "127.0.0.1" if host == "localhost" else host

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _names(cls, hosts: object) -> object:
        return hosts.replace(",", " ").split() if isinstance(hosts, str) else hosts

    @field_validator("bundle", "state_dir")
    @classmethod
    def _absolute(cls, path: Path) -> Path:
        return path.expanduser().absolute()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.max_inputs > self.max_queue:
            raise ValueError(
                f"max_inputs ({self.max_inputs}) must not be above max_queue ({self.max_queue}), "
                "or the largest requests could never be taken"
            )
        return self

    @property
    def ledger_url(self) -> str:
        """The ledger's database URL, an absolute one."""
        return self.ledger or f"sqlite:///{self.state_dir / 'ledger.db'}"

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

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
