"""Start VeilLink: ``python -m veillink`` and the ``veillink`` command."""

import os
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code."""
    # Until the daemon heeds signals, Ctrl+C ends the program as TERM does, without a traceback from half-done imports,
    # and there is nothing to reload or to show yet. Those that only a master heeds would end or stop any other process.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for number in (signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_IGN)
    if os.getpid() == 1:  # which has no default action (signal(7)): a stop would be lost for 0.1 s of imports
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: os._exit(0))
    from veillink.cli import main as run

    sys.exit(run())


if __name__ == "__main__":
    main()
