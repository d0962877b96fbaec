"""Remembered peers: written whole, read leniently, never worth an error."""

import json

from p2ptrain.net.identity import peer_id_of
from p2ptrain.net.peerstore import KEPT_PEERS, load_peers, save_peers

PEERS = {peer_id_of(bytes([n]) * 32): (f"/ip4/203.0.113.{n}/tcp/1",) for n in range(1, 4)}


def test_peers_come_back_in_their_order(tmp_path):
    path = tmp_path / "deep" / "peers.json"
    save_peers(path, PEERS)
    assert list(load_peers(path).items()) == list(PEERS.items())
    assert [file.name for file in path.parent.iterdir()] == ["peers.json"]


def test_several_places_of_a_peer_stay_together(tmp_path):
    peer, places = peer_id_of(bytes(32)), ("/ip4/127.0.0.1/tcp/1", "/ip6/::1/tcp/1")
    save_peers(tmp_path / "peers", {peer: places})
    assert load_peers(tmp_path / "peers") == {peer: places}


def test_a_damaged_file_is_an_empty_one(tmp_path):
    path = tmp_path / "peers"
    for content in ("", "{", "7", json.dumps(["nonsense", 5, None])):
        path.write_text(content)
        assert load_peers(path) == {}
    assert load_peers(tmp_path / "missing") == load_peers(None) == {}


def test_only_the_most_recent_are_kept(tmp_path):
    many = {
        peer_id_of(n.to_bytes(32, "big")): ("/ip4/203.0.113.1/tcp/1",)
        for n in range(KEPT_PEERS + 10)
    }
    save_peers(tmp_path / "peers", many)
    assert list(load_peers(tmp_path / "peers")) == list(many)[-KEPT_PEERS:]


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    save_peers(tmp_path / "file" / "peers", PEERS)
    assert "not remembered" in caplog.text
    save_peers(None, PEERS)
