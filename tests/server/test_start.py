"""What `sparsecbm serve` refuses to start on: it exits with 2 and one sentence, and leaves nothing."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import keys
from tests.server.conftest import STOP_S, Launcher, Server


def assert_refused(server: Server, *words: str) -> None:
    """It ended with 2 and one sentence that has these words; nothing runs, and nothing was written."""
    assert server.process.wait(STOP_S) == 2
    sentences = [line for line in server.err.read_text().splitlines() if not line.startswith("starting ")]
    assert len(sentences) == 1
    assert sentences[0].startswith("error: ")
    for word in words:
        assert word in sentences[0]
    assert server.out.read_text() == ""
    assert server.processes() == []
    assert not server.state.exists()
    assert list(server.scratch.iterdir()) == []


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_port_of_another_program_is_refused(launcher: Launcher, bundle: Path, taken_port: int) -> None:
    server = launcher.launch(bundle, f"--port={taken_port}")
    assert_refused(server, f"Port {taken_port} of 127.0.0.1 is taken by another program", "--port")


@pytest.mark.parametrize(
    "name", ["predict.onnx", "attribute.onnx", "explain.onnx", "masks.safetensors", "tokenizer.json"]
)
def test_bundle_with_a_changed_byte_is_refused(launcher: Launcher, bundle: Path, tmp_path: Path, name: str) -> None:
    changed = tmp_path / "changed"
    shutil.copytree(bundle, changed)
    content = bytearray((changed / name).read_bytes())
    content[len(content) // 2] ^= 1
    (changed / name).write_bytes(content)
    assert_refused(launcher.launch(changed), name)


def test_missing_bundle_is_refused(launcher: Launcher, tmp_path: Path) -> None:
    assert_refused(launcher.launch(tmp_path / "nowhere"), str(tmp_path / "nowhere"))


@pytest.mark.parametrize("flag", ["--host=0.0.0.0", "--host=::", "--host=192.0.2.1", "--require-keys"])
def test_server_without_the_keys_it_needs_is_refused(launcher: Launcher, bundle: Path, flag: str) -> None:
    assert_refused(launcher.launch(bundle, flag), "without API keys", "sparsecbm keys create")


def test_keys_that_others_may_write_are_refused(launcher: Launcher, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.create(path, "ada", "operate")
    path.chmod(0o666)
    server = launcher.launch(bundle, "--require-keys", f"--keys-file={path}")
    assert_refused(server, f"chmod 600 {path}")


def test_address_of_no_interface_is_refused(launcher: Launcher, bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    keys.create(path, "ada", "operate")
    server = launcher.launch(bundle, "--host=203.0.113.1", f"--keys-file={path}")
    assert_refused(server, "no address 203.0.113.1", "--host")


def test_unknown_value_of_a_flag_is_refused(launcher: Launcher, bundle: Path) -> None:
    assert_refused(launcher.launch(bundle, "--log-level=loud"), "--log-level (SPARSECBM_LOG_LEVEL)", "'debug'")


def test_unknown_value_in_the_environment_is_refused(launcher: Launcher, bundle: Path) -> None:
    server = launcher.launch(bundle, SPARSECBM_LOG_LEVEL="loud")
    assert_refused(server, "--log-level (SPARSECBM_LOG_LEVEL)", "'debug'")


def test_settings_that_contradict_each_other_are_refused(launcher: Launcher, bundle: Path) -> None:
    assert_refused(launcher.launch(bundle, "--max-queue=8", "--max-inputs=9"), "max_inputs (9)", "max_queue (8)")
