"""The names we use of hivemind, imported in one place.

Intuition: hivemind is untyped, loads torch, and warns while it loads. Here that cost is
paid once and in sight; every other module of ``net/`` gets its names from here, and
whoever must start fast (the command's ``--help``, supervisors) imports no module that
imports this one: measured 3 to 5 s and 280 MB.

Invariant: only what runs in our own event loop is listed. ``hivemind.DHT``, the averager
and the optimizer fork processes and stay out.

Refused: importing hivemind inside functions, which hides the same cost at a worse moment.
"""

from __future__ import annotations

import logging
import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # deprecations inside torch and hivemind, not ours to mend
    from hivemind.dht.node import DHTNode
    from hivemind.dht.routing import DHTID
    from hivemind.dht.storage import DictionaryDHTValue
    from hivemind.dht.validation import DHTRecord, RecordValidatorBase
    from hivemind.p2p import P2P, PeerID
    from hivemind.p2p.p2p_daemon_bindings.utils import (
        P2PDaemonError,
        P2PHandlerError,
        raise_if_failed,
        read_pbmsg_safe,
        write_pbmsg,
    )
    from hivemind.proto import dht_pb2, p2pd_pb2
    from hivemind.utils.logging import use_hivemind_log_handler
    from hivemind.utils.multiaddr import Multiaddr

# hivemind installs a coloured handler of its own when loaded; one program, one log format.
use_hivemind_log_handler("nowhere")
logging.addLevelName(logging.WARNING, "WARNING")  # it abbreviates that for everybody
# Its DHT logs every unreachable node as a warning; the directory reports what matters.
logging.getLogger("hivemind").setLevel(logging.ERROR)

__all__ = [
    "DHTID",
    "P2P",
    "DHTNode",
    "DHTRecord",
    "DictionaryDHTValue",
    "Multiaddr",
    "P2PDaemonError",
    "P2PHandlerError",
    "PeerID",
    "RecordValidatorBase",
    "dht_pb2",
    "p2pd_pb2",
    "raise_if_failed",
    "read_pbmsg_safe",
    "write_pbmsg",
]
