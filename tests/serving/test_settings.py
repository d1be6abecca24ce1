"""Settings from flags, the environment and defaults."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from serving.settings import Settings, read_settings
from sparsecbm.errors import SetupError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("SPARSECBM_"):
            monkeypatch.delenv(name)


def test_defaults_serve_on_loopback() -> None:
    settings = read_settings()
    assert (settings.host, settings.port, settings.replicas) == ("127.0.0.1", 8000, 1)
    assert settings.loopback and not settings.log_texts


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECBM_PORT", "9000")
    assert read_settings().port == 9000


def test_flag_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECBM_PORT", "9000")
    assert read_settings(port=9001).port == 9001


def test_flag_that_is_not_given_leaves_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSECBM_PORT", "9000")
    assert read_settings(port=None).port == 9000


@pytest.mark.parametrize("given", ["a.example,b.example", "a.example b.example", "a.example, b.example"])
def test_hosts_in_the_environment_are_a_list(monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    monkeypatch.setenv("SPARSECBM_ALLOWED_HOSTS", given)
    assert read_settings().allowed_hosts == ["a.example", "b.example"]


@pytest.mark.parametrize("given", [["a.example", "b.example"], ["a.example,b.example"]])
def test_hosts_may_be_repeated_flags(given: list[str]) -> None:
    assert read_settings(allowed_hosts=given).allowed_hosts == ["a.example", "b.example"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("port", "http"),
        ("replicas", 0),
        ("threads", -1),
        ("max_body_bytes", 1),
        ("max_inputs", 0),
        ("max_batch", 0),
        ("max_json_depth", 3),
        ("max_wait", 0),
        ("request_timeout", 0),
        ("otlp_endpoint", "collector:4318"),
        ("log_level", "loud"),
    ],
)
def test_value_out_of_bounds_is_refused_by_flag_and_variable(name: str, value: object) -> None:
    flag = f"--{name.replace('_', '-')}"
    with pytest.raises(SetupError, match=rf"^{flag} \(SPARSECBM_{name.upper()}\): "):
        read_settings(**{name: value})


def test_requests_larger_than_the_queue_are_refused() -> None:
    with pytest.raises(SetupError, match=r"max_inputs \(100\) must not be above max_queue \(10\)"):
        read_settings(max_inputs=100, max_queue=10)


def test_default_time_beyond_the_longest_is_refused() -> None:
    with pytest.raises(SetupError, match=r"request_timeout \(60\) must not be above max_request_timeout \(30\)"):
        read_settings(max_request_timeout=30)


def test_unknown_setting_is_refused() -> None:
    with pytest.raises(SetupError, match="--colour"):
        read_settings(colour="red")


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_addresses(host: str) -> None:
    assert read_settings(host=host).loopback


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.4", "::ffff:192.168.1.4"])
def test_addresses_that_others_may_reach(host: str) -> None:
    assert not read_settings(host=host).loopback


@pytest.mark.parametrize("host", ["reviews.example", "*", "", "127.0.0.1:8000", "127.1", "300.0.0.1"])
def test_host_that_is_no_address_is_refused(host: str) -> None:
    with pytest.raises(SetupError, match=r"^--host \(SPARSECBM_HOST\): .*give 127\.0\.0\.1"):
        read_settings(host=host)


@pytest.mark.parametrize(
    ("given", "needs"),
    [
        ({}, False),
        ({"host": "::1"}, False),
        ({"host": "0.0.0.0"}, True),
        ({"require_keys": True}, True),
    ],
)
def test_keys_are_needed_but_on_loopback_unless_asked_for(given: dict[str, object], needs: bool) -> None:
    assert read_settings(**given).needs_keys == needs


def test_keys_lie_in_the_state_folder_by_default(tmp_path: Path) -> None:
    assert read_settings(state_dir=tmp_path).keys_path == tmp_path / "keys.json"


def test_keys_may_be_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_settings(keys_file="mine.json").keys_path == tmp_path / "mine.json"


@pytest.mark.parametrize(
    ("given", "hosts"),
    [
        ({}, {"localhost", "127.0.0.1", "[::1]"}),
        ({"host": "127.8.8.8"}, {"localhost", "127.0.0.1", "[::1]", "127.8.8.8"}),
        ({"allowed_hosts": ["A.example"]}, {"localhost", "127.0.0.1", "[::1]", "a.example"}),
        ({"host": "0.0.0.0"}, None),
        (
            {"host": "2001:DB8::1", "allowed_hosts": ["a.example"]},
            {"localhost", "127.0.0.1", "[::1]", "[2001:db8::1]", "a.example"},
        ),
    ],
)
def test_hosts_that_are_known(given: dict[str, object], hosts: set[str] | None) -> None:
    assert read_settings(**given).known_hosts == hosts


@pytest.mark.parametrize(
    "origin", ["*", "reviews.example", "https://", "https://a.example/", "null", "https://*.a.example"]
)
def test_origin_that_is_none_is_refused(origin: str) -> None:
    with pytest.raises(SetupError, match=r"^--cors-origins \(SPARSECBM_CORS_ORIGINS\): .*is no origin"):
        read_settings(cors_origins=origin)


def test_origins_are_in_lower_case() -> None:
    assert read_settings(cors_origins="https://A.example http://b.example:3000").cors_origins == [
        "https://a.example",
        "http://b.example:3000",
    ]


def test_localhost_is_its_address() -> None:
    assert read_settings(host="localhost").host == "127.0.0.1"


def test_folders_are_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    settings = read_settings(bundle="mine", state_dir="state")
    assert (settings.bundle, settings.state_dir) == (tmp_path / "mine", tmp_path / "state")


def test_home_is_written_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert read_settings(bundle="~/mine").bundle == tmp_path / "mine"


def test_ledger_lies_in_the_state_folder_by_default(tmp_path: Path) -> None:
    assert read_settings(state_dir=tmp_path).ledger_url == f"sqlite:///{tmp_path}/ledger.db"


def test_ledger_may_be_elsewhere() -> None:
    assert read_settings(ledger="postgresql://host/ledger").ledger_url == "postgresql://host/ledger"


def test_cores_are_shared_out_among_replicas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert read_settings(replicas=3).threads_per_replica == 2


def test_replica_has_a_thread_even_where_cores_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert read_settings(replicas=3).threads_per_replica == 1


def test_threads_given_are_used() -> None:
    assert read_settings(replicas=3, threads=5).threads_per_replica == 5


def test_every_setting_says_what_it_is() -> None:
    assert all(field.description for field in Settings.model_fields.values())
