"""What the commands have in common: their help, their bounds, and that they can be stopped."""

import argparse
import signal
from types import FrameType

_STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose help begins with a text's first paragraph and ends with the others."""
    about, _, reading = (doc or "").partition("\n\n")
    return argparse.ArgumentParser(
        description=about, epilog=reading, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def bound(parser: argparse.ArgumentParser, options: argparse.Namespace, **most: int) -> None:
    """End with a complaint when an option that is set is not above 0, or above the most that is told for it."""
    for name, limit in most.items():
        value = getattr(options, name)
        if value is not None and not 0 < value <= limit:
            parser.error(f"--{name} has to be above 0 and at most {limit}")


def stop_after(seconds: int) -> None:
    """Raise KeyboardInterrupt, which says why, on the first SIGINT or SIGTERM, or when time is up."""

    def stop(number: int, _frame: FrameType | None) -> None:
        for each in _STOPS:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}")

    for each in _STOPS:
        signal.signal(each, stop)
    signal.alarm(seconds)  # whatever happens, it does not hang
