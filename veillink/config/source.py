"""Read the rules' file.

Rule: nothing but a regular file is ever read, and one that cannot be read is a problem like any other.
"""

import errno
from typing import Final

from veillink.config.assets import with_assets
from veillink.config.files import read_regular
from veillink.config.rows import MAX_FILE, Problem
from veillink.config.rules import Parsed, parse
from veillink.model import RuleOptions

# Errors that stay until the file or its path is another one, which is seen; any other may pass by itself.
_LASTING: Final = frozenset(
    (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.EINVAL, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO)
)


def read_rules(path: str, defaults: RuleOptions) -> Parsed:
    """Read and parse the rules' file. A file that cannot be read is a problem like any other.

    Args:
        path: of a regular file of at most ``rows.MAX_FILE`` bytes.
        defaults: for what the file leaves open.
    """
    try:
        return load(path, defaults)
    except (OSError, ValueError) as error:
        return unreadable(error)


def load(path: str, defaults: RuleOptions) -> Parsed:
    """Read and parse the rules' file.

    Raises:
        OSError: it cannot be read, or is not regular.
        ValueError: the path holds a NUL.
    """
    found = with_assets(parse(read_regular(path, MAX_FILE + 1), defaults, path), path)
    if not (found.rules.rules or found.problems):
        return found._replace(problems=(Problem(0, 0, "has no rule"),))
    return found


def unreadable(error: Exception) -> Parsed:
    """Return what a file says that cannot be read."""
    return Parsed(problems=(Problem(0, 0, f"cannot be read: {getattr(error, 'strerror', None) or error}"),))


def may_pass(error: Exception) -> bool:
    """Return whether the same file may be read later, for all that is known."""
    return not (isinstance(error, ValueError) or (isinstance(error, OSError) and error.errno in _LASTING))
