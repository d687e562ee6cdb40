"""Count what each client has, and how often it comes.

Rule: a try that is refused costs nothing; what is known of a client is forgotten when it says nothing any more.
"""

from collections import OrderedDict
from typing import Final

from veillink.limits import ClientKey, Rate

MAX_CLIENTS: Final = 100_000
# Forgotten with each client that comes, at most: more than one, so that they get fewer, and not all of 100,000 at once.
_FORGET: Final = 100
# Of a token: what rounding may take away.
_TRACE: Final = 0.001


class Bucket:
    """A token bucket, as one number: when it will be full, in monotonic seconds.

    It outlives its rate: after a change what is missing is at most all that the new one has room for.
    """

    __slots__ = ("full_at",)

    def __init__(self) -> None:
        self.full_at = float("-inf")

    def delay(self, rate: Rate, now: float) -> float:
        """Return the seconds until there is a token, 0 if there is one.

        Args:
            rate: what comes in; it is not off.
            now: monotonic seconds.
        """
        if self.full_at <= now:
            return 0.0
        self.full_at = min(self.full_at, now + rate.room / rate.per_second)
        missing = (self.full_at - now) * rate.per_second - rate.room + 1
        return missing / rate.per_second if missing > _TRACE else 0.0

    def take(self, rate: Rate, now: float) -> None:
        """Take a token; ``delay`` has said that there is one."""
        self.full_at = max(self.full_at, now) + 1 / rate.per_second


class Client(Bucket):
    """What is known of one client.

    Args:
        key: who it is.
        form: the number of the limits that it was measured by last.
    """

    __slots__ = ("connections", "form", "key")

    def __init__(self, key: ClientKey, form: int) -> None:
        super().__init__()
        self.key = key
        self.form = form
        self.connections = 0


class ClientLimits:
    """What each client of a rule may have, from reload to reload.

    Args:
        most: connections of a client at a time; 0 is no limit.
        rate: how often it may come; 0 is no limit.
        capacity: how many clients are remembered.
    """

    def __init__(self, most: int, rate: Rate, capacity: int = MAX_CLIENTS) -> None:
        self._most = most
        self._rate = rate
        self._capacity = capacity
        self._form = 0
        self._full_by = float("inf")
        # Each in the order in which they were heard of last.
        self._present: OrderedDict[ClientKey, Client] = OrderedDict()
        self._silent: OrderedDict[ClientKey, Client] = OrderedDict()

    def __len__(self) -> int:
        return len(self._present) + len(self._silent)

    def change(self, most: int, rate: Rate, now: float) -> None:
        """Go on with other limits; nobody who is there is sent away.

        Each client learns of them when it is its turn: telling 100,000 of them took the loop 0.3 s.

        Args:
            most: as above.
            rate: as above.
            now: monotonic seconds.
        """
        if (most, rate) != (self._most, self._rate):
            self._most, self._rate = most, rate
            self._form += 1
            self._full_by = now + (rate.room / rate.per_second if rate else 0.0)

    def _measure(self, client: Client) -> None:
        """Measure a client by the limits of now, under which its bucket has been filling since they came."""
        if client.form != self._form:
            client.form = self._form
            client.full_at = min(client.full_at, self._full_by)

    def admit(self, key: ClientKey, now: float) -> Client | None:
        """Return a client that may come in, and has one connection more until ``release``; else ``None``.

        Args:
            key: ``client_key`` of its host.
            now: monotonic seconds.
        """
        self.forget(now)
        client = self._present.get(key) or self._silent.get(key) or Client(key, self._form)
        self._measure(client)
        refused = bool(self._most) and client.connections >= self._most
        if refused or (self._rate and client.delay(self._rate, now)):
            (self._present if client.connections else self._silent).move_to_end(key)
            return None
        if self._rate:
            client.take(self._rate, now)
        client.connections += 1
        self._silent.pop(key, None)
        self._present[key] = client
        self._present.move_to_end(key)
        if len(self) > self._capacity:
            (self._silent or self._present).popitem(last=False)
        return client

    def release(self, client: Client, now: float) -> None:
        """Note that a connection of a client's has ended.

        Args:
            client: what ``admit`` has returned.
            now: monotonic seconds.
        """
        client.connections -= 1
        if client.connections or self._present.get(client.key) is not client:  # it had to go for others
            return
        del self._present[client.key]
        if client.full_at > now:
            self._silent[client.key] = client

    def forget(self, now: float) -> None:
        """Forget some clients that say nothing any more.

        Args:
            now: monotonic seconds.
        """
        for _ in range(_FORGET):
            if not self._silent:
                break
            client = next(iter(self._silent.values()))
            self._measure(client)
            if client.full_at > now:
                break
            self._silent.popitem(last=False)

    def on_tick(self, now: float) -> bool:
        """Forget some though nobody comes any more; return whether there are others."""
        self.forget(now)
        return bool(self._present or self._silent)
