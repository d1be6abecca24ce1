"""The Ray Serve deployment: replicas that each hold an engine and answer HTTP with the application."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import structlog
from fastapi import FastAPI
from ray import serve
from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica as ray_replica
from ray.util import get_node_ip_address

from serving import logs, tracing
from serving.app import create_app
from serving.batcher import Batcher
from serving.engine import Engine, EngineSettings
from serving.ledger import open_ledger
from serving.metrics import Metrics
from serving.services import Services
from serving.settings import Settings

_log = structlog.get_logger()

NAME = "sparsecbm"
_WARM_UP = "Great pasta, but the waiter was rude and the room was loud."


class Replica:
    """One process that holds the model.

    Args:
        settings: the server's settings.
        metrics_folder: where this run's replicas keep their counts.
    """

    def __init__(self, settings: Settings, metrics_folder: Path) -> None:
        logs.configure(settings.log_level)
        _bind_to_node()
        self._engine = Engine.load(
            settings.bundle,
            EngineSettings(threads=settings.threads_per_replica, trust_torchscript=settings.trust_torchscript),
        )
        self._metrics = Metrics(metrics_folder, self._engine.manifest)
        self._ledger = open_ledger(settings)
        self._batcher = Batcher(self._engine, self._metrics, settings.max_queue, settings.max_batch, settings.max_wait)
        self._settings = settings
        # The first run of a graph plans its memory; better here than in a user's request.
        self._engine.predict([_WARM_UP])
        self._engine.observe = self._metrics.batch

    def __serve_build_asgi_app__(self) -> FastAPI:
        services = Services(self._settings, self._engine, self._batcher, self._ledger, self._metrics)
        endpoint = self._settings.otlp_endpoint
        return create_app(services, returns_id=False, tracing=tracing.to_endpoint(endpoint) if endpoint else None)

    def check_health(self) -> None:
        """Ray Serve replaces a replica whose batcher has ended.

        Raises:
            RuntimeError: it has.
        """
        if not self._batcher.alive:
            raise RuntimeError("the batcher has ended")

    def __del__(self) -> None:
        for part in ("_metrics", "_ledger"):
            if hasattr(self, part):
                getattr(self, part).close()


def _bind_to_node() -> None:
    """Makes this process take calls of other deployments on the node's own address.

    Ray Serve opens a gRPC port for them on every interface, once the replica is made, and no setting changes that.
    The node's address is the one that Ray gives to callers: a loopback one, unless in a cluster.
    """

    def add_port(server: Any, _: str) -> int:
        host: str = get_node_ip_address()  # type: ignore[no-untyped-call]
        address = f"[{host}]:0" if ":" in host else f"{host}:0"
        port: int = add_port_to_grpc_server(server, address)  # type: ignore[no-untyped-call]
        return port

    vars(ray_replica)["add_port_to_grpc_server"] = add_port


def application(settings: Settings, metrics_folder: Path) -> Any:
    """The Ray Serve application of these settings, to be run or put into a cluster."""
    replica = serve.deployment(
        name=NAME,
        num_replicas=settings.replicas,
        # The batcher's queue is the bound; Serve must neither queue by itself nor refuse in its own words.
        max_ongoing_requests=1_000_000,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.2,
        graceful_shutdown_timeout_s=20,
        ray_actor_options={"num_cpus": 0},
        logging_config={"enable_access_log": False, "log_level": "WARNING"},
    )(serve.ingress()(Replica))
    return replica.bind(settings, metrics_folder)
