"""The stack's proxy with its own configuration, on loopback, and the name server that tells it its upstreams."""

import json
import os
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.docker.files import DOCKER, run, tool
from tests.support.ports import free_port
from tests.support.waiting import wait_until_sync

_HEADER = struct.Struct("!6H")
_TTL_S = 1
_FASTER = 5  # times as impatient as in production, so that the tests take seconds


class NameServer:
    """Answers questions for A records like the name server of a container network: a name has its replicas' addresses.

    `addresses` may be changed at any time.
    """

    def __init__(self) -> None:
        self.addresses: dict[str, list[str]] = {}
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.bind(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop answering."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waker:
            waker.sendto(b"", ("127.0.0.1", self.port))
        self._thread.join(5)
        self._socket.close()

    def _serve(self) -> None:
        while True:
            question, sender = self._socket.recvfrom(512)
            if not question:
                return
            self._socket.sendto(self._answer(question), sender)

    def _answer(self, question: bytes) -> bytes:
        number, _flags, *_ = _HEADER.unpack_from(question)
        labels, at = [], _HEADER.size
        while length := question[at]:
            labels.append(question[at + 1 : at + 1 + length].decode())
            at += 1 + length
        kind, _class = struct.unpack_from("!2H", question, at + 1)
        found = self.addresses.get(".".join(labels)) if kind == 1 else []
        records = [
            struct.pack("!3HIH4s", 0xC00C, 1, 1, _TTL_S, 4, socket.inet_aton(address)) for address in found or []
        ]
        no_such_name = 3 if found is None else 0
        header = _HEADER.pack(number, 0x8180 | no_such_name, 1, len(records), 0, 0)
        return header + question[_HEADER.size : at + 5] + b"".join(records)


class Proxy:
    """A running Caddy."""

    def __init__(self, ports: Mapping[str, int], certificate: Path) -> None:
        self.site, self.ingest, self.grafana = (
            f"https://localhost:{ports[name]}" for name in ("SITE_ADDRESS", "INGEST_ADDRESS", "GRAFANA_ADDRESS")
        )
        self.health = f"http://127.0.0.1:{ports['health']}"
        self._certificate = certificate

    def trust(self) -> ssl.SSLContext:
        """A TLS context that trusts its certificate authority, and no other."""
        return ssl.create_default_context(cafile=str(self._certificate))


@contextmanager
def running_proxy(directory: Path, names: NameServer, upstream_ports: Mapping[str, int]) -> Iterator[Proxy]:
    """The proxy of docker/proxy/Caddyfile. Changed: addresses and ports, where it keeps its keys, how long it waits."""
    ports = {name: free_port() for name in ("SITE_ADDRESS", "INGEST_ADDRESS", "GRAFANA_ADDRESS", "health", "redirect")}
    sites = {name: f"localhost:{port}" for name, port in ports.items() if name.endswith("_ADDRESS")}
    adapted = run(tool("caddy"), "adapt", "--config", str(DOCKER / "proxy/Caddyfile"), env={**os.environ, **sites})
    assert adapted.returncode == 0, adapted.stderr
    config = json.loads(adapted.stdout)
    http = config["apps"]["http"]
    http["http_port"] = ports["redirect"]
    for server in http["servers"].values():
        (listen,) = server["listen"]
        server["listen"] = [f"127.0.0.1:{ports['health'] if listen.endswith(':2020') else listen.rpartition(':')[2]}"]
    for handler in _reverse_proxies(config):
        upstreams = handler["dynamic_upstreams"]
        upstreams["port"] = str(upstream_ports[upstreams["name"]])
        upstreams["resolver"] = {"addresses": [f"127.0.0.1:{names.port}"]}
        _hurry(upstreams, "refresh")
        _hurry(handler["load_balancing"], "try_duration", "try_interval")
        _hurry(handler["health_checks"]["passive"], "fail_duration")
    config["storage"] = {"module": "file_system", "root": str(directory)}
    (directory / "caddy.json").write_text(json.dumps(config))
    proxy = Proxy(ports, directory / "pki/authorities/local/root.crt")
    with open(directory / "log", "wb") as log:
        process = subprocess.Popen(
            [tool("caddy"), "run", "--config", str(directory / "caddy.json")],
            env={**os.environ, "HOME": str(directory)}, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        sites_ports = [ports[name] for name in sites]
        wait_until_sync(lambda: all(map(_has_certificate, sites_ports)), 20.0, "every site has its certificate")
        yield proxy
    finally:
        process.terminate()
        process.wait(20)


def _hurry(values: dict[str, Any], *names: str) -> None:
    for name in names:
        if name in values:
            values[name] //= _FASTER


def _reverse_proxies(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if node.get("handler") == "reverse_proxy":
            yield node
        for value in node.values():
            yield from _reverse_proxies(value)
    elif isinstance(node, list):
        for value in node:
            yield from _reverse_proxies(value)


def _has_certificate(port: int) -> bool:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            context.wrap_socket(connection, server_hostname="localhost").close()
            return True
    except (OSError, ssl.SSLError):
        return False
