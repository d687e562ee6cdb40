"""Start VeilLink: ``python -m veillink`` and the ``veillink`` command."""

import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Until the daemon heeds signals, Ctrl+C ends the program as TERM does, without a traceback from half-done imports,
    # and there is nothing to reload or to show yet.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    from veillink.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
