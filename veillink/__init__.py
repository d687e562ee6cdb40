"""VeilLink: a TCP forwarder configured with one CSV line per port.

The folders are the way of the data, and imports go down this list only::

    __main__  cli   command line, wiring, exit codes
    workers         the name by which gunicorn's own command finds the workers
    fleet/          several processes under gunicorn: launch, master, reload, worker, member, scoreboard, view
    daemon/         one process's life: process, reloader, announcements, expiry, commands, membership, supervisor
    server/         rules become listeners: server, listeners, listener, fd_budget
    admin/          what is shown: status, exposition, pages, http, console
    proxy/          ONE CONNECTION: session (the story), service, edge, tls_front, connect, introduction, relay, pump
    config/         text in, rules out: settings, source, file_source, rules, rows, options, assets, credentials
    net/            the kernel, one job each: stream, tls, client_hello, dial, resolver, listening, pipes, ticker
    stats/          ledger (every connection's account), metrics (one table), snapshot (what is shown)
    log  names text lines that never block; names that peers ask for; escaping for people
    settings        the nouns of the command line
    model           the nouns: frozen values; End, the closed list of endings
    limits          the nouns of who may come in, and how much: networks, rates
    credentials     the nouns of TLS: what is shown and asked for

A connection: ``server.listener`` accepts, ``proxy.session`` tells its story, ``proxy.connect`` and ``net.dial`` find
its target, ``proxy.relay`` moves its bytes, ``stats.ledger`` keeps its account.
A change: ``config.source`` sees it, ``rows`` and ``rules`` read it, ``RuleSet.diff`` compares, ``server.apply`` swaps.
"""

__version__ = "1.0.0"
