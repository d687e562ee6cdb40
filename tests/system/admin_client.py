"""What a VeilLink shows, as its users see it over HTTP."""

import contextlib
import http.client
import json
import socket
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from .harness import HOST, free_port, read_to_eof


class AdminClient:
    """What a VeilLink shows at a port of this host."""

    def __init__(self) -> None:
        self.port = free_port()
        self.option = f"--admin={HOST}:{self.port}"

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Return the status, the headers and the body of the answer."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()

    def json(self, path: str, **headers: str) -> Any:
        """Return an answer that is JSON."""
        status, _, body = self.get(path, **headers)
        assert status == 200, body
        return json.loads(body)

    def rule(self, name: str) -> dict[str, Any]:
        """Return what it says of one rule."""
        (rule,) = [rule for rule in self.json("/api/status")["rules"] if rule["name"] == name]
        return dict(rule)

    def metrics(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        """Return every sample by name and labels."""
        text = self.get("/metrics")[2].decode()
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def raw(self, request: bytes, seconds: float = 10) -> bytes:
        """Return all that is answered to these bytes."""
        with socket.create_connection((HOST, self.port), seconds) as sock:
            sock.sendall(request)
            return read_to_eof(sock)
