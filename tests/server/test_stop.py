"""How a server ends: by a signal with everything answered and nothing left, or killed with nothing that lives on."""

from __future__ import annotations

import signal
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests.server.conftest import START_S, STOP_S, Launcher, Server, launching, wait_for

pytestmark = pytest.mark.slow

REVIEW = "the pasta was tasty , the waiter was rude ."
TOGETHER = 8


@dataclass
class Ended:
    """A server that a signal ended while it had requests to answer."""

    server: Server
    code: int
    answers: list[httpx.Response]
    left: list[str]  # command lines of what runs on
    files: list[Path]


@pytest.fixture(scope="module", params=[signal.SIGTERM, signal.SIGINT], ids=["sigterm", "sigint"])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, bundle: Path) -> Ended:
    with launching(tmp_path_factory.mktemp("ended")) as launcher:
        server = launcher.start(bundle, "--max-inputs=512", "--max-queue=8192", "--max-wait=600")
        body = {"inputs": [REVIEW] * 512, "explain": ["tokens", "subnetwork"]}
        with ThreadPoolExecutor(TOGETHER) as pool:
            asked = [pool.submit(server.post, "/v1/predict", body) for _ in range(TOGETHER)]
            # They are answered one after another, so most are still to come when the first one is.
            wait(asked, return_when=FIRST_COMPLETED)
            code = server.stop(request.param)
        left = [" ".join(process.cmdline()) for process in server.processes()]
        return Ended(server, code, [done.result() for done in asked], left, list(server.scratch.iterdir()))


def test_signal_ends_it_with_code_0(ended: Ended) -> None:
    assert ended.code == 0


def test_signal_lets_requests_in_flight_be_answered(ended: Ended) -> None:
    assert [answer.status_code for answer in ended.answers] == [200] * TOGETHER


def test_signal_leaves_no_process(ended: Ended) -> None:
    assert ended.left == []


def test_signal_leaves_no_file(ended: Ended) -> None:
    assert ended.files == []


def test_signal_prints_no_traceback(ended: Ended) -> None:
    assert "Traceback" not in ended.server.printed


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_signal_while_starting_ends_it_with_130_and_leaves_nothing(
    launcher: Launcher, bundle: Path, by: signal.Signals
) -> None:
    server = launcher.launch(bundle)
    wait_for("a process of Ray's runs", lambda: len(server.processes()) > 6, START_S)
    assert server.stop(by) == 130
    assert server.processes() == []
    assert list(server.scratch.iterdir()) == []
    assert "Traceback" not in server.printed


def test_killed_main_process_takes_all_others_with_it(launcher: Launcher, bundle: Path) -> None:
    server = launcher.start(bundle)
    assert len(server.processes()) > 1
    server.process.kill()
    server.process.wait(STOP_S)
    wait_for("no orphan runs", lambda: server.processes() == [], 10)


def test_killed_servers_folder_is_removed_by_the_next_one(launcher: Launcher, bundle: Path) -> None:
    killed = launcher.start(bundle)
    [folder] = killed.scratch.glob("sparsecbm-*")
    killed.kill()
    assert folder.exists()
    next_one = launcher.launch(bundle)
    wait_for("the folder is removed", lambda: not folder.exists(), START_S)
    assert next_one.process.poll() is None
