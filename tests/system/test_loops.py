"""Rules that lead back to themselves, as only the network knows: one client must not take every connection."""

import pytest

from .conftest import Start
from .harness import eventually, free_port
from .namespace import Network

OWN = "10.9.9.1"  # an address of this host that the rules do not show to be one


@pytest.mark.parametrize("workers", [0, 2])
def test_a_client_that_comes_round_by_an_address_of_this_host_is_reset(
    workers: int, network: Network, start: Start
) -> None:
    network.run("ip", "address", "add", f"{OWN}/32", "dev", "lo")
    other = free_port()
    rows = f"{{port}},{OWN},{other},name=first\n{other},{OWN},{{port}},name=second\n"
    veillink = start(rows, *(("--workers=2",) if workers else ()))
    for _ in range(5):
        with pytest.raises(ConnectionResetError):
            veillink.heard(host=OWN)
    eventually(lambda: '"loop"' in veillink.output, what="an ending")
    lines = veillink.access(10 if workers else 15)
    ends = {line["end"] for line in lines}
    # Another worker may have reset the next round's connection before this one sees that it was connected.
    assert ends - {"connect_failed"} == {"loop", "target_reset"}
    warning = veillink.logged("a connection of our own")[0]
    assert warning["way"].count(" -> ") == 2
    assert warning["rule"] in ("first", "second")
    assert workers or len(lines) == 15
