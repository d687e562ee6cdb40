"""Ask a running VeilLink what it does, and show the answer on a terminal."""

import http.client
import io
import json
import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, TextIO

from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from veillink.credentials import ending
from veillink.model import REFUSALS, Address, SendProxy
from veillink.settings import AdminSettings
from veillink.text import printable

_PATIENCE: Final = 10.0  # seconds for an answer
_LONGEST_LIST: Final = 50  # connections that are listed
_TLS_FACTS: Final = ("tls", "sni", "alpn", "client_cert")


class NoAnswer(Exception):  # noqa: N818 - it says what happened
    """The state is not to be had; the message says why and what to do."""


def ask(admin: AdminSettings) -> tuple[Any, Any]:
    """Return what a running VeilLink's admin endpoint says, decoded from JSON: the state, and the connections.

    Args:
        admin: whose addresses are asked in turn, until one answers.

    Raises:
        NoAnswer: nobody is there, the token is wrong, or the answers are no VeilLink's.
    """
    reasons: list[str] = []
    for address in admin.addresses:
        try:
            return _json(address, admin, "/api/status"), _json(address, admin, "/api/connections")
        except NoAnswer as why:
            reasons.append(str(why))
    raise NoAnswer("; ".join(reasons))


def is_alive(admin: AdminSettings) -> bool:
    """Return whether a VeilLink that lives is at one of the admin endpoint's addresses; no proxy stands between."""
    for address in admin.addresses:
        try:
            if _get(address, "", "/healthz")[0].status == http.HTTPStatus.OK:
                return True
        except NoAnswer:
            continue
    return False


def _json(address: Address, admin: AdminSettings, path: str) -> Any:
    response, body = _get(address, admin.token, path)
    if response.status == http.HTTPStatus.UNAUTHORIZED:
        raise NoAnswer(f"{address} wants another token: give --admin-token or VEILLINK_ADMIN_TOKEN")
    if response.status != http.HTTPStatus.OK:
        raise NoAnswer(f"{address} answers {response.status} {response.reason}: that is not VeilLink's admin endpoint")
    try:
        return json.loads(body)
    except ValueError:
        raise NoAnswer(f"{address} does not answer in JSON: that is not VeilLink's admin endpoint") from None


def _get(address: Address, token: str, path: str) -> tuple[http.client.HTTPResponse, bytes]:
    connection = http.client.HTTPConnection(_host(address), address.port or None, timeout=_PATIENCE)
    try:
        if address.is_unix:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_PATIENCE)
            connection.sock.connect(address.path)
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"} if token else {})
        response = connection.getresponse()
        return response, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise NoAnswer(f"no answer at {address}: {error}; is VeilLink running with --admin {address}?") from None
    finally:
        connection.close()


def _host(address: Address) -> str:
    return "localhost" if address.is_unix else address.host or "127.0.0.1"


def tables(status: dict[str, Any], connections: list[dict[str, Any]], out: TextIO | None) -> bytes:
    """Return the state as tables.

    Args:
        status: what ``/api/status`` says.
        connections: what ``/api/connections`` says.
        out: what they are for: where it is no terminal, plain ones without colours and never cut; what its encoding
            does not have is escaped.
    """
    terminal = out is not None and out.isatty()
    page = io.BytesIO()
    file = io.TextIOWrapper(page, encoding=out.encoding if out else "utf-8", errors="backslashreplace")
    console = Console(file=file, force_terminal=terminal, highlight=False, width=None if terminal else 200)
    dot = "-" if console.options.ascii_only else "·"
    _print(console, dot, status, connections)
    file.flush()
    return page.getvalue()


def _print(console: Console, dot: str, status: dict[str, Any], connections: list[dict[str, Any]]) -> None:
    totals, most = status["totals"], status["limits"]["connections"]
    counts = f"{totals['active']} of at most {most} connections {dot} {totals['connections']} so far"
    workers = f" {dot} {len(status['workers'])} workers" if "workers" in status else ""
    head = f"VeilLink {status['version']} {dot} {status['phase']}{workers} {dot} up {_ago(status['uptime'])}"
    console.print(f"{head} {dot} {counts}")
    console.print(_rules(status["rules"]))
    clients = _clients(status["rules"])
    if clients.row_count:
        console.print(clients)
    certificates = _certificates(status["rules"], time.time())
    if certificates.row_count:
        console.print(certificates)
    reload = status["last_reload"]
    if reload["problems"]:
        refused = reload["result"] == "refused"
        console.print(f"The rules' file {'was refused; what runs goes on' if refused else 'has rows that do not run'}:")
    for problem in reload["problems"]:
        console.print(Text(printable(problem), style="yellow"))
    if connections:
        console.print(_connections(connections[:_LONGEST_LIST]))
    if len(connections) > _LONGEST_LIST:
        console.print(f"and {len(connections) - _LONGEST_LIST} more connections: --json shows them all")


def _rules(rules: list[dict[str, Any]]) -> Table:
    table = Table("rule", "listen", "listener", "target", "state", box=box.SIMPLE_HEAD)
    for column in ("live", "total", "in", "out"):
        table.add_column(column, justify="right")
    for rule in rules:
        listener = _state(rule["listener_up"])
        own = (str(rule["total"]), size(rule["bytes_in"]), size(rule["bytes_out"]))
        for number, target in enumerate(rule["targets"]):
            place = (Text(printable(target["target"])), _state(target["up"]), str(target["active"]))
            if number == 0:
                table.add_row(Text(printable(rule["name"])), Text(printable(rule["listen"])), listener, *place, *own)
            else:
                table.add_row("", "", "", *place)
    return table


def _clients(rules: list[dict[str, Any]]) -> Table:
    """Return what rules ask of clients and tell of them, for whom, and whom they refuse; where there is any."""
    table = Table("rule", Column("options", overflow="fold"), "refused", box=box.SIMPLE_HEAD)
    for rule in rules:
        options = [f"{name}={text}" for name, text in rule["options"].items()]
        options += [word for target in rule["targets"] for word in _of_target(target)]
        refused = [f"{end} {rule['ends'][end]}" for end in REFUSALS if end in rule["ends"]]
        if options or refused:
            table.add_row(*(Text("\n".join(map(printable, lines))) for lines in ([rule["name"]], options, refused)))
    return table


def _of_target(target: dict[str, Any]) -> Iterator[str]:
    if target["send_proxy"] != SendProxy.OFF:
        yield f"{target['target']} send_proxy={target['send_proxy']}"
    if target["sni"]:
        yield f"{target['target']} sni={target['sni']}"


def _certificates(rules: list[dict[str, Any]], now: float) -> Table:
    """Return the certificates of rules; ``now`` in Unix seconds."""
    table = Table("rule", "certificate", Column("names", overflow="fold"), "until", "doubts", box=box.SIMPLE_HEAD)
    for rule in rules:
        for each in rule["certificates"]:
            texts = (rule["name"], each["file"], " ".join(each["names"]))
            until = f"{datetime.fromtimestamp(each['not_after'], UTC):%Y-%m-%d}" if each["not_after"] else "-"
            doubts = [*filter(None, (ending(each["not_after"], now),)), *each["doubts"]]
            said = Text("\n".join(map(printable, doubts)), style="yellow")
            table.add_row(*(Text(printable(text)) for text in texts), until, said)
    return table


def _connections(connections: list[dict[str, Any]]) -> Table:
    table = Table("id", "rule", "client", "target", box=box.SIMPLE_HEAD)
    for column in ("age", "in", "out"):
        table.add_column(column, justify="right")
    in_tls = [" ".join(printable(each[fact]) for fact in _TLS_FACTS if fact in each) for each in connections]
    if any(in_tls):
        table.add_column("tls")
    for each, facts in zip(connections, in_tls, strict=True):
        client = each["client"] + (f" via {each['via']}" if "via" in each else "")
        place = tuple(Text(printable(text or "-")) for text in (each["rule"], client, each["target"]))
        moved = (size(each["bytes_in"]), size(each["bytes_out"]))
        table.add_row(str(each["id"]), *place, _ago(each["age"]), *moved, *([Text(facts)] if any(in_tls) else ()))
    return table


def _state(up: bool) -> Text:
    return Text("up", style="green") if up else Text("DOWN", style="bold red")


def _ago(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def size(count: float) -> str:
    """Return a number of bytes as people read it: ``1.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
