"""What a CPU is called: one name can stand for several, whose vectors differ."""

from __future__ import annotations

import jax
import pytest

from convjax._core import cache, processor

EPYC = "processor\t: 0\nmodel name\t: AMD EPYC\nflags\t\t: fpu sse2 {flags} rdrand\n"
ARM = "processor\t: 0\nFeatures\t: fp asimd crc32\n"


@pytest.fixture
def cpuinfo(monkeypatch):
    def says(text):
        monkeypatch.setattr(processor, "_cpuinfo", lambda: text)
        monkeypatch.setattr(processor.os, "cpu_count", lambda: 2)
        processor.model.cache_clear()
        processor.vectors.cache_clear()

    yield says
    processor.model.cache_clear()
    processor.vectors.cache_clear()


@pytest.mark.parametrize(
    ("text", "vectors"),
    [
        (EPYC.format(flags="avx2 avx512f avx512_bf16"), "AVX-512"),
        (EPYC.format(flags="avx2"), "AVX2"),
        (EPYC.format(flags=""), ""),
        (ARM, "NEON"),
        ("", ""),
    ],
)
def test_the_widest_vectors_are_told(text, vectors, cpuinfo):
    cpuinfo(text)
    assert processor.vectors() == vectors


def test_measurements_hold_for_one_kind_of_processor(cpuinfo):
    cpu = jax.local_devices()[0]
    cpuinfo(EPYC.format(flags="avx2 avx512f"))
    wide = cache.device_kind(cpu)
    assert wide == "AMD EPYC, AVX-512, 2 cores"
    cpuinfo(EPYC.format(flags="avx2"))
    assert cache.device_kind(cpu) == "AMD EPYC, AVX2, 2 cores"
    assert cache.file_name(wide) != cache.file_name(cache.device_kind(cpu))


def test_tables_ship_for_the_processors_that_were_measured():
    for kind in ("AMD EPYC, AVX-512, 2 cores", "AMD EPYC, AVX2, 2 cores"):
        file = cache.resources.files("convjax._core") / "tables" / cache.file_name(kind)
        assert file.is_file()
