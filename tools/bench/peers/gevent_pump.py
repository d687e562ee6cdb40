"""Forward a port as one would write it first with gevent: recv, sendall, two greenlets for a connection."""

import sys

import gevent
from gevent import socket
from gevent.server import StreamServer


def pump(source: socket.socket, sink: socket.socket) -> None:
    """Copy until the source has finished or one of them has failed."""
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        source.close()
        sink.close()


def serve(client: socket.socket, _address: object) -> None:
    """Connect a client to the target, and copy both ways."""
    with client, socket.create_connection(("127.0.0.1", int(sys.argv[2]))) as target:
        back = gevent.spawn(pump, target, client)
        pump(client, target)
        back.join()


StreamServer(("127.0.0.1", int(sys.argv[1])), serve, backlog=4096).serve_forever()
