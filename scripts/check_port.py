"""Says whether a server could listen on HOST PORT; exits with 1 and a sentence if not."""

import socket
import sys

host, port = sys.argv[1:]
try:
    family, kind, protocol, _, address = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)
        probe.listen()
except (OSError, OverflowError, ValueError) as error:
    sys.exit(f"error: can't listen on {host}:{port}: {error}. Name another port: make serve PORT=8001")
