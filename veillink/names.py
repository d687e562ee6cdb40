"""The names that peers ask for, and which pattern takes them.

Rule: a name is compared in one spelling only, the one that ``normalise`` returns.
"""

import re
from collections.abc import Iterable
from typing import Final, Generic, TypeVar

from veillink.text import quoted

_Value = TypeVar("_Value")

_LONGEST: Final = 253  # characters
_NAME: Final = re.compile(r"[a-z0-9_:-]{1,63}(?:\.[a-z0-9_:-]{1,63})*")


def normalise(text: str) -> str:
    """Return a name as it is compared: in lower case, without the dot at its end.

    Names with other letters come as DNS has them (``xn--…``). An address is a name like any other: RFC 6066 section 3
    does not permit it in a hello, but there are clients that send it, and OpenSSL takes it.

    Raises:
        ValueError: it is no name.
    """
    name = text.lower().removesuffix(".")
    if len(name) > _LONGEST or not text.isascii() or not _NAME.fullmatch(name):
        raise ValueError(f"bad name {quoted(text)}")
    return name


class Routes(Generic[_Value]):
    """What is chosen by name: the exact name goes before the longest wildcard, and that before the default.

    Args:
        patterns: normalised names, or ``*.example.org`` for all that have one label or more before that; each with
            what it stands for.
        default: for names that no pattern takes, and for clients without a name.
    """

    __slots__ = ("_default", "_values")

    def __init__(self, patterns: Iterable[tuple[str, _Value]], default: _Value | None = None) -> None:
        # No name begins with a dot: one table holds names and, by what stands behind the star, wildcards.
        self._values = {pattern.removeprefix("*"): value for pattern, value in patterns}
        self._default = default

    def find(self, name: str | None) -> _Value | None:
        """Return what a normalised name stands for, or nothing where there is no default either."""
        if name is not None:
            end, at = name, 0
            while end not in self._values:
                at = name.find(".", at + 1)
                if at < 0:
                    return self._default
                end = name[at:]
            return self._values[end]
        return self._default
