"""Check how much a VeilLink can carry, over loopback.

Without --target it starts a backend (echo, sink, source) and a VeilLink in front of it, and measures through
VeilLink, then directly: "direct" is what this machine and this load generator can do, the ratio what VeilLink
leaves of it. With --target it measures what listens there, which has to lead to an echo server.

  idle     open connections and hold them: seconds to open all, VeilLink's memory for each; all must still echo
  connect  connections a second: connect and have one byte echoed (this is timed), close
  echo     round trips a second over connections held open
  bulk     Gbit/s up to the sink and down from the source, with VeilLink's CPU seconds per 10⁹ bytes;
           with --target Gbit/s of the echo, both ways at once

With --tls clients speak TLS, which ends at VeilLink; the direct way has none.

All share one machine, but VeilLink has a CPU to itself if there are two, and so has the backend if there are
three (not with --target). "cpu percent" is VeilLink's share of one core: far below 100, something else was the
limit and VeilLink could carry more. Compare figures of one run only; connect leaves thousands of TIME_WAIT
behind, which go after a minute. Every byte that comes back is compared: CORRUPT, CUT_SHORT and EOF (closed too
early) are failures as ECONNREFUSED is. ETIMEDOUT is also what was still waiting when time was up.
"""
