"""Choose a target for a connection, and keep the account of who can be chosen.

Rule: a target that is out is chosen only when every other one is out too; a connection counts from its choice on.
"""

import hashlib
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

from veillink.credentials import ClientTls
from veillink.model import Address, Balance, Health, Rule, SendProxy

_NOBODY: Final[Mapping[Address, "Member"]] = {}


class Member:
    """What is known of one target at one address, from reload to reload.

    ``address``: host and port, as the rules have it. ``active``: its connections, those being connected included.
    ``connected``: when one last was, in monotonic seconds; ``answered``: when the last was that has brought a byte.
    ``send_proxy``: the header that it is sent. ``tls``: how it is spoken to in TLS, if it is.
    ``down``: it does not answer its probes. ``failing``: it was taken out
    for failed connects, and has served nobody since.
    """

    __slots__ = (
        "_counts_failures",
        "_failures",
        "_out_since",
        "_probes",
        "_since",
        "active",
        "address",
        "answered",
        "connected",
        "down",
        "failing",
        "send_proxy",
        "tls",
    )

    def __init__(self, address: Address) -> None:
        self.address = address
        self.active = 0
        self.connected = self.answered = float("-inf")
        self.down = False
        self.failing = False
        self.send_proxy = SendProxy.OFF
        self.tls: ClientTls | None = None
        self._counts_failures = True
        self._failures = 0
        self._since = self._out_since = float("-inf")
        self._probes = 0  # in a row that speak against its state

    @property
    def speaks_first(self) -> bool:
        """Whether something has to be said to it before the client's bytes."""
        return self.tls is not None or self.send_proxy is not SendProxy.OFF

    @property
    def up(self) -> bool:
        """Whether nothing speaks against it."""
        return not (self.down or self.failing)

    def is_out(self, now: float, window: float) -> bool:
        """Return whether it gets no connection while there are others: for ``window`` seconds, if it is failing."""
        return self.down or (self.failing and now - self._out_since <= window)

    def leave(self) -> None:
        """Give up the place that ``Pool.choose`` has taken."""
        self.active -= 1

    def try_again(self, now: float) -> None:
        """If it is failing, give it one connection to prove itself, and others only after that."""
        self._out_since = now

    def heed(self, *, failures: bool, probes: bool) -> None:
        """Forget what does not count any more. Connections from before a reload heed that too."""
        self._counts_failures = failures
        self.failing = self.failing and failures
        self.down = self.down and probes

    def count_failure(self, now: float, most: int, window: float) -> bool:
        """Count a failure at ``now`` (monotonic seconds), and return whether that has taken it out.

        Args:
            now: when it was.
            most: so many within the window take it out.
            window: seconds.
        """
        if not self._counts_failures:
            return False
        if now - self._since > window:
            self._since, self._failures = now, 0
        self._failures += 1
        if not self.failing and self._failures < most:
            return False
        was_up, self.failing, self._out_since = self.up, True, now
        return was_up

    def count_success(self) -> bool:
        """Count a connection that was served, and return whether that has brought it back.

        Failures before it are forgotten if they had taken it out.
        """
        was_failing = self.failing
        if was_failing:
            self.failing = False
            self._failures = 0
        return was_failing and self.up

    def count_probe(self, *, good: bool, rise: int, fall: int) -> bool:
        """Count a probe, and return whether that has taken it out or brought it back.

        Args:
            good: whether it has answered.
            rise: so many good ones in a row bring it back.
            fall: so many bad ones in a row take it out.
        """
        if good != self.down:
            self._probes = 0
            return False
        self._probes += 1
        if self._probes < (rise if good else fall):
            return False
        was_up = self.up
        self._probes, self.down = 0, not good
        if good:
            self.count_success()
        return self.up is not was_up


class Pool:
    """The targets of one rule.

    Args:
        rule: whose they are.
        random: returns a number from 0 up to 1.
        known: members of the rule's last form; those that stay keep their state.
    """

    def __init__(self, rule: Rule, random: Callable[[], float], known: Mapping[Address, Member] = _NOBODY) -> None:
        self._rule = rule
        self._random = random
        self._weights = [target.weight for target in rule.targets]
        self._credit = [0] * len(rule.targets)
        usable = sum(weight > 0 for weight in self._weights)
        counts_failures = bool(rule.options.max_fails) and usable != 1
        self._tries = min(usable, rule.options.retries + 1)
        self.members: dict[Address, Member] = {}
        self._at: list[list[Member]] = []
        for offset in range(rule.ports):
            addresses = [target.at(offset) for target in rule.targets]
            self._at.append([self.members.setdefault(a, known.get(a) or Member(a)) for a in addresses])
            for target, member in zip(rule.targets, self._at[-1], strict=True):
                member.send_proxy, member.tls = target.send_proxy, target.tls
        for member in self.members.values():
            member.heed(failures=counts_failures, probes=rule.options.health is not Health.OFF)
        for address in known.keys() - self.members.keys():
            known[address].heed(failures=False, probes=False)

    def choose(self, offset: int, client: str, now: float, tried: Collection[Member]) -> Member | None:
        """Return the next target for a connection, or ``None`` when there is none left.

        It is one of the target's connections from now on, until ``Member.leave``.

        Args:
            offset: of the listener in the rule's range.
            client: the host it comes from.
            now: monotonic seconds.
            tried: those that this connection has tried in vain.
        """
        if len(tried) >= self._tries:
            return None
        members = self._at[offset]
        if len(members) == 1:
            chosen = members[0]
        else:
            best = self._best(members, now, tried)
            if not best:  # rows that differ in the range they map may lead to one address
                return None
            chosen = members[best[0] if len(best) == 1 else self._pick(best, members, client)]
        chosen.try_again(now)
        chosen.active += 1
        return chosen

    def untried(self, tried: Collection[Member]) -> int:
        """Return how many targets a connection that has tried these can still try."""
        return self._tries - len(tried)

    def count_failure(self, member: Member, now: float) -> bool:
        """Count a failure, and return whether that has taken the target out. A lone one never is."""
        return member.count_failure(now, self._rule.options.max_fails, self._rule.options.fail_timeout)

    def _best(self, members: Sequence[Member], now: float, tried: Collection[Member]) -> list[int]:
        """Return the numbers of those to choose from: not out before out, primary before backup."""
        window = self._rule.options.fail_timeout
        best: list[int] = []
        rank = 4
        for number, (target, member) in enumerate(zip(self._rule.targets, members, strict=True)):
            if not target.weight or member in tried:
                continue
            its_rank = 2 * member.is_out(now, window) + target.backup
            if its_rank < rank:
                rank, best = its_rank, [number]
            elif its_rank == rank:
                best.append(number)
        return best

    def _pick(self, best: list[int], members: Sequence[Member], client: str) -> int:
        match self._rule.options.balance:
            case Balance.ROUND_ROBIN:
                return self._in_turn(best)
            case Balance.LEAST_CONNECTIONS:
                loads = [members[number].active / self._weights[number] for number in best]
                least = min(loads)
                return self._in_turn([number for number, load in zip(best, loads, strict=True) if load == least])
            case Balance.RANDOM:
                one = self._draw(best)
                other = self._draw([number for number in best if number != one])
                return min(one, other, key=lambda number: members[number].active / self._weights[number])
            case Balance.SOURCE:
                return max(best, key=lambda number: _score(client, members[number].address, self._weights[number]))

    def _in_turn(self, best: Sequence[int]) -> int:
        """Return the next by smooth weighted round robin, as nginx does it.

        Each earns its weight, the richest pays the sum: weights 3 and 1 give a a b a, and exactly 300 and 100 of 400.
        """
        for number in best:
            self._credit[number] += self._weights[number]
        chosen = max(best, key=self._credit.__getitem__)
        self._credit[chosen] -= sum(self._weights[number] for number in best)
        return chosen

    def _draw(self, best: Sequence[int]) -> int:
        """Return one at random, by weight."""
        left = self._random() * sum(self._weights[number] for number in best)
        for number in best:
            left -= self._weights[number]
            if left < 0:
                return number
        return best[-1]


def _score(client: str, address: Address, weight: int) -> float:
    """Return how much a client is drawn to a target (weighted rendezvous hashing, Thaler and Ravishankar 1998).

    It depends on nothing else, so a target that comes or goes moves only its own share of the clients.
    """
    digest = hashlib.blake2b(f"{client} {address}".encode(errors="surrogateescape"), digest_size=8).digest()
    return weight / -math.log((int.from_bytes(digest) + 0.5) / 2**64)
