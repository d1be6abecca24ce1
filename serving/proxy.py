"""Starts Ray Serve's HAProxy on a safer configuration than the one that Ray writes.

Ray's HAProxy listens on every interface with its statistics and its metrics, on fixed ports, outlives a killed
server, and answers its own errors in its own words. No setting changes that, but Ray lets one name the program that it
starts: a launcher, which `write_launcher` makes, and which runs this file. It rewrites the configuration, makes the
kernel end the process together with its parent, and becomes HAProxy. It is run anew at each reload, so it imports
little, and nothing of ours.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import signal
import sys
from itertools import count
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LAUNCHER = """#!/bin/sh
exec "{python}" -I -S "{file}" "{folder}" "{bind}" "{haproxy}" "$@"
"""
# HAProxy 2.8 ignores those of 400 and 408 for a request that it can't parse or that doesn't come (its issue 3032).
_ERRORS: dict[int, tuple[str, str, str, dict[str, str]]] = {
    400: ("400 Bad Request", "bad_request", "The request is not well-formed HTTP.", {}),
    404: ("404 Not Found", "not_found", "There is nothing at this path; /docs lists what there is.", {}),
    408: ("408 Request Timeout", "timeout", "The request did not arrive in time.", {}),
    503: (
        "503 Service Unavailable",
        "unavailable",
        "No replica answers now. Send the request again shortly.",
        {"retry-after": "1"},
    ),
}
# What HAProxy says of a replica that is away (502, 503, 504) is one thing to a client.
_STATUSES = {400: 400, 404: 404, 408: 408, 502: 503, 503: 503, 504: 503}


def write_launcher(path: Path, haproxy: str, host: str, port: int) -> None:
    """Writes the program that Ray starts in place of HAProxy.

    Args:
        path: the program's file; its folder, which has the files of `write_errors`, must be this user's alone.
        haproxy: path of HAProxy itself.
        host: IP address that users reach. Ray knows nothing of it: what Ray binds to its host stays on loopback.
        port: its port.
    """
    bind = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if host == "::":
        bind += " v4v6"
    file = Path(__file__).resolve()
    path.write_text(_LAUNCHER.format(python=sys.executable, file=file, folder=path.parent, bind=bind, haproxy=haproxy))
    path.chmod(0o700)


def tighten(config: str, bind: str, folder: Path) -> str:
    """Ray's HAProxy configuration with nothing open but what users reach, and with errors of our shape.

    Args:
        config: as Ray wrote it.
        bind: what users reach, as HAProxy's `bind` has it.
        folder: where sockets may be put and the error files of `write_errors` are.
    """
    # A bind to a port alone is one to every interface.
    sockets = count(1)
    config = re.sub(r"bind (?:\*)?:\d+", lambda _: f"bind unix@{folder / str(next(sockets))} mode 600", config)
    config = re.sub(r"(stats socket \S+ mode )666", r"\g<1>600", config)
    config = re.sub(r"^ *errorfile .*\n", "", config, flags=re.MULTILINE)
    errors = "".join(f"    errorfile {status} {folder / f'{file}.http'}\n" for status, file in _STATUSES.items())
    config = config.replace("defaults\n", f"defaults\n{errors}    timeout http-request 30s\n", 1)
    # Ray reads these in ways that fail outside our error shape: a deadline, and an id that must be ASCII.
    rules = (
        "    http-request del-header x-request-timeout-seconds\n"
        "    http-request del-header x-request-disconnect-disabled\n"
        "    http-request del-header x-request-id if !{ req.hdr(x-request-id) -m reg ^[!-~]{1,128}$ }\n"
        # Ray has pages of its own, and its own words where a path is none; they know neither keys nor our headers.
        f"    http-request return status 404 errorfile {folder / '404.http'} "
        "if { path,url_dec -m beg -i /-/ } || !{ path_beg / }\n"
    )
    front = f"frontend http_frontend\n    bind {bind}\n{rules}"
    return re.sub(r"frontend http_frontend\n *bind .*\n", lambda _: front, config, count=1)


def write_errors(folder: Path, headers: dict[str, str]) -> None:
    """Writes HAProxy's own answers, as whole HTTP responses.

    Args:
        folder: where to.
        headers: what each of them has besides its own.
    """
    for status, (line, type, message, own) in _ERRORS.items():
        body = json.dumps({"error": {"type": type, "message": message, "detail": None}})
        all_of_them = {"content-type": "application/json", "content-length": len(body), **headers, **own}
        head = "".join(f"{name}: {value}\r\n" for name, value in all_of_them.items())
        (folder / f"{status}.http").write_text(f"HTTP/1.1 {line}\r\n{head}\r\n{body}", newline="")


def main(folder: Path, bind: str, haproxy: str, arguments: list[str]) -> None:
    """Becomes HAProxy."""
    config = Path(arguments[arguments.index("-f") + 1])
    config.write_text(tighten(config.read_text(), bind, folder))
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # What faces the network does not know the token by which Ray runs code.
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_TOKEN"}
    os.execve(haproxy, [haproxy, *arguments], environment)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4:])
