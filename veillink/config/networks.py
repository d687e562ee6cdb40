"""The text of a cell of networks in, its value out: who may come in, and whose PROXY header is believed.

Rule: an entry that is not accepted raises ``ValueError`` with a message for the operator, and nothing else is raised.
"""

import re
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from veillink.limits import EVERYBODY, Network, Networks
from veillink.text import quoted

_LENGTH = re.compile(r"0|[1-9][0-9]{0,2}")
_OFF = "off"
_ANY = "any"


def parse_network(text: str) -> Network:
    """Return the network of ``10.0.0.0/8``, ``2001:db8::/32``, or one address. IPv4-mapped ones are IPv4.

    Raises:
        ValueError: it is none; where bits behind the prefix are set, the message names the network meant.
    """
    host, slash, prefix = text.partition("/")
    version, bits = (6, 128) if ":" in host else (4, 32)
    try:
        number = int(IPv6Address(host) if version == 6 else IPv4Address(host))
    except AddressValueError:
        raise ValueError(f"{quoted(text)} is not an IP address, nor a network like 10.0.0.0/8 or fd00::/8") from None
    if "%" in host:
        raise ValueError(f"{quoted(text)} has a zone, which no network has")
    length = bits
    if slash:
        if not _LENGTH.fullmatch(prefix) or int(prefix) > bits:
            raise ValueError(f"{quoted(text)} has no prefix length from 0 to {bits} behind the slash")
        length = int(prefix)
    if number >> 32 == 0xFFFF and length >= 96 and version == 6:
        version, bits, number, length = 4, 32, number & 0xFFFF_FFFF, length - 96
    first = number >> bits - length << bits - length
    if first != number:
        raise ValueError(
            f"{quoted(text)} has bits set behind its prefix: the network is {Network(version, first, length)}"
        )
    return Network(version, first, length)


def parse_networks(text: str) -> Networks:
    """Return the addresses, networks and ``@FILE`` names that stand between blanks; ``off`` is none.

    Nothing at all is refused: a cell that somebody's template has left empty would let everybody in.

    Raises:
        ValueError: one of them is none.
    """
    entries = text.split()
    if entries == [_OFF]:
        return Networks()
    if not entries:
        raise ValueError(f"there is no address, network or @FILE; {_OFF} asks for none")
    if "@" in entries:
        raise ValueError("there is no name of a file behind @")
    files = tuple(entry[1:] for entry in entries if entry.startswith("@"))
    return Networks(tuple(parse_network(entry) for entry in entries if not entry.startswith("@")), files)


def parse_trusted(text: str) -> Networks:
    """Return the networks that stand between blanks, everybody for ``any``, and none for ``off``.

    Raises:
        ValueError: one of them is none.
    """
    entries = text.split()
    if entries in ([_ANY], [_OFF]):
        return EVERYBODY if entries == [_ANY] else Networks()
    if not entries:
        raise ValueError(f"there is no address or network; {_ANY} is everybody, {_OFF} nobody")
    return Networks(tuple(map(parse_network, entries)))


def format_trusted(networks: Networks) -> str:
    """Return the text of which ``parse_trusted`` makes this."""
    return _ANY if networks == EVERYBODY else str(networks)
