"""What every codec takes on the wire and of the processor, and how far it is off.

    python -m benchmarks.codecs [--width D] [--tokens M] [--vocabulary V] [--device cuda] [-o FILE]

Bytes are of whole frames as they leave (header, message, path, token ids, payload) at the last
boundary of 4 stages, where the path is longest; ratios against the same microbatch in bf16 and in
fp32. Times are processor time of one thread, on a GPU the wall's until all is done and copied, the
best of several, per MB (2^20 bytes) of the fp32 tensor that the codec was given: for a bottleneck
that is the latent of k values, else all d.

Errors are relative to what tells tokens apart (channel means taken out), on values drawn like a
residual stream's: channels with means, one in a hundred ten times as large, tokens of unequal
size. Forward rounds to nearest, backward with noise, so its error is larger and its mean right.

``share`` is of a stage's own time: one layer of a Llama of this width, computed forward and
backward for the same microbatch on the same thread, beside the four codec calls that belong to it.
The loss that a codec costs is benchmarks/losses.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec
import torch

from benchmarks import record
from p2ptrain.compute.codecs import CodecContext, codec_at, encoded
from p2ptrain.compute.device import arithmetic_class, choose_device, make_deterministic
from p2ptrain.compute.stage import StageState
from p2ptrain.core.agreement import Position
from p2ptrain.core.sizes import boundary_width, microbatch_token_bytes, nominal_tokens
from p2ptrain.errors import RunSpecError
from p2ptrain.run import Batch, Codec, Cut, Limits, Model, RunSpec, resolved, validate
from p2ptrain.run.codecs import NAMES, composition_of
from p2ptrain.run.frames import bf16_bytes
from p2ptrain.units import Chain, Microbatch, PeerId, Slot, Stage, Step
from p2ptrain.wire.framing import DataFrame
from p2ptrain.wire.messages import Forward, Gradient

if TYPE_CHECKING:
    from collections.abc import Callable

    from p2ptrain.core.sizes import Direction
    from p2ptrain.ports import Buffer

STAGES, BOUNDARY = 4, 2
STEP = Step(1000)
WORK = Microbatch(STEP, Slot(9))
CPU = torch.device("cpu")
REPEATS, COMPUTE_REPEATS = 20, 2
HOT_SHARE = 0.01  # of channels


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One codec, in one direction."""

    codec: str
    direction: str
    width: int
    bits: int
    frame_bytes: int
    bytes_per_token: float
    ratio_vs_bf16: float
    ratio_vs_fp32: float
    encode_ms_per_mb: float
    decode_ms_per_mb: float
    milliseconds: float
    error: float


def spec_of(name: str, *, width: int, tokens: int, vocabulary: int) -> RunSpec:
    """A Llama of this width, cut into STAGES, with the codec ``name`` at every boundary."""
    model = Model(
        vocab_size=vocabulary,
        d_model=width,
        n_layers=STAGES,
        n_heads=width // 64,
        n_kv_heads=width // 64,
        d_ff=4 * width,
        context=min(tokens, 1024),
    )
    spec = RunSpec(
        model=model,
        cut=Cut(stages=STAGES),
        batch=Batch(sequences=tokens // model.context),
        codec=Codec(name=name),
        limits=Limits(retained_bytes=1 << 40),
    )
    return validate(resolved(spec))


def measure(
    spec: RunSpec, direction: Direction, device: torch.device = CPU, *, repeats: int = REPEATS
) -> Row:
    """Bytes, time and error of what crosses the last boundary in one direction."""
    composition = composition_of(spec, BOUNDARY)
    codec = codec_at(composition, direction, STEP)
    rows, width = nominal_tokens(spec), boundary_width(spec, BOUNDARY)
    context = CodecContext(
        seed=0, step=WORK.step, slot=WORK.slot, boundary=BOUNDARY, direction=direction
    )
    x_rk = values(rows, width).to(device)
    blob, decoded_rk = encoded(codec, x_rk, context), torch.empty_like(x_rk)
    encoding = best_seconds(lambda: encoded(codec, x_rk, context), device, repeats=repeats)
    decoding = best_seconds(lambda: codec.decode_into(blob, decoded_rk), device, repeats=repeats)
    off_rk = decoded_rk - x_rk
    sent = frame(spec, direction, blob).frame_bytes
    megabytes = x_rk.numel() * x_rk.element_size() / 2**20
    levels = composition.forward if direction == "forward" else composition.backward
    return Row(
        codec=spec.codec.name,
        direction=direction,
        width=width,
        bits=levels[-1][1],
        frame_bytes=sent,
        bytes_per_token=sent / rows,
        ratio_vs_bf16=bf16_bytes(spec) / sent,
        ratio_vs_fp32=2 * bf16_bytes(spec) / sent,
        encode_ms_per_mb=1000 * encoding / megabytes,
        decode_ms_per_mb=1000 * decoding / megabytes,
        milliseconds=1000 * (encoding + decoding),
        error=float(off_rk.norm() / (x_rk - x_rk.mean(0)).norm()),
    )


def frame(spec: RunSpec, direction: Direction, payload: Buffer) -> DataFrame:
    """The frame that carries ``payload`` over the last boundary."""
    at = Position(epoch=0, step=STEP, chain=Chain(bytes(32)))
    if direction == "backward":
        return DataFrame(Gradient(at=at, slot=WORK.slot, stage=Stage(BOUNDARY)), [payload])
    peer = PeerId("1" * 52)
    message = Forward(
        at=at,
        slot=WORK.slot,
        stage=Stage(BOUNDARY + 1),
        attempt=0,
        replay=False,
        path=(peer,) * (BOUNDARY + 1),
    )
    return DataFrame(message, [bytes(microbatch_token_bytes(spec)), payload])


def values(rows: int, width: int) -> torch.Tensor:
    """Like a residual stream: see above."""
    generator = torch.Generator().manual_seed(0)
    x_rk = torch.randn(rows, width, generator=generator)
    x_rk *= torch.randn(rows, 1, generator=generator).mul(0.5).exp()
    hot_k = torch.rand(width, generator=generator) < HOT_SHARE
    x_rk[:, hot_k] *= 10
    return x_rk + 2 * torch.randn(width, generator=generator)


def stage_seconds(spec: RunSpec, device: torch.device = CPU) -> float:
    """A layer forward and backward for one microbatch, codec calls included."""
    plain = msgspec.structs.replace(spec, codec=Codec(name="none"))
    seat = StageState(plain, Stage(1), device, kept_graph_bytes=1 << 40)
    tokens = bytes(microbatch_token_bytes(plain))
    rows, work = nominal_tokens(plain), Microbatch(seat.version, WORK.slot)
    given = values(rows, plain.model.d_model).mul(0.1).numpy().tobytes()

    def up_and_down() -> None:
        seat.forward(work, tokens, given)
        seat.backward(work, tokens, given, given)

    return best_seconds(up_and_down, device, repeats=COMPUTE_REPEATS)


def best_seconds(
    call: Callable[[], object], device: torch.device = CPU, *, repeats: int = REPEATS
) -> float:
    """Least time of ``repeats`` calls after one that warms up: see above what is counted."""
    clock = time.thread_time
    if device.type == "cuda":

        def clock() -> float:
            torch.cuda.synchronize(device)
            return time.perf_counter()

    call()
    found = []
    for _ in range(repeats):
        began = clock()
        call()
        found.append(clock() - began)
    return min(found)


@click.command()
@click.option("--width", default=1024, show_default=True, help="d_model, a multiple of 64.")
@click.option("--tokens", default=2048, show_default=True, help="Of a microbatch.")
@click.option("--vocabulary", default=256, show_default=True, help="Its ids ride along.")
@click.option("--device", "named", default="cpu", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Default: results/.")
def main(*, width: int, tokens: int, vocabulary: int, named: str, output: Path | None) -> None:
    """Measure every codec that fits a model of this width."""
    commit, load = record.source_commit(), record.load()
    device = choose_device(named, RunSpec())
    make_deterministic(device, 1)
    rows: list[Row] = []
    refused: dict[str, str] = {}
    for name in dict.fromkeys(NAMES):
        try:
            spec = spec_of(name, width=width, tokens=tokens, vocabulary=vocabulary)
        except RunSpecError as error:
            refused[name] = str(error)
            continue
        rows += (measure(spec, way, device) for way in ("forward", "backward"))
    plain = spec_of("none", width=width, tokens=tokens, vocabulary=vocabulary)
    computing = stage_seconds(plain, device)
    share = {
        name: sum(row.milliseconds for row in rows if row.codec == name) / 1000 / computing
        for name in dict.fromkeys(row.codec for row in rows)
    }
    for row in rows:
        click.echo(line(row))
    for name, part in share.items():
        click.echo(f"{name}: {part:.3%} of a layer's {1000 * computing:.1f} ms")
    for name, why in refused.items():
        click.echo(f"{name}: {why}")
    result = {
        "device": arithmetic_class(RunSpec(), device, 1),
        "width": width,
        "tokens": tokens,
        "vocabulary": vocabulary,
        "layer_seconds": computing,
        "share": share,
        "rows": [asdict(row) for row in rows],
        "refused": refused,
        "load": [load, record.load()],
    }
    click.echo(record.write(f"codecs-{named}-{width}", result, commit=commit, path=output))


def line(row: Row) -> str:
    """A row of the table on the screen."""
    return (
        f"{row.codec:>6} {row.direction:<8} k {row.width:>4} x {row.bits:>2} bits: "
        f"{row.bytes_per_token:8.2f} B/token, {row.ratio_vs_bf16:6.1f}x bf16, "
        f"{row.ratio_vs_fp32:6.1f}x fp32, encode {row.encode_ms_per_mb:5.2f} and decode "
        f"{row.decode_ms_per_mb:5.2f} ms/MB, error {row.error:.4f}"
    )


if __name__ == "__main__":
    main()
