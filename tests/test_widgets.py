"""Widgets compute in the browser what convjax does: the script by itself, pages in Chromium, and the Jupyter side."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import convjax

pytest.importorskip("anywidget", reason="widgets are made of it")
pytest.importorskip("matplotlib", reason="widgets share their readers with the pictures")

import traitlets

from convjax import viz
from convjax.viz import _page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
WIDTH, HEIGHT = 960, 640


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested by playwright")
    if CHROMIUM is None:
        pytest.skip("no chromium, chromium-browser or google-chrome on the path to show pages in")
    with playwright.sync_playwright() as started:
        # as root, in a container, Chromium has no sandbox to put its pages in
        found = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def show(browser, tmp_path):
    """Opens a widget's page; at the end no error was written, and nothing was asked of a network."""
    pages, errors, asked = [], [], []

    def show(widget, **context):
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, **context)
        pages.append(page)
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: asked.append(request.url))
        page.goto(widget.save_html(tmp_path / "page.html").as_uri())
        return page

    yield show
    for page in pages:
        page.close()
    assert errors == []
    assert [url for url in asked if not url.startswith("file:")] == []


@pytest.fixture
def artefacts(tmp_path):
    """Where screenshots go: the folder CONVJAX_ARTEFACTS, or one of pytest's own, which stays for three runs."""
    folder = Path(os.environ.get("CONVJAX_ARTEFACTS") or tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def screenshot(page, path):
    page.screenshot(path=path)
    assert path.stat().st_size > 5000, "a page with nothing on it"


def outputs(page):
    """The numbers of all output cells."""
    values = page.locator(".result").evaluate_all("cells => cells.map(c => Number(c.dataset.value))")
    shape = [1 + int(page.locator(".result").last.get_attribute(f"data-{axis}")) for axis in ("row", "column")]
    return np.reshape(values, shape)


def assert_computes(page, widget, **settings):
    """All output cells are what the widget's Python side gets from convjax for these settings."""
    for name, value in settings.items():
        setattr(widget, name, value)
    np.testing.assert_allclose(outputs(page), widget.output(), rtol=1e-5, atol=1e-5)


# --- the script by itself ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_script(request):
    """The value of a JavaScript expression after a script: by node where there is one, else in the browser."""
    if node := shutil.which("node"):

        def run(script, expression):
            source = f"{script}\nconsole.log(JSON.stringify({expression}));"
            return json.loads(
                subprocess.run([node, "-"], input=source, capture_output=True, text=True, check=True).stdout
            )

        return run
    page = request.getfixturevalue("browser").new_page()  # closed with the browser
    return lambda script, expression: page.evaluate(f"() => {{ {script}\nreturn {expression}; }}")


def test_the_script_computes_what_convjax_does(run_script):
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((9, 8)).round(3), rng.standard_normal((3, 2)).round(3)
    names = ("stride", "padding", "dilation")
    sizes = [dict(zip(names, s, strict=True)) for s in ((1, 0, 1), (2, 1, 1), (3, 4, 2), (1, 2, 3), (2, 0, 2))]
    settings = [{**chosen, "transposed": transposed} for chosen in sizes for transposed in (False, True)]
    call = f"{json.dumps(settings)}.map(s => convolve({json.dumps(x.tolist())}, {json.dumps(w.tolist())}, s).y)"
    widget = viz.SlidingWidget(x, w)
    for chosen, found in zip(settings, run_script(_page.static("convolve.js"), call), strict=True):
        for name, value in chosen.items():
            setattr(widget, name, value)
        np.testing.assert_allclose(found, widget.output(), rtol=1e-5, atol=1e-5, err_msg=str(chosen))


def test_the_script_finds_the_cone_of_python(run_script):
    for layers in ([3, (3, 2), (3, 1, 2)], [(2, 1, 4), (5, 3), 1]):
        widget = viz.ConeWidget(layers, cells=4, cell=3)
        cone = f"coneOf({json.dumps(widget.layers)}, 4, 3)"
        call = f"(({{ sizes, seen, fields }}) => ({{ sizes, fields, seen: seen.map(s => [...s]) }}))({cone})"
        found, expected = run_script(_page.static("cone.js"), call), widget.cone()
        assert tuple(found["sizes"]) == expected.sizes
        assert tuple(found["fields"]) == expected.fields
        assert [tuple(sorted(s)) for s in found["seen"]] == list(expected.seen)


# --- the page of the sliding kernel -----------------------------------------------------------------------------------


def test_sliders_change_the_numbers_to_those_of_convjax(show, artefacts):
    widget = viz.SlidingWidget(padding=1, step=20)
    page = show(widget)
    assert_computes(page, widget)
    screenshot(page, artefacts / "sliding.png")
    page.locator("input[name=stride]").fill("2")
    assert_computes(page, widget, stride=2)
    page.locator("input[name=padding]").press("ArrowRight")
    assert_computes(page, widget, padding=2)
    page.locator("input[name=dilation]").fill("3")
    assert_computes(page, widget, dilation=3)
    page.get_by_label("transposed").check()
    assert_computes(page, widget, transposed=True)
    screenshot(page, artefacts / "sliding-transposed.png")
    page.get_by_label("weight 0, 1").fill("0.5")
    page.get_by_label("weight 0, 1").press("Enter")
    assert_computes(page, widget, w=[[1, 0.5, -1], *widget.w[1:]])


def test_pointing_at_a_cell_shows_its_products_and_their_sum(show):
    widget = viz.SlidingWidget(stride=2, padding=1)
    page = show(widget)
    for row, column in ((4, 4), (0, 0), (2, 3)):
        page.locator(f".result[data-row='{row}'][data-column='{column}']").hover()
        assert float(page.locator(".sum").inner_text()) == float(widget.output()[row, column])
        field = np.pad(np.array(widget.x), 1)[2 * row : 2 * row + 3, 2 * column : 2 * column + 3]
        products = page.locator("[data-product]").evaluate_all("cells => cells.map(c => Number(c.dataset.product))")
        assert products == (field * np.array(widget.w)).ravel().tolist()
        words = [cell.inner_text() for cell in page.locator("[data-product]").all()]
        numbers = [[float(n) for n in re.findall(r"-?[\d.]+", word)] for word in words]
        assert [n[:2] for n in numbers] == np.stack([field, widget.w], -1).reshape(-1, 2).tolist()
        marks = page.locator(".mark").evaluate_all(
            "all => all.map(m => [m.y.baseVal.value / 10, m.x.baseVal.value / 10])"
        )
        taps = [[2 * row + a, 2 * column + b] for a in range(3) for b in range(3)]
        assert sorted(marks) == sorted([*taps, [row, column]])


def test_cells_fill_step_by_step(show):
    page = show(viz.SlidingWidget(stride=3, x=np.arange(64).reshape(8, 8)))  # four outputs
    empty = page.locator(".result.empty")
    assert empty.count() == 3
    page.locator("input[name=step]").fill("2")
    assert empty.count() == 1
    page.locator("input[name=step]").fill("0")
    page.get_by_role("button", name="play").click()
    page.get_by_role("button", name="pause").wait_for()
    page.get_by_role("button", name="play").wait_for()
    assert empty.count() == 0


def test_a_kernel_that_does_not_fit_is_said_so(show):
    page = show(viz.SlidingWidget(x=np.ones((4, 4))))
    page.locator("input[name=dilation]").fill("3")
    assert "larger than the padded input of 4 by 4" in page.locator(".equation").inner_text()
    assert page.locator(".result").count() == 0
    page.locator("input[name=padding]").fill("2")
    assert outputs(page).shape == (2, 2)


@pytest.mark.parametrize(
    ("theme", "system", "dark"), [("auto", "dark", True), ("auto", "light", False), ("light", "dark", False)]
)
def test_pages_follow_the_theme(show, artefacts, theme, system, dark):
    page = show(viz.SlidingWidget(theme=theme, padding=1, step=40), color_scheme=system)
    ground, ink = page.evaluate(
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('h4')).color]"
    )
    bright = lambda colour: sum(map(int, re.findall(r"\d+", colour)[:3])) > 3 * 128
    assert (bright(ground), bright(ink)) == (not dark, dark)
    screenshot(page, artefacts / f"sliding-{theme}-on-{system}.png")


# --- the page of the receptive field ----------------------------------------------------------------------------------


def test_cone_shows_what_python_finds(show, artefacts):
    """Which is what the gradient reaches: test_viz says so."""
    page = show(viz.ConeWidget([3, (3, 2), 3]))

    def assert_shows(layers, cell):
        sizes, seen = (getattr(viz.ConeWidget(layers, cell=cell).cone(), name)[0] for name in ("sizes", "seen"))
        assert page.locator("[data-row='0']").count() == sizes
        found = page.locator("[data-row='0'].seen").evaluate_all("all => all.map(c => Number(c.dataset.index))")
        assert found == list(seen)

    assert_shows([3, (3, 2), 3], 2)
    page.locator("[data-row='3'][data-index='4']").hover()
    assert_shows([3, (3, 2), 3], 4)
    assert int(page.locator(".field").inner_text()) == 9
    page.get_by_label("dilation of layer 3").fill("4")
    page.get_by_label("dilation of layer 3").press("Enter")
    assert_shows([3, (3, 2), (3, 1, 4)], 4)
    assert page.locator(".equation").inner_text().endswith("a receptive field of 21, of which it meets 15.")
    page.get_by_role("button", name="add a layer").click()
    assert_shows([3, (3, 2), (3, 1, 4), 3], 4)
    page.get_by_role("button", name="remove the last").click()
    assert_shows([3, (3, 2), (3, 1, 4)], 4)
    screenshot(page, artefacts / "cone.png")


# --- Jupyter ----------------------------------------------------------------------------------------------------------


def test_the_module_keeps_to_what_jupyter_hands_it(browser):
    """anywidget calls the default export's render with a model of get, set, save_changes, on and off."""
    page = browser.new_page()
    widget = viz.SlidingWidget()
    state = json.dumps({name: getattr(widget, name) for name in widget.trait_names(sync=True) if name in
                        ("x", "w", "stride", "padding", "dilation", "transposed", "step", "theme")})  # fmt: skip
    log = page.evaluate(
        """async ([source, state]) => {
            const module = await import(URL.createObjectURL(new Blob([source], { type: "text/javascript" })));
            const log = [], listeners = [], el = document.body.appendChild(document.createElement("div"));
            const model = {
                get: (name) => state[name],
                set: (name, value) => log.push([name, value]),
                save_changes: () => log.push("saved"),
                on: (event) => listeners.push(event),
                off: (event) => listeners.splice(listeners.indexOf(event), 1),
            };
            const done = module.default.render({ model, el });
            const slider = el.querySelector("input[name=stride]");
            slider.value = 3;
            slider.dispatchEvent(new Event("input"));
            const before = listeners.length;
            done();
            return { log, before, after: listeners.length };
        }""",
        [widget._esm, json.loads(state)],
    )
    page.close()
    assert log["log"] == [["stride", 3], "saved"]
    assert log["before"] == 8
    assert log["after"] == 0


def test_traits_are_settings_that_python_sees():
    widget, seen = viz.SlidingWidget(w=[[1.0, 2.5]], stride=2), []
    widget.observe(lambda change: seen.append((change.name, change.new)), ["padding", "w"])
    widget.padding, widget.w = 1, np.array([[3.0], [0.25]])
    assert seen == [("padding", 1), ("w", [[3], [0.25]])]
    x = jnp.array(widget.x, jnp.float32)[..., None]
    y = convjax.conv(x, jnp.array([[3.0], [0.25]])[..., None, None], stride=2, padding=1)
    np.testing.assert_allclose(widget.output(), y[..., 0])
    assert set(widget._state) | {"theme"} <= set(widget.get_state())


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: viz.SlidingWidget(stride=4), traitlets.TraitError, "stride"),
        (lambda: viz.SlidingWidget(padding=0.5), traitlets.TraitError, "padding"),
        (lambda: viz.SlidingWidget(x=np.ones((17, 2))), ValueError, "x must be finite and at most 16 x 16"),
        (lambda: viz.SlidingWidget(w=[[np.nan]]), ValueError, "w must be finite"),
        (lambda: viz.SlidingWidget(w=[1, 2]), ValueError, "w must be .rows, columns., got shape"),
        (lambda: viz.ConeWidget([0]), ValueError, "kernel must be at least 1"),
        (lambda: viz.ConeWidget(cells=0), traitlets.TraitError, "cells"),
    ],
    ids=["stride", "padding", "large", "nan", "rank", "kernel", "cells"],
)
def test_settings_out_of_range_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("make", [viz.SlidingWidget, viz.ConeWidget], ids=["sliding", "cone"])
def test_a_page_is_one_file(make, tmp_path):
    widget = make()
    text = widget.save_html(tmp_path / "page.html").read_text(encoding="utf-8")
    assert text == widget.to_html()
    assert set(re.findall(r"\w+://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}, "only the name of SVG"
    assert re.findall(r"<(?:link|img|iframe|script src)", text) == []
    assert len(re.findall(r"</script>", text)) == 1
