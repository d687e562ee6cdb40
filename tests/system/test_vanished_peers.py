"""A peer that has gone without a word does not hold its connection for ever."""

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from .conftest import Serve, Start
from .harness import Backend, VeilLink, echo, free_port, read_exactly
from .namespace import Network

_NEAR, _FAR = "10.0.0.1", "10.0.0.2"
_TCP_RTO_MAX_MS = 44  # from Linux 6.15


@pytest.fixture
def far(network: Network) -> Iterator[Network]:
    """Another network, at the other end of a wire from the test's own."""
    with Network() as far:
        network.run("ip", "link", "add", "name", "near", "type", "veth", "peer", "name", "far", "netns", far.path)
        for side, name, address in ((network, "near", _NEAR), (far, "far", _FAR)):
            side.run("ip", "address", "add", f"{address}/24", "dev", name)
            side.run("ip", "link", "set", name, "up")
        yield far


class Pairs:
    """Connections of a near and a far peer through a VeilLink: the far one is once the client, once the target.

    ``near``: the near peers, in this order.
    """

    def __init__(self, start: Start, backend: Serve, far: Network, stack: ExitStack) -> None:
        with far.inside():
            far_target = stack.enter_context(Backend(echo, _FAR))
        listening = stack.enter_context(socket.create_server((_NEAR, 0)))
        to_far = free_port()
        self.veillink: VeilLink = start(
            f"{{port}},{_NEAR},{listening.getsockname()[1]},keepalive=1s\n"
            f"{to_far},{_FAR},{far_target.port},keepalive=1s\n"
        )
        with far.inside():
            self._far_client = stack.enter_context(self.veillink.connect(host=_NEAR))
        near_target, _ = listening.accept()
        near_client = self.veillink.connect(to_far)
        self.near = (stack.enter_context(near_target), stack.enter_context(near_client))
        self._far_client.sendall(b"there")
        assert read_exactly(near_target, 5) == b"there"
        near_client.sendall(b"there")
        assert read_exactly(near_client, 5) == b"there"

    def assert_ended(self) -> None:
        """Fail unless both connections are cut, for the near peers too."""
        assert {line["end"] for line in self.veillink.access(2, seconds=15)} == {"client_reset", "target_reset"}
        for sock in self.near:
            with pytest.raises(ConnectionResetError):
                sock.recv(1)


def test_an_idle_connection_to_a_peer_that_has_vanished_ends(far: Network, start: Start, backend: Serve) -> None:
    with ExitStack() as stack:
        pairs = Pairs(start, backend, far, stack)
        far.run("ip", "link", "set", "far", "down")
        begun = time.monotonic()
        pairs.assert_ended()
        # One second of silence, then three questions a second apart.
        assert 2.5 < time.monotonic() - begun < 8


def test_a_connection_with_bytes_on_their_way_to_a_peer_that_has_vanished_ends(
    network: Network, far: Network, start: Start, backend: Serve
) -> None:
    with socket.socket() as probe:
        try:
            probe.getsockopt(socket.IPPROTO_TCP, _TCP_RTO_MAX_MS)
        except OSError:
            pytest.skip("needs Linux 6.15: before, only net.ipv4.tcp_retries2 decides how long that takes")
    # The usual 15 take 16 s; these six would take 25 s without the shorter pauses.
    network.set("ipv4/tcp_retries2", "6")
    with ExitStack() as stack:
        # One byte, and more than all buffers hold.
        sent = {unsent: Pairs(start, backend, far, stack) for unsent in (1, 16 << 20)}
        far.run("ip", "link", "set", "far", "down")
        begun = time.monotonic()
        for unsent, pairs in sent.items():
            for sock in pairs.near:
                sock.setblocking(False)
                sock.send(bytes(unsent))
                sock.settimeout(20)
        for pairs in sent.values():
            pairs.assert_ended()
        assert time.monotonic() - begun < 15
