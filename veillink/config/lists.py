"""The bytes of a list file in, its networks and every problem out.

Rule: whatever the bytes, nothing is raised; a list with a problem is for the caller to refuse whole.
"""

import codecs

from veillink.config.networks import parse_network
from veillink.config.rows import MAX_FILE, MAX_PROBLEMS, Problem
from veillink.limits import Network


def parse_list(data: bytes) -> tuple[list[Network], list[Problem]]:
    """Return the networks of a file that has one a line, and what is wrong, with the number of the line.

    ``#`` begins a comment, also behind an entry. A list without a line is a problem: whoever truncates a file to write
    it anew would let everybody in meanwhile. One that holds a comment and no entry was meant to be empty.

    Args:
        data: the file's, in UTF-8, with any line ends, and with a byte order mark or without.
    """
    if len(data) > MAX_FILE:
        return [], [Problem(0, 0, f"the list is larger than {MAX_FILE >> 20} MiB")]
    networks: list[Network] = []
    problems: list[Problem] = []
    commented = False
    for number, raw in enumerate(data.removeprefix(codecs.BOM_UTF8).splitlines(), 1):
        entry, comment, _ = raw.partition(b"#")
        commented = commented or bool(comment)
        text = entry.strip().decode(errors="replace")
        if text:
            try:
                networks.append(parse_network(text))
            except ValueError as error:
                problems.append(Problem(number, 0, str(error)))
                if len(problems) == MAX_PROBLEMS:
                    break
    if not (networks or problems or commented):
        problems.append(Problem(0, 0, "the list is empty; one that is meant to be has a comment, like # nobody"))
    return networks, problems
