"""The text of one cell in, its value out: addresses, ports, names, times, numbers.

Rule: a cell that is not accepted raises ``ValueError`` with a message for the operator, and nothing else is raised.
"""

import re
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

from veillink.model import Address
from veillink.text import quoted

# --- options ---------------------------------------------------------------------------------------------------------


_YEAR = 365 * 24 * 3600
_MILLISECONDS = {"ms": 1, "s": 1000, "m": 60_000, "h": 3_600_000}
_DURATION = re.compile(r"(0|[1-9][0-9]{0,10})(ms|s|m|h)")
_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")


def parse_duration(text: str) -> float:
    """Return the seconds that ``250ms``, ``5s``, ``2m``, ``1h`` or ``0`` stand for.

    Raises:
        ValueError: anything else, or more than a year; the message says what is accepted.
    """
    match = _DURATION.fullmatch("0s" if text == "0" else text)
    if match and (seconds := int(match[1]) * _MILLISECONDS[match[2]] / 1000) <= _YEAR:
        return seconds
    raise ValueError(f"{quoted(text)} is not a duration: write 250ms, 5s, 2m, 1h or 0, at most 8760h")


def number(least: int, most: int) -> Callable[[str], int]:
    """Return a parser of whole numbers in plain digits, with both limits allowed."""

    def parse(text: str) -> int:
        if not _NUMBER.fullmatch(text) or not least <= int(text) <= most:
            raise ValueError(f"{quoted(text)} is not a whole number from {least} to {most}")
        return int(text)

    return parse


def parse_token(text: str) -> str:
    """Return a token, or nothing.

    Raises:
        ValueError: it could not be sent in a header as it is (RFC 9110 section 5.5).
    """
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("a token is printable ASCII without blanks")
    return text


# --- cells -----------------------------------------------------------------------------------------------------------

_LISTEN = re.compile(r"(?:\[([^]]*:[^]]*)]:|([0-9.]+):|\*:)?([^][:]+)")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_INTEGER = re.compile(r"0|-?[1-9][0-9]*")
_RANGE = re.compile(r"([^-]+)-([^-]+)")
_NAME_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMERIC = re.compile(r"[0-9]+|0x[0-9a-f]*")
_ZONE = re.compile(r"[A-Za-z0-9._-]{1,15}")
_UNIX = "unix:"
_LONGEST_NAME = 253  # characters, a dot at the end not counted
_LONGEST_PATH = 107  # bytes; sun_path in unix(7) has room for one more, the NUL


def _port(text: str) -> int:
    if _PORT.fullmatch(text) and int(text) <= 65535:
        return int(text)
    fault = "between 1 and 65535" if _INTEGER.fullmatch(text) else "a number from 1 to 65535 in plain digits"
    raise ValueError(f"port {quoted(text)} is not {fault}")


def parse_ports(text: str) -> range:
    """Return the ports of ``8080`` or ``8000-8010``.

    Raises:
        ValueError: it is neither, or out of 1 to 65535.
    """
    match = _RANGE.fullmatch(text)
    first, last = map(_port, match.groups() if match else (text, text))
    if match and first >= last:
        raise ValueError(f"range {quoted(text)} does not go up")
    return range(first, last + 1)


def _ip(text: str) -> str:
    try:
        address = ip_address(text)
    except ValueError:
        raise ValueError(f"{quoted(text)} is not an IP address") from None
    if isinstance(address, IPv4Address):
        return str(address)
    zone = address.scope_id
    if zone is not None and not (_ZONE.fullmatch(zone) and address.is_link_local):
        raise ValueError(f"{quoted(text)} has a zone that is no interface name, or needs none")
    # To the kernel a mapped address is the IPv4 one; with one spelling no overlap or loop hides.
    return str(address.ipv4_mapped or address)


def _unix(text: str) -> str:
    path = text.removeprefix(_UNIX)
    # With one spelling no overlap or loop hides; ".." stays: what it means depends on symbolic links.
    plain = "".join(f"/{part}" for part in path.split("/") if part not in ("", "."))
    if not path.startswith("/") or path.endswith("/") or not path.isprintable() or not plain:
        raise ValueError(f"{quoted(text)} is not {_UNIX} and an absolute path")
    if len(path.encode()) > _LONGEST_PATH:
        raise ValueError(f"the path of {quoted(text)} is longer than {_LONGEST_PATH} bytes")
    return _UNIX + plain


def parse_listen(text: str) -> tuple[Address, int]:
    """Return the first address of a listen cell and the number of its ports.

    Raises:
        ValueError: the form is not one of those in the message.
    """
    if text.startswith(_UNIX):
        return Address(_unix(text), 0), 1
    match = _LISTEN.fullmatch(text)
    if not match:
        forms = "PORT (on every address), IPV4:PORT, [IPV6]:PORT (in brackets) or unix:/PATH"
        raise ValueError(f"listen {quoted(text)} is not {forms}")
    host, ports = match[1] or match[2], parse_ports(match[3])
    return Address(_ip(host) if host else "", ports.start), len(ports)


def parse_admin(text: str) -> tuple[Address, str]:
    """Return the address of ``127.0.0.1:9090``, ``[::1]:9090``, ``name:9090`` or ``unix:/path``, and the name if any.

    The host of a name is the name itself: it has to be looked up.

    Raises:
        ValueError: it is none of them.
    """
    name, colon, port = text.rpartition(":")
    is_name = colon and not text.startswith(_UNIX) and "[" not in name and name != "*"
    if is_name and not _NUMERIC.fullmatch(name.rpartition(".")[2]):
        host = _name(name)
        return Address(host, _port(port)), host
    address, ports = parse_listen(text)
    if ports > 1:
        raise ValueError(f"{quoted(text)} has more than one port")
    return address, ""


def parse_names(text: str) -> tuple[str, ...]:
    """Return host names that stand between blanks or commas.

    Raises:
        ValueError: one of them is none.
    """
    return tuple(_name(name).removesuffix(".") for name in text.replace(",", " ").split())


def _in_ascii(text: str) -> str:
    """Return a host name with other letters as DNS has it: IDNA 2008 (RFC 5891), after the mapping of UTS 46.

    Python's own codec is IDNA 2003, to which ``straße.example`` is ``strasse.example``: somebody else's host.
    """
    import idna  # 20 ms and 2 MiB that other names do not need

    try:
        labels = idna.uts46_remap(text, std3_rules=False).split(".")
        return ".".join(label if label.isascii() else idna.alabel(label).decode() for label in labels)
    except idna.IDNAError:
        raise ValueError(f"host {quoted(text)} is no host name that IDNA 2008 allows (RFC 5891)") from None


def _name(text: str) -> str:
    """Return a host name as DNS has it (RFC 1123 section 2.1)."""
    name = text.lower() if text.isascii() or len(text) > _LONGEST_NAME else _in_ascii(text)
    labels = name.removesuffix(".").split(".")
    if len(name.removesuffix(".")) > _LONGEST_NAME or not all(map(_NAME_LABEL.fullmatch, labels)):
        raise ValueError(f"host {quoted(text)} is neither an IP address nor a host name")
    if _NUMERIC.fullmatch(labels[-1]):  # getaddrinfo takes 127.1 and 0177.0.0.1 for addresses
        raise ValueError(f"host {quoted(text)} is not an IPv4 address: four numbers, 0 to 255, no leading zeros")
    return name


def parse_host(text: str) -> str:
    """Return the canonical form of an IP address, host name, or UNIX socket.

    Raises:
        ValueError: it is none of them.
    """
    if text.startswith(_UNIX):
        return _unix(text)
    inside = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in inside:
        return _ip(inside)
    try:
        return _ip(text)
    except ValueError:
        return _name(text)
