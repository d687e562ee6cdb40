"""A service manager, as far as its programs speak with it."""

import socket


class Manager:
    """The service manager's side of sd_notify(3): a datagram socket."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + path[1:] if path.startswith("@") else path)
        self._socket.settimeout(10)

    @property
    def env(self) -> dict[str, str]:
        return {"NOTIFY_SOCKET": self._path}

    def told(self) -> dict[str, str]:
        """Return the next message."""
        return dict(line.split("=", 1) for line in self._socket.recv(4096).decode().splitlines())

    def close(self) -> None:
        self._socket.close()
