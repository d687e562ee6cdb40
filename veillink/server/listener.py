"""Accept on one address and lead each client to where it belongs.

Rule: no error ends a listener, and at the connection limit nobody is accepted and dropped: clients wait in the kernel.
"""

import errno
import select
import time
from typing import Any, Final

from gevent.event import Event
from gevent.hub import get_hub
from gevent.server import StreamServer

from veillink.model import Address
from veillink.net.listening import BACKLOG
from veillink.net.sockets import adopt, error_name, readable
from veillink.proxy.service import Binding
from veillink.proxy.session import send_away, serve

# How long accepting pauses after EMFILE and its like, in seconds: ten tries a second cost nothing.
_ACCEPT_PAUSE: Final = 0.1


class AcceptOrder:
    """Has listeners accept in the order in which they became ready: the loop calls the last of them first.

    Of 1,500 pairs of clients 1,270 were inverted without it.
    """

    def __init__(self) -> None:
        self._ready: list[Listener] = []

    def add(self, listener: "Listener") -> None:
        """Have a listener accept soon, after those that became ready before it in this turn of the loop."""
        if not self._ready:
            get_hub().loop.run_callback(self._accept)
        self._ready.append(listener)

    def _accept(self) -> None:
        ready = self._ready[::-1]
        self._ready.clear()  # before anything can fail: the loop calls those who are left out again
        for listener in ready:
            if listener.started:
                listener.accept_some()


class Listener(StreamServer):
    """Accepts on one address, and leads to the binding that it holds at the moment.

    Args:
        sock: listens there.
        address: where it listens.
        binding: where to.
        cut: is set when those who come are to be sent away.
        order: among the listeners of the process.
    """

    def __init__(self, sock: Any, address: Address, binding: Binding, cut: Event, order: AcceptOrder) -> None:
        super().__init__(sock)
        self.listens_on = address
        self.binding = binding
        self._cut = cut
        self._order = order

    def handle(self, client: Any) -> None:  # type: ignore[override]
        """Serve one client, a bare socket, its address and its binding, in the client's greenlet."""
        sock, peer, binding = client
        try:
            if self._cut.is_set():
                send_away(sock, readable(peer), self.listens_on, binding.service)
            else:
                serve(sock, readable(peer), self.listens_on, binding)
        finally:
            binding.service.limiter.release()

    def full(self) -> bool:
        """Return whether there is no place left."""
        return self.binding.service.limiter.blocks(self)

    def _must_pause(self) -> bool:
        """Return whether the next client has to wait, for the rate at which the rule accepts; then go on in time."""
        service = self.binding.service
        if service.pace is None:
            return False
        pause = service.pause(time.monotonic())
        if pause:
            self._go_on_after(pause)
        return pause > 0

    def do_read(self) -> Any:
        """Accept one client, or return ``None``."""
        if self._must_pause():
            self.binding.service.limiter.wake()  # the place that it has waited for is somebody else's
            return None
        listening: Any = self.socket
        try:
            fd, peer = listening._accept()
        except BlockingIOError:
            self.binding.service.limiter.wake()  # there may be more places than this listener had clients
            return None
        except OSError as error:
            if error.errno not in (errno.ECONNABORTED, errno.EINTR, errno.EPROTO):
                self._pause(error)
            self.binding.service.limiter.wake()
            return None
        return adopt(fd, listening.family), peer

    def _do_read(self) -> None:
        self._order.add(self)

    def accept_some(self) -> None:
        """Accept those who wait, 100 at most."""
        super()._do_read()  # type: ignore[misc]

    def has_client(self) -> bool:
        """Return whether somebody waits to be accepted."""
        poll = select.poll()
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(0))

    def do_handle(self, *args: Any) -> None:
        """Give the client its greenlet."""
        service = self.binding.service
        service.limiter.acquire()
        if service.pace is not None:
            service.take(time.monotonic())
        service.shared.greenlets.start_soon(self.handle, (*args, self.binding))

    def _pause(self, error: OSError) -> None:
        log = self.binding.service.shared.log
        log.limited("cannot accept", str(self.listens_on), listen=self.listens_on, reason=error_name(error))
        self._go_on_after(_ACCEPT_PAUSE)

    def _go_on_after(self, seconds: float) -> None:
        self.stop_accepting()
        self._timer = self.loop.timer(seconds)
        self._timer.start(self._resume)

    def _resume(self) -> None:
        if self.started:
            self.start_accepting()

    def retire(self) -> None:
        """Stop listening. Who waits in the kernel's queue is accepted first: closing would reset them."""
        for _ in range(BACKLOG):
            if self.full() or self._must_pause() or not self.has_client():
                break
            client = self.do_read()
            if client:
                self.do_handle(*client)
        self.close()
