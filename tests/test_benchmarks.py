"""The layers that are measured are real, many and computed rightly; what measures them reports all of it."""

from __future__ import annotations

import functools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("matplotlib", reason="the benchmarks need pip install 'convjax[examples]'")
pytest.importorskip("tqdm", reason="the benchmarks need pip install 'convjax[examples]'")

from benchmarks import device, networks, peers, reference, report, run, timing
from benchmarks.cases import LAYERS, SUITES, select
from benchmarks.layer import MODES, ROLES
from convjax._core import cache
from convjax._core.algorithms import ALGORITHMS
from convjax._core.bridge import orders, transpose
from convjax._core.choose import choose
from convjax._core.primitive import convolve
from convjax.testing import NORM_FACTOR, assert_close, tolerance

REDUCED = [layer.reduced() for layer in LAYERS]
FIRST_OF = {layer.family: layer for layer in reversed(LAYERS)}
FAMILIES = {
    "ResNet",
    "ResNeXt",
    "MobileNet V1",
    "MobileNet V2",
    "EfficientNet",
    "ConvNeXt",
    "RepLKNet",
    "DeepLab ASPP",
    "WaveNet",
    "TextCNN",
    "Hyena",
    "Mamba",
    "DCGAN",
    "FCN",
    "3-D transposed",
    "C3D",
    "I3D",
    "Inception",
    "per-example gradients",
    "per-example kernels",
    "audio",
    "image blur",
}


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_is_large_and_names_its_sources():
    assert len(LAYERS) >= 40
    assert len({layer.name for layer in LAYERS}) == len(LAYERS)
    assert all(layer.source.strip() for layer in LAYERS)
    assert {layer.family for layer in LAYERS} >= FAMILIES


@pytest.mark.parametrize(
    ("what", "holds"),
    [
        ("batch 1", lambda layer: layer.case.lhs_shape[0] == 1),
        ("batch 32", lambda layer: layer.case.lhs_shape[0] == 32),
        ("NCHW", lambda layer: layer.layout == "channels_first"),
        ("bf16", lambda layer: layer.dtype == "bfloat16"),
        ("vmap gradients", lambda layer: layer.vmap == "gradients"),
        ("vmap kernels", lambda layer: layer.vmap == "kernels"),
        ("31x31", lambda layer: layer.case.rhs_shape[:-2] == (31, 31)),
        ("dilation 512", lambda layer: layer.spec.rhs_dilation == (512,)),
        ("a million taps", lambda layer: layer.case.rhs_shape[0] == 2**20),
        ("10 s of 48 kHz", lambda layer: layer.case.rhs_shape[0] == 480_000 == layer.case.lhs_shape[1]),
        ("3-D transposed", lambda layer: layer.spec.lhs_dilation == (2, 2, 2)),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_table_holds(what, holds):
    assert any(map(holds, LAYERS)), what


def test_the_anchors_are_those_of_the_readme():
    names = [layer.name for layer in SUITES["anchors"]]
    assert len(names) == 15
    assert select(text="ANCHOR") == list(SUITES["anchors"])
    assert select("anchors", "31x31")[0].name in names


@pytest.mark.parametrize("full", LAYERS, ids=str)
def test_reduced_layers_keep_their_structure(full):
    small = full.reduced()
    assert max(small.products("forward", inserted_zeros=True), 1) < 2e7
    assert small.spec.strides == full.spec.strides
    for name in ("lhs_dilation", "rhs_dilation"):
        assert [d > 1 for d in getattr(small.spec, name)] == [d > 1 for d in getattr(full.spec, name)]
    sizes = [(*layer.case.lhs_shape, *layer.case.rhs_shape) for layer in (small, full)]
    for here, there in zip(*sizes, strict=True):
        assert 1 <= here <= there
        assert (here > 1) == (there > 1)
    assert (small.spec.feature_groups > 1) == (full.spec.feature_groups > 1)
    assert (small.layout, small.dtype, small.vmap) == (full.layout, full.dtype, full.vmap)
    assert min(small.case.out_shape) > 0
    same = [a == b for a, b in zip(full.case.lhs_shape[1:-1], full.case.out_shape[1:-1], strict=True)]
    assert same == [a == b for a, b in zip(small.case.lhs_shape[1:-1], small.case.out_shape[1:-1], strict=True)]


def test_costs_count_what_is_read_and_multiplied():
    by_name = {layer.name: layer for layer in LAYERS}
    plain = by_name["3x3 64->64 @56 N8"]
    assert plain.flops("forward") == 2 * 8 * 56 * 56 * 9 * 64 * 64
    assert plain.flops("train") == 3 * plain.flops("forward")
    assert plain.bytes("forward") == 4 * (2 * 8 * 56 * 56 * 64 + 9 * 64 * 64)
    transposed = by_name["transposed 4x4/2 256->128 @16 N8"]
    assert transposed.products("forward") == 8 * 16 * 16 * 16 * 256 * 128
    assert transposed.products("forward", inserted_zeros=True) == 4 * transposed.products("forward")
    half = by_name["3x3 256->256 @14 N8 bf16"]
    assert 2 * half.bytes("train") == by_name["3x3 256->256 @14 N8"].bytes("train")
    shared, own = by_name["per-example gradients 3x3 64->64 @28 B16"], 9 * 64 * 64 * 4
    assert shared.bytes("kernel_grad") - shared.bytes("forward") == 15 * own


# --- values -----------------------------------------------------------------------------------------------------------


@functools.cache
def compiled(spec, numbers, axes, examples):
    """Equal small layers share it: several full ones have the same likeness."""

    def train(x, w, ct):
        out, pullback = jax.vjp(lambda x, w: _ordered(x, w, numbers, spec), x, w)
        return out, *pullback(ct)

    return jax.jit(jax.vmap(train, in_axes=axes) if examples else train)


def _ordered(x, w, numbers, spec):
    to_lhs, to_rhs, to_out = orders(numbers)
    return transpose(convolve(transpose(x, to_lhs), transpose(w, to_rhs), spec), tuple(np.argsort(to_out)))


def choices(layer):
    """What auto takes for the three problems of a layer."""
    cases = device.problems(layer).values()
    shapes = lambda case: [jax.ShapeDtypeStruct(s, layer.dtype) for s in (case.lhs_shape, case.rhs_shape)]
    return tuple(choose(case.spec, *shapes(case), "cpu") for case in cases)


@pytest.mark.parametrize("full", LAYERS, ids=str)
def test_values_and_gradients_equal_direct_sums(full):
    """With what auto takes for the small layer; in one of each family also with what it takes for the full one."""
    layer, taken = full.reduced(), [("auto",) * 3]
    if full is FIRST_OF[full.family] and choices(layer) != choices(full):
        taken.append(tuple(f"{name}?" for name in choices(full)))
    operands = layer.operands(seed=3)
    signs = reference.oracle(layer, "train", operands)
    magnitudes = reference.oracle(layer, "train", [np.abs(a) for a in operands])
    terms = (layer.case.terms, layer.case.lhs_grad.terms, layer.case.rhs_grad.terms)
    for algorithms in taken:
        spec = layer.spec.replace(algorithms=algorithms)
        run_train = compiled(spec, layer.numbers, layer.axes, layer.examples if layer.vmap else 0)
        for role, name, actual, n in zip(ROLES["train"], choices(full), run_train(*operands), terms, strict=True):
            assert actual.dtype == layer.dtype
            worst = max(("auto", name), key=lambda name: NORM_FACTOR.get(name, 0))
            allowed = tolerance(worst, actual.dtype, magnitudes[role], n)
            assert_close(layer.channels_last(np.asarray(actual), role), signs[role], allowed, f"{algorithms}, {role}")


@pytest.mark.parametrize("mode", MODES)
def test_spectra_agree_with_direct_sums(mode):
    """The reference for what numpy's direct sums take too long for, in float64: equal but for rounding."""
    layers = [layer for layer in REDUCED if reference.is_channelwise(layer)]
    assert len(layers) > 20
    assert any(max(layer.spec.strides) > 1 for layer in layers)
    assert any(max(layer.spec.lhs_dilation) > 1 for layer in layers)
    for layer in layers:
        operands = [a.astype(np.float64) for a in layer.operands()]
        actual = reference.spectral(layer, mode, operands, reference.signal.fftconvolve)
        assert actual.keys() == set(ROLES[mode])
        assert reference.relative_error(actual, reference.oracle(layer, mode, operands)) < 1e-12, layer


@pytest.mark.parametrize("peer", peers.PEERS)
def test_peers_compute_the_same(peer):
    if peer == "torch":
        pytest.importorskip("torch", reason="PyTorch is not installed")
    names = (
        "3x3/2 128->128 @56 N8",
        "3x3 256->256 @14 N8 bf16",
        "depthwise 5x5 672 @14 N8",
        "1-D depthwise causal k4 512 L2048 N4",
        "1-D depthwise causal k4 512 L2048 N4 NCW",
        "1-D k2 dilation 512 64->128 L16000",
        "transposed 5x5/2 1024->512 @4 N8",
        "transposed depthwise 4x4/2 21 @64 N8",
        "per-example kernels 3x3 256->256 @16 B4",
    )
    offered = 0
    for layer in (layer for layer in REDUCED if layer.name in names):
        for mode in ("train", "kernel_grad") if layer.name.startswith("depthwise") else ("train",):
            operands = layer.operands(seed=1)
            made = peers.offer(peer, layer, mode, operands, limit_s=30)
            if isinstance(made, str):
                continue
            error = reference.relative_error(made.read(made.run()), reference.oracle(layer, mode, operands))
            assert error < (2e-2 if layer.dtype == "bfloat16" else 2e-6), (layer, mode)
            offered += 1
    assert offered >= (4 if peer in ("scipy", "rfft") else 10)


def test_what_would_take_too_long_is_left_out_with_the_reason():
    (million,) = select(text="k1M")
    assert "s a call" in peers.too_slow("lax", million, "forward", 30)
    assert "s a call" in peers.offer("taps", million, "forward", [], 30)
    assert peers.too_slow("auto", million, "train", 30) is None
    assert peers.too_slow("lax", million.reduced(), "train", 30) is None


def test_an_algorithm_that_cannot_serve_says_why():
    (layer,) = (layer for layer in REDUCED if layer.name == "3x3/2 128->128 @56 N8")
    assert "stride" in peers.offer("winograd", layer, "forward", layer.operands(), 30)


# --- the runner -------------------------------------------------------------------------------------------------------

SMALL = ["--reduced", "--filter", "depthwise 7x7 192", "--rounds", "2"]


def test_run_writes_json_markdown_and_a_plot(tmp_path, capsys):
    out = {name: tmp_path / "new" / f"bench.{name}" for name in ("json", "md", "png")}
    arguments = [*SMALL, "--filter", "depthwise 3x3/2", "--algorithms", "auto,taps,winograd", "--peers", "lax,scipy"]
    paths = ["--json", str(out["json"]), "--markdown", str(out["md"]), "--plot", str(out["png"])]
    measured = run.main([*arguments, *paths])
    assert json.loads(out["json"].read_text()) == measured
    assert len(measured["records"]) == 4  # two layers, two modes
    for record in measured["records"]:
        assert record["reference"] == "oracle"
        entries = record["contenders"]
        assert list(entries) == ["auto", "taps", "winograd", "lax", "scipy"]
        for name in ("auto", "taps", "lax"):
            entry = entries[name]
            assert 0 < entry["least_ms"] <= entry["ms"] <= entry["most_ms"]
            assert entry["calls"] == 2
            assert entry["error"] < 1e-6
            assert entry["fraction"] > 0
            assert entry["compile_s"] > 0
            assert entry["temp_bytes"] >= 0
        assert "cannot serve" in entries["winograd"]["left_out"]
        assert entries["taps"]["served_by"][0] == "taps"
        assert entries["auto"]["gflops"] == pytest.approx(record["flops"] / entries["auto"]["ms"] / 1e6)
    assert {record["layer"] for record in measured["records"]} < {layer.name for layer in LAYERS}
    text = out["md"].read_text()
    for part in ("## forward", "## train", "lax / convjax", "relative error", "Geometric mean", "winograd |", "GB/s"):
        assert part in text
    assert out["png"].read_bytes().startswith(b"\x89PNG")
    assert "lax / convjax" in capsys.readouterr().out

    again = [tmp_path / "again.md", tmp_path / "again.png"]
    run.main(["--from-json", str(out["json"]), "--markdown", str(again[0]), "--plot", str(again[1])])
    assert again[0].read_text() == text
    assert again[1].stat().st_size > 10_000


def test_a_failure_is_reported_and_the_rest_goes_on(tmp_path, monkeypatch, capsys):
    def broken(layer, mode, operands):
        if mode == "forward":
            raise RuntimeError("out of paper\nat line 2")
        return peers.Peer(lambda: None, lambda _: {role: np.zeros(shape) for role, shape in shapes(layer).items()})

    monkeypatch.setitem(peers.PEERS, "rfft", broken)
    path = tmp_path / "bench.json"
    run.main([*SMALL, "--peers", "rfft,lax", "--json", str(path), "--markdown", str(tmp_path / "bench.md")])
    forward, train = json.loads(path.read_text())["records"]
    assert forward["contenders"]["rfft"] == {"failed": "RuntimeError: out of paper"}
    assert train["contenders"]["rfft"]["failed"].startswith("wrong: relative error")
    assert "ms" not in train["contenders"]["rfft"]
    for record in (forward, train):
        assert {"auto", "lax"} == {name for name, entry in record["contenders"].items() if "ms" in entry}
    assert "out of paper" in capsys.readouterr().out
    assert "out of paper" in (tmp_path / "bench.md").read_text()


def shapes(layer):
    return dict(out=layer.case.out_shape, lhs=layer.case.lhs_shape, rhs=layer.case.rhs_shape)


def test_a_case_that_fails_is_recorded(tmp_path, monkeypatch):
    def no_memory(layer, mode, operands):
        raise MemoryError("4 EiB")

    monkeypatch.setattr(run, "reference", no_memory)
    path = tmp_path / "bench.json"
    run.main([*SMALL, "--mode", "forward,kernel_grad", "--json", str(path), "--markdown", str(tmp_path / "bench.md")])
    records = json.loads(path.read_text())["records"]
    assert [record["failed"] for record in records] == ["MemoryError: 4 EiB"] * 2
    assert "MemoryError" in (tmp_path / "bench.md").read_text()


def test_ctrl_c_keeps_what_was_measured(tmp_path, monkeypatch):
    measure = run.measure

    def interrupted(layer, mode, *others):
        if mode == "train":
            raise KeyboardInterrupt
        return measure(layer, mode, *others)

    monkeypatch.setattr(run, "measure", interrupted)
    path = tmp_path / "bench.json"
    measured = run.main([*SMALL, "--json", str(path), "--markdown", str(tmp_path / "bench.md")])
    assert json.loads(path.read_text()) == measured
    assert measured["interrupted"]
    assert [record["mode"] for record in measured["records"]] == ["forward"]
    assert "interrupted" in (tmp_path / "bench.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--algorithms", "auto,magic"], "'magic' is not known"),
        (["--peers", "numpy"], "type some of lax,torch"),
        (["--mode", "backward"], "kernel_grad"),
        (["--mode", ","], "at least one"),
    ],
)
def test_arguments_are_checked(arguments, words, capsys):
    with pytest.raises(SystemExit):
        run.main(arguments)
    assert words in capsys.readouterr().err


def test_rounds_are_interleaved_and_patience_ends():
    calls = []
    runs = {name: functools.partial(calls.append, name) for name in "ab"}
    times = timing.interleaved(runs, {"a": 0.0, "b": 9.0}, rounds=3, patience_s=5.0)
    assert calls == ["a", "a", "a"]  # b was slow at its first call: that is its measurement
    assert times["b"] == [9.0]
    assert len(times["a"]) == 3


def test_ratios_are_of_layers_that_both_have():
    one = {"ms": 1.0}
    contenders = [{"auto": one, "lax": {"ms": 2.0}}, {"auto": one, "lax": {"ms": 8.0}}]
    contenders += [{"auto": one, "lax": {"left_out": "too slow"}}, {"auto": {"failed": "x"}, "lax": one}]
    contenders += [{"auto": one | {"program": "p"}, "lax": {"ms": 5.0, "program": "p"}}]
    contenders += [{"auto": one, "lax": {"ms": 3.0}}]
    dtypes = ["float32"] * 5 + ["bfloat16"]
    records = [
        {"layer": str(i), "mode": "forward", "dtype": dtype, "contenders": c}
        for i, (c, dtype) in enumerate(zip(contenders, dtypes, strict=True))
    ]
    records.append({"layer": "6", "mode": "forward", "dtype": "float32", "failed": "x"})
    measured = {
        "settings": {"algorithms": ["auto"], "peers": ["lax"], "mode": ["forward"]},
        "machine": dict(processor="p", cores=2, device="cpu"),
        "versions": {},
        "ceilings": dict(dot_gflops={"float32": 1.0}, copy_gbs=1.0),
        "records": records,
    }
    assert report.ratios(measured, "forward", "lax") == {"0": 2.0, "1": 8.0, "4": 1.0, "5": 3.0}
    means = report.summary(measured).splitlines()[-2:]
    mean, same = f"{16 ** (1 / 3):.3g}", "1 of which run the same program"
    assert means[0] == f"Geometric mean of lax / convjax, forward, float32: {mean} over 3 layers, {same}; least: 1 (4)."
    assert means[1] == "Geometric mean of lax / convjax, forward, bfloat16: 3 over 1 layers; least: 3 (5)."


def test_programs_are_the_same_whatever_their_operations_are_called():
    x = jnp.ones((2, 3))
    program = lambda fn: peers.fingerprint(jax.jit(fn).lower(x).compile().as_text())

    def double(y):
        with jax.named_scope("double"):
            return jnp.sin(y) * 2

    assert program(lambda x: jnp.sin(x) * 2) == program(double)
    assert program(double) != program(lambda x: jnp.sin(x) * 3)
    assert program(double) != program(lambda x: jnp.cos(x) * 2)


@pytest.mark.parametrize("name", ["3x3 64->64 @56 N8", "3x3/2 128->128 @56 N8", "3x3 64->64 @56 N8 NCHW"])
def test_what_is_left_to_xla_is_the_program_of_lax(name):
    layer = next(layer for layer in LAYERS if layer.name == name).reduced()
    found = [peers.offer(who, layer, "forward", layer.operands(), 1.0) for who in ("xla", "lax", "taps")]
    ours, lax, taps = (peer.facts["program"] for peer in found if isinstance(peer, peers.Peer))
    assert ours == lax != taps


def test_memory_and_compilation_stand_beside_lax():
    entry = lambda temp, trace, compile_s: dict(ms=1.0, temp_bytes=temp, trace_s=trace, compile_s=compile_s)
    contenders = [{"auto": entry(100, 0.5, 0.5), "lax": entry(0, 0.2, 0.3)}, {"auto": entry(0, 1, 1), "lax": {"ms": 1}}]
    records = [
        {"layer": str(i), "mode": "train", "bytes": 100, "dtype": "float32", "contenders": c}
        for i, c in enumerate(contenders)
    ]
    measured = {"settings": {"algorithms": ["auto"], "peers": ["lax"]}, "records": records}
    assert list(report._beside_lax(measured, "train")) == [
        "Memory (operands, results, temporaries) over that of lax, train: 2, at most 2 (0).",
        "Time to trace and compile over that of lax, train: 2, at most 2 (0).",
    ]


# --- networks ---------------------------------------------------------------------------------------------------------


def test_networks_take_the_same_step_on_either_kind_of_layers(tmp_path, monkeypatch, capsys):
    small = [
        networks.Example("lenet5", (2, 16, 16, 1), dict(image_size=16)),
        networks.Example("resnet18", (2, 8, 8, 3), dict(depths=(1,), widths=(4,), strides=(1,), stem="cifar")),
        networks.Example("wavenet", (2, 9), dict(dilations=(1, 2), stacks=1, residual=4, dilated=4, skip=4), 256),
        networks.Example("no such network", (1,)),
    ]
    monkeypatch.setattr(networks, "EXAMPLES", small)
    found = networks.main(["--rounds", "2", "--json", str(tmp_path / "networks.json")])
    assert json.loads((tmp_path / "networks.json").read_text()) == json.loads(json.dumps(found))  # tuples are lists
    *trained, failed = found["records"]
    assert "no such network" in failed["failed"]
    for entry in trained:
        assert entry["convjax"]["ms"] > 0
        assert entry["flax"]["ms"] > 0
        assert entry["difference"] < 1e-4
    told = capsys.readouterr().out
    assert all(example.name in told for example in small)


# --- the device -------------------------------------------------------------------------------------------------------


def test_device_dry_run_checks_and_times_every_algorithm_that_serves(tmp_path, monkeypatch, capsys):
    names = ("xla", "taps", "fft")  # all of them compile for a minute
    monkeypatch.setattr(device, "ALGORITHMS", {name: ALGORITHMS[name] for name in names})
    path = tmp_path / "device.json"
    found = device.run(device.parse(["--dry-run", "--filter", "depthwise 3x3 128 @56 N128 bf", "--json", str(path)]))
    assert json.loads(path.read_text()) == found
    assert not found["left_out"]
    layers = device.selected("depthwise 3x3 128 @56 N128 bf", dry_run=True)
    served = {
        (layer.name, problem, name)
        for layer in layers
        for problem, case in device.problems(layer).items()
        for name in names
        if case.refusal(name, np.dtype(layer.dtype)) is None
    }
    assert {(t["layer"], t["problem"], t["algorithm"]) for t in found["times"]} == served
    assert {c["algorithm"] for c in found["checks"]} == {name for *_, name in served} == set(names)
    assert all(c.get("passed") for c in found["checks"]), [c for c in found["checks"] if "failed" in c]
    assert all(t["ms"] > 0 and t["fraction"] > 0 and t["buffers"] >= 2 for t in found["times"])
    assert all("auto" in t for t in found["times"])
    kind = found["tuned"]["device"]
    monkeypatch.setenv("CONVJAX_CACHE_DIR", str(tmp_path / "tuned"))
    for entry in found["times"]:  # the chooser understands what was tuned
        times, whose = cache.lookup(kind, entry["key"])
        assert (entry["algorithm"] in times, whose) == (True, "yours")
    assert "0 failed" in capsys.readouterr().out


def test_device_stops_in_time_and_says_what_is_missing(tmp_path):
    found = device.run(device.parse(["--dry-run", "--seconds", "0", "--json", str(tmp_path / "device.json")]))
    assert found["checks"] == found["times"] == []
    assert {line.partition(":")[0] for line in found["left_out"]} == {"checks", "times"}


CHILD = """
import json, os, pathlib, sys, time
state = pathlib.Path(sys.argv[1])
report = json.loads(state.read_text()) if state.exists() else {"checks": []}
for job in "dies", "hangs", "passes":
    if all(entry["layer"] != job for entry in report["checks"]):
        state.write_text(json.dumps(report | {"running": ("checks", {"layer": job})}))
        {"dies": os.abort, "hangs": lambda: time.sleep(60), "passes": int}[job]()
        report["checks"].append({"layer": job, "passed": True})
state.write_text(json.dumps(report))
"""


def test_device_goes_on_after_a_job_that_kills_or_hangs(tmp_path):
    state = tmp_path / "state.json"
    assert device.supervise([sys.executable, "-c", CHILD, str(state)], state, limit_s=2.0) == 0
    checks = {entry.pop("layer"): entry for entry in json.loads(state.read_text())["checks"]}
    assert "ended the process" in checks["dies"]["failed"]
    assert "nothing for" in checks["hangs"]["failed"]
    assert checks["passes"] == {"passed": True}


def test_device_reports_a_wrong_result(monkeypatch):
    monkeypatch.setattr(device, "convolve", lambda x, w, spec: 1.001 * convolve(x, w, spec))
    (layer,) = device.selected("depthwise 3x3 128 @56 N128 float32", dry_run=True)
    job = device.Job(layer, "forward", layer.case, "taps", seed=1)
    assert "beyond tolerance" in device.check(job, {})["failed"]
