"""bootstrap, peer, status: what is refused before anything is imported, and what is asked."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from p2ptrain import cli
from p2ptrain.cli.serving import PeerFlags, wanted_run, wanted_stage
from p2ptrain.errors import UserError
from p2ptrain.run import RunSpec, digest, to_toml
from p2ptrain.units import Stage
from peers import peer

Refused = Callable[..., str]
SOMEBODY = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWGCk8T6QtTx9bNxdDsTDzKqdCBk8ZrSMZ5UzkWvuPuiHx"


def flags(**values: Any) -> PeerFlags:
    defaults: dict[str, Any] = dict.fromkeys(PeerFlags.__slots__)
    defaults |= {"initial_peers": (SOMEBODY,), "new_swarm": False, "sets": ()}
    return PeerFlags(**(defaults | values))


def test_a_joiner_asks_the_swarm_which_run_it_is() -> None:
    assert wanted_run(flags()) == (None, None)
    assert wanted_run(flags(run="0" * 32)) == ("0" * 32, None)


def test_a_founder_brings_a_pinned_run() -> None:
    run_id, spec = wanted_run(flags(initial_peers=(), new_swarm=True, sets=("seed=3",)))
    assert run_id is None
    assert spec is not None
    assert spec.seed == 3
    assert spec.data.root


def test_a_file_gives_the_run_also_to_a_joiner() -> None:
    Path("run.toml").write_text(to_toml(RunSpec(seed=8)))
    _, spec = wanted_run(flags(run="run.toml"))
    assert spec is not None
    assert spec.seed == 8
    assert digest(spec) != digest(RunSpec(seed=8))


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"initial_peers": ()}, "--new-swarm to begin one"),
        ({"sets": ("seed=1",)}, "--set changes a RunSpec"),
        ({"run": "0" * 32, "new_swarm": True}, "names a run that exists"),
        (
            {"run": "nowhere.toml"},
            "no such file .*, and no id of a run: .* 32 lower-case hexadecimal",
        ),
        ({"run": "0" * 31}, "no such file .*, and no id of a run: .*p2ptrain status shows them"),
        ({"run": "."}, "cannot be read"),
        ({"preset": "tiny"}, "--preset begins a run: .* --new-swarm, .* leave it out to join"),
        ({"run": "x.toml", "preset": "tiny"}, "not both"),
    ],
)
def test_contradictions_are_refused(values: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        wanted_run(flags(**values))


def test_a_stage_must_exist() -> None:
    assert wanted_stage("auto", None) is None
    assert wanted_stage("3", RunSpec()) == Stage(3)
    for text in ("4", "-1", "first"):
        with pytest.raises(UserError, match="give auto, or a number from 0 to 3"):
            wanted_stage(text, RunSpec())


def test_to_resume_one_must_say_from_where(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["peer", "--join", SOMEBODY, "--resume"]) == 2
    assert "--resume needs --checkpoint-dir D" in capsys.readouterr().err


def test_the_flags_reach_the_program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[peer.PeerOptions] = []

    def run(options: peer.PeerOptions, **_: object) -> int:
        seen.append(options)
        return 7

    monkeypatch.setattr(peer, "run", run)
    args = (
        f"peer --join {SOMEBODY} --stage 2 --max_memory 2GB --port 4001 --no-relay"
        f" --link 10mbit,5ms --checkpoint-dir {tmp_path} --device cpu --log-format json"
    )
    assert cli.run(args.split()) == 7
    [options] = seen
    assert options.stage == 2
    assert options.memory_bytes == 2 * 10**9
    assert options.network.daemon.host_maddrs == ("/ip4/0.0.0.0/tcp/4001",)
    assert options.network.daemon.use_relay is False
    assert options.network.initial_peers == (SOMEBODY,)
    assert options.network.link is not None
    assert (options.checkpoints, options.resume) == (tmp_path, False)
    assert options.identity_path == tmp_path / "home" / "p2ptrain" / "identity.key"
    assert options.log_format == "json"


@pytest.mark.parametrize(
    ("args", "key"),
    [
        ("--identity-path keys/mine", "keys/mine"),
        ("--identity-path mine --checkpoint-dir kept", "mine"),
        ("--checkpoint-dir kept", "home/p2ptrain/identity.key"),
    ],
)
def test_remembered_addresses_lie_beside_the_key_in_use(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: str, key: str
) -> None:
    seen: list[Path | None] = []

    def run(options: peer.PeerOptions, **_: object) -> int:
        seen.append(options.network.peerstore)
        return 0

    monkeypatch.setattr(peer, "run", run)
    assert cli.run(["peer", "--join", SOMEBODY, *args.split()]) == 0
    assert [tmp_path / path for path in seen if path is not None] == [
        tmp_path / f"{key}.peers.json"
    ]


def test_several_addresses_may_follow_one_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, ...]] = []

    def run(options: peer.PeerOptions, **_: object) -> int:
        seen.append(options.network.initial_peers)
        return 0

    monkeypatch.setattr(peer, "run", run)
    other = SOMEBODY.replace("/tcp/1/", "/tcp/2/")
    assert cli.run(["peer", "--initial-peers", SOMEBODY, other, "--device", "cpu"]) == 0
    assert seen == [(SOMEBODY, other)]


@pytest.mark.parametrize(
    ("args", "reason"),
    [
        ("peer", "give --initial-peers ADDRESS of a swarm to join, or --new-swarm"),
        ("peer --initial-peers /ip4/1.2.3.4", "the port is missing"),
        ("peer --initial-peers 1.2.3.4:5", "/ip4/"),
        (f"peer --join {SOMEBODY} --stage x", "give auto, or a number"),
        (f"peer --join {SOMEBODY} --link fast", "--link"),
        (f"peer --join {SOMEBODY} --device tpu", "give auto, cpu, cuda, cuda:N or mps"),
        (f"peer --join {SOMEBODY} --max-memory lots", "write it like 512MB or 16GiB"),
        (f"peer --join {SOMEBODY} --port 70000", "--port"),
        ("bootstrap --initial-peers nonsense", "nonsense"),
        ("bootstrap --port 99999", "--port"),
        ("status", "give --initial-peers ADDRESS of a bootstrap"),
        ("status --initial-peers nonsense", "nonsense"),
        ("peer --initial-peers --new-swarm", "--initial-peers needs a value, but --new-swarm"),
        ("peer --run --new-swarm", "--run needs a value, but --new-swarm follows"),
        ("bootstrap --identity-path --port 0", "--identity-path needs a value, but --port"),
        ("status --run --json", "--run needs a value, but --json follows"),
        (f"status --initial-peers {SOMEBODY} --run mine", "32 hexadecimal digits"),
        (f"peer --join {SOMEBODY} --run=", "--run is empty"),
        (f"peer --join {SOMEBODY} --identity-path=", "the path is empty"),
        (f"peer --join {SOMEBODY},{SOMEBODY}", "separate addresses by spaces"),
        (f"peer --join {SOMEBODY}/", "ends in /"),
        ("peer --join /ip4/0.0.0.0/tcp/1/p2p/" + SOMEBODY[-52:], "cannot be dialled"),
        ("peer --join /ip6/::/tcp/1/p2p/" + SOMEBODY[-52:], "cannot be dialled"),
    ],
)
def test_bad_input_is_answered_in_one_line(refused: Refused, args: str, reason: str) -> None:
    assert reason in refused(*args.split())
