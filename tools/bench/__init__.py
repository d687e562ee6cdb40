"""Compare VeilLink with other TCP proxies, side by side on loopback.

Each proxy has CPU 0 to itself, load and backend share CPU 1. A measure is: start the backend, start one proxy in
front of it, load it, read what that cost, end both. A round takes every measure of every proxy; figures are medians
over the rounds, with minimum and maximum.

  bulk1, bulk8    streams that send as fast as they can: CPU seconds per 10⁹ bytes, Gbit/s
  keep1, keep50, keep500
                  HTTP over so many connections that stay: CPU µs per request, requests a second, latency
  close           HTTP with a connection for each request, 50 at once: CPU µs per connection
  idle            connections that say a word and stay: what the proxy's memory grows by for each. Then 2,000
                  connects in a tight loop through VeilLink, and whether a listen queue overflowed
  tls_down, tls_up, tls_keep50, tls_idle
                  the same where the proxy terminates TLS (P-256), with one stream to the client or from it
  tls_p256, tls_rsa2048, tls_resumed
                  connections one after another with a full handshake, or with a session resumed, a word and an end
                  in order: CPU µs per connection

CPU is user and system time of the proxy and its children. "busy" is its share of the core: far below 100 %, something
else was the limit, mostly the load; "direct" is the load without a proxy. No proxy but "veillink-log" writes a line for
each connection. Only figures of one run compare, and only on a quiet machine. `taskset -c 2,4 scripts/bench` takes
CPUs 2 and 4 instead. HTTP needs wrk and nginx. A run of everything takes a quarter of an hour.
"""
