"""Real servers: `sparsecbm serve` in processes of its own, with a real Ray Serve and, where Ray brings it, HAProxy."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

PROGRAM = Path(sys.executable).parent / "sparsecbm"
START_S = 150  # on a busy machine; an idle one needs ten
STOP_S = 60

# Settings of ours, and what ONNX Runtime takes for a sign that it is being tested.
_MEANT_FOR_US = re.compile("SPARSECBM_|ORT_|CI$|XDG_")

# Python reads this at its start, so it is in every process of a server: Ray's, and the replicas.
_IMPORTS_RECORDER = """
import os, sys

seen = set()

def record(event, arguments):
    if event == "import":
        name = arguments[0].partition(".")[0]
        if name not in seen:
            seen.add(name)
            with open(os.path.join({folder!r}, str(os.getpid())), "a") as file:
                file.write(name + "\\n")

sys.addaudithook(record)
"""


def wait_for(what: str, holds: Callable[[], object], seconds: float) -> None:
    """Returns as soon as `holds` does; fails in words otherwise."""
    give_up = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > give_up:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(0.05)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def is_loopback(address: str) -> bool:
    read = ipaddress.ip_address(address)
    mapped = read.ipv4_mapped if isinstance(read, ipaddress.IPv6Address) else None
    return (mapped or read).is_loopback


def session(sid: int) -> list[psutil.Process]:
    """The living processes of a session, which they stay in when their parents die."""
    found = []
    for process in psutil.process_iter():
        with suppress(ProcessLookupError, psutil.Error):
            if os.getsid(process.pid) == sid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def kill_all(sid: int) -> None:
    """`kill -9` of every process of a session, until none is left."""

    def none_left() -> bool:
        processes = session(sid)
        for process in processes:
            with suppress(psutil.Error):
                process.kill()
        return not processes

    wait_for("every process is killed", none_left, STOP_S)


@dataclass
class Server:
    """One start of `sparsecbm serve`."""

    process: subprocess.Popen[bytes]
    port: int
    state: Path
    scratch: Path  # its TMPDIR, used by nobody else
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def err(self) -> Path:
        return self.folder / "err"

    @property
    def home(self) -> Path:
        """Its HOME, used by nobody else."""
        return self.folder / "home"

    @property
    def imported(self) -> Path:
        """A file by process id, with the top-level modules that the process imported."""
        return self.folder / "imported"

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def printed(self) -> str:
        return self.out.read_text() + self.err.read_text()

    def processes(self) -> list[psutil.Process]:
        return session(self.process.pid)

    def replicas(self) -> set[int]:
        """The process ids of the replicas."""
        found = set()
        for process in self.processes():
            with suppress(psutil.Error):
                if " ".join(process.cmdline()).startswith("ray::ServeReplica"):
                    found.add(process.pid)
        return found

    def ports(self) -> list[tuple[str, str, int]]:
        """What its processes listen on and receive datagrams at: process name, address, port."""
        ports = []
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):  # HAProxy starts anew for each change of the replicas
                ports += [
                    (process.name(), str(found.laddr[0]), int(found.laddr[1]))
                    for found in process.net_connections("inet")
                    if found.status == psutil.CONN_LISTEN or (found.type == socket.SOCK_DGRAM and not found.raddr)
                ]
        return ports

    def ready(self) -> bool:
        if self.process.poll() is not None:
            pytest.fail(f"the server ended with {self.process.returncode}: {self.printed}")
        try:
            answered = httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False
        return answered and "ready: " in self.out.read_text()

    def get(self, path: str, **query: str | int) -> Any:
        answer = httpx.get(self.url + path, params=query, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60)

    def predict(self, *texts: str) -> Any:
        answer = self.post("/v1/predict", {"inputs": list(texts)})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def intervene(self, text: str, concept: str, value: str, level: str = "concept", note: str | None = None) -> Any:
        item = {"text": text, "corrections": {concept: value}, "level": level, "note": note}
        answer = self.post("/v1/intervene", {"inputs": [item]})
        assert answer.status_code == 200, answer.text
        return answer.json()["interventions"][0]

    def metrics(self) -> dict[str, float]:
        """What `/metrics` shows, by sample name and labels: ``name{label="value"}``."""
        shown = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=60).text):
            for sample in family.samples:
                labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
                shown[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
        return shown

    def stop(self, by: signal.Signals = signal.SIGTERM) -> int:
        self.process.send_signal(by)
        return self.process.wait(STOP_S)

    def kill(self) -> None:
        """`kill -9` of all its processes at once."""
        kill_all(self.process.pid)
        self.process.wait(STOP_S)


@dataclass
class Launcher:
    """Starts servers on free ports. All of them have one state folder, and TMPDIR is theirs alone."""

    folder: Path
    scratch: Path
    launched: list[Server] = field(default_factory=list)

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def launch(self, bundle: Path, *flags: str, **environment: str) -> Server:
        """Starts a server without waiting for it; flags given here come last, so that they win."""
        folder = Path(tempfile.mkdtemp(dir=self.folder))
        for name in ("home", "imported", "python"):
            (folder / name).mkdir()
        recorder = _IMPORTS_RECORDER.format(folder=str(folder / "imported"))
        (folder / "python/sitecustomize.py").write_text(recorder)
        inherited = {name: value for name, value in os.environ.items() if not _MEANT_FOR_US.match(name)}
        path = os.pathsep.join(filter(None, [str(folder / "python"), inherited.get("PYTHONPATH")]))
        given = {"HOME": str(folder / "home"), "TMPDIR": str(self.scratch), "PYTHONPATH": path}
        port = free_port()
        with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
            process = subprocess.Popen(
                [PROGRAM, "serve", bundle, f"--port={port}", f"--state-dir={self.state}", *flags],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=folder,
                env=inherited | given | environment,
                start_new_session=True,
            )
        server = Server(process, port, self.state, self.scratch, folder)
        self.launched.append(server)
        return server

    def start(self, bundle: Path, *flags: str) -> Server:
        """Starts a server and waits until it is ready."""
        server = self.launch(bundle, *flags)
        wait_for("the server is ready", server.ready, START_S)
        return server


@contextmanager
def launching(folder: Path) -> Iterator[Launcher]:
    """A launcher; what is left of its servers at the end is killed."""
    # Ray's sockets need a shorter path than pytest's folders have.
    scratch = Path(tempfile.mkdtemp(prefix="t-", dir="/tmp"))
    launcher = Launcher(folder, scratch)
    try:
        yield launcher
    finally:
        for server in launcher.launched:
            server.kill()
        shutil.rmtree(scratch)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    with launching(tmp_path) as launcher:
        yield launcher


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Iterator[Server]:
    """The server that most tests share, with low limits."""
    with launching(tmp_path_factory.mktemp("server")) as launcher:
        server = launcher.start(bundle, "--max-queue=16", "--max-inputs=16", "--max-body-bytes=65536")
        yield server
        server.stop()
