"""Peers remembered over restarts: a small JSON file of ids and places.

Intuition: a bootstrap that died must not keep out a peer that has been here before.

Invariants: written whole or not at all; a damaged or missing file is an empty one, and a
full disk costs only the memory, never the run. Nothing in it is trusted: libp2p checks who
answers at a place.

Refused: a database; a few hundred lines that are rewritten now and then need none.
"""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Final

from p2ptrain.net.addresses import parse_peer_address

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from p2ptrain.units import PeerId

log = logging.getLogger(__name__)

KEPT_PEERS: Final = 512  # the most recent; one living suffices to join again


def save_peers(path: Path | None, peers: Mapping[PeerId, tuple[str, ...]]) -> None:
    """Write ``peers`` (id to places, most recent last); None as path does nothing."""
    if path is None or not peers:
        return
    lines = [f"{place}/p2p/{peer}" for peer, places in peers.items() for place in places]
    unfinished = path.with_name(path.name + ".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished.write_text(json.dumps(lines[-KEPT_PEERS:], indent=0))
        unfinished.rename(path)
    except OSError as error:
        log.warning("peers are not remembered in %s: %s", path, error)


def load_peers(path: Path | None) -> dict[PeerId, tuple[str, ...]]:
    """What ``save_peers`` wrote; lines that are no addresses are passed over."""
    if path is None:
        return {}
    try:
        lines = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    peers: dict[PeerId, tuple[str, ...]] = {}
    for line in lines if isinstance(lines, list) else []:
        try:
            address = parse_peer_address(str(line))
        except ValueError:
            continue
        peers[address.peer] = (*peers.get(address.peer, ()), address.place)
    return peers
