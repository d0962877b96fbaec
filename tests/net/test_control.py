"""libp2p's reasons, as a person reads them."""

import asyncio

import pytest

from p2ptrain.errors import LinkError
from p2ptrain.net.control import Control, plain_reason

DIAL = "Connect failed. msg=failed to dial: failed to dial 12D3Koo: all dials failed\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            DIAL + "  * [/ip4/127.0.0.1/tcp/9] dial tcp4 127.0.0.1:9: connect: connection refused",
            "connection refused: nothing listens there",
        ),
        (
            DIAL + "  * [/ip4/1.1.1.1/tcp/9] dial backoff\n  * [/ip4/2.2.2.2/tcp/9] i/o timeout",
            "no answer: a firewall, or a wrong address",
        ),
        (
            DIAL + "  * [/ip4/1.1.1.1/tcp/9] failed to negotiate: peer id mismatch: expected a",
            "another peer answers there: the /p2p/ part is not its id",
        ),
        (DIAL + "  * [/ip4/1.1.1.1/tcp/9] dial backoff", "failed a moment ago"),
        ("Connect failed. msg=routing: not found", "nobody knows its address"),
        ("Connect failed. msg=something\nnew", "something new"),
        ("", "p2pd is gone"),
    ],
)
def test_a_reason_is_one_line_that_says_what_to_look_at(text, reason):
    assert plain_reason(text).startswith(reason)
    assert "\n" not in plain_reason(text)


@pytest.mark.asyncio
async def test_a_daemon_that_is_not_there_is_a_link_error(tmp_path):
    control = Control(path=tmp_path / "none", listen_path=tmp_path / "mine")
    with pytest.raises(LinkError):
        await control.identify()


@pytest.mark.net
@pytest.mark.asyncio
async def test_a_daemon_that_hangs_is_a_link_error_within_the_deadline(tmp_path):
    closed = asyncio.Event()

    async def swallow(reader, writer) -> None:
        await reader.read()  # until the asker gives up
        writer.close()
        closed.set()

    async with await asyncio.start_unix_server(swallow, tmp_path / "deaf"):
        control = Control(path=tmp_path / "deaf", listen_path=tmp_path / "mine")
        with pytest.raises(LinkError, match="no answer in 0 s"):
            await control.identify(deadline=0.05)
        await closed.wait()
