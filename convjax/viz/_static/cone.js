// Stacked layers in cross section: choose an output cell and see all inputs that it is made of.

const MAX_LAYERS = 8;
const MAX_INPUTS = 400;
const LIMITS = { kernel: [1, 9], stride: [1, 4], dilation: [1, 16] };

// Rows of cells, the input first, and those that cell number `cell` of the last row sees.
function coneOf(layers, cells, cell) {
  const sizes = [cells];
  const seen = [new Set([cell])];
  for (const [kernel, stride, dilation] of [...layers].reverse()) {
    sizes.unshift((sizes[0] - 1) * stride + (kernel - 1) * dilation + 1);
    const below = new Set();
    for (const i of seen[0]) for (let tap = 0; tap < kernel; tap++) below.add(i * stride + tap * dilation);
    seen.unshift(below);
  }
  const centres = [[0, 1]]; // of the first cell, and from cell to cell, in cells of the input
  for (const [kernel, stride, dilation] of layers) {
    const [first, jump] = centres.at(-1);
    centres.push([first + (jump * (kernel - 1) * dilation) / 2, jump * stride]);
  }
  const fields = centres.map(([first]) => 1 + 2 * first);
  return { sizes, seen, centres, fields };
}

function render({ model, el }) {
  el.classList.add("convjax");
  const table = html("table", { class: "layers" });
  const picture = html("div", { class: "cone" });
  const words = html("p", { class: "equation", "aria-live": "polite" });
  const more = html("button", { type: "button" }, "add a layer");
  const fewer = html("button", { type: "button" }, "remove the last");
  more.addEventListener("click", () => put(model, "layers", [...model.get("layers"), [3, 1, 1]]));
  fewer.addEventListener("click", () => put(model, "layers", model.get("layers").slice(0, -1)));
  const cell = slider(model, "cell", 0, 0);
  el.replaceChildren(html("div", { class: "controls" }, cell.element, more, fewer), table, picture, words);

  function draw() {
    theme(model, el);
    const [layers, cells] = [model.get("layers"), model.get("cells")];
    const chosen = Math.min(model.get("cell"), cells - 1);
    cell.show(chosen, cells - 1);
    const cone = coneOf(layers, cells, chosen);
    if (cone.sizes[0] > MAX_INPUTS) {
      picture.replaceChildren();
      words.textContent = `These layers take ${cone.sizes[0]} inputs, too many to draw: choose smaller strides or dilations.`;
      return;
    }
    picture.replaceChildren(drawCone(model, cone, layers));
    const inputs = [...cone.seen[0]].sort((a, b) => a - b);
    words.replaceChildren(`Output ${chosen} sees inputs ${inputs[0]} to ${inputs.at(-1)}: a receptive field of `,
      html("b", { class: "field" }, String(cone.fields.at(-1))),
      inputs.length < cone.fields.at(-1) ? `, of which it meets ${inputs.length}.` : ".");
  }

  // By itself: a table that is drawn anew loses what is being typed into it.
  function drawTable() {
    const layers = model.get("layers");
    more.disabled = layers.length >= MAX_LAYERS;
    fewer.disabled = layers.length <= 1;
    drawLayers(table, model, layers);
  }

  const unfollow = [follow(model, ["layers"], drawTable), follow(model, ["layers", "cells", "cell", "theme"], draw)];
  return () => unfollow.forEach((undo) => undo());
}

function drawLayers(table, model, layers) {
  const names = Object.keys(LIMITS);
  const rows = layers.map((layer, i) =>
    html("tr", {}, html("th", {}, `layer ${i + 1}`), ...names.map((name, j) => {
      const [min, max] = LIMITS[name];
      const field = html("input", { type: "number", min, max, "aria-label": `${name} of layer ${i + 1}` });
      field.value = layer[j];
      field.addEventListener("change", () => {
        const value = Math.round(Math.min(Math.max(field.valueAsNumber || min, min), max));
        put(model, "layers", layers.map((old, k) => (k === i ? old.map((v, m) => (m === j ? value : v)) : old)));
      });
      return html("td", {}, field);
    })));
  table.replaceChildren(html("tr", {}, html("th"), ...names.map((name) => html("th", {}, name))), ...rows);
}

function drawCone(model, { sizes, seen, centres, fields }, layers) {
  const rows = sizes.length;
  const unit = 700 / (sizes[0] + 1); // pixels between neighbouring inputs
  const x = (row, i) => 95 + unit * (centres[row][0] + centres[row][1] * i + 0.5);
  const y = (row) => 24 + (rows - 1 - row) * 62;
  const side = Math.min(unit * 0.8, 22);
  const picture = svg("svg", { viewBox: `0 0 920 ${rows * 62}`, role: "img" });
  for (let row = 1; row < rows; row++) {
    const [kernel, stride, dilation] = layers[row - 1];
    for (const i of seen[row]) {
      for (let tap = 0; tap < kernel; tap++) {
        picture.append(svg("line", { x1: x(row, i), y1: y(row), x2: x(row - 1, i * stride + tap * dilation), y2: y(row - 1) }));
      }
    }
  }
  for (let row = 0; row < rows; row++) {
    picture.append(svg("text", { x: 0, y: y(row), class: "name" }, row ? `layer ${row}` : "input"));
    if (row) picture.append(svg("text", { x: 820, y: y(row), class: "name" }, `sees ${fields[row]}`));
    for (let i = 0; i < sizes[row]; i++) {
      const kind = seen[row].has(i) ? (row === rows - 1 ? "chosen" : "seen") : "unseen";
      const cell = svg("rect", { x: x(row, i) - side / 2, y: y(row) - 8, width: side, height: 16, class: `unit ${kind}`,
        "data-row": row, "data-index": i });
      if (row === rows - 1) {
        cell.classList.add("choice");
        // A cell that is drawn anew below a pointer at rest is entered again.
        cell.addEventListener("pointerenter", () => i === model.get("cell") || put(model, "cell", i));
      }
      picture.append(cell);
    }
  }
  return picture;
}
