// A kernel slides over an input and fills a feature map; pointing at an output cell shows its products and their sum.

const READABLE = 24; // columns of a picture whose cells still hold numbers
const MAX_STRIDE = 3;
const MAX_PADDING = 4;
const MAX_DILATION = 3;
const MILLISECONDS = 250; // a step, when playing

function render({ model, el }) {
  el.classList.add("convjax");
  const sliders = {
    stride: slider(model, "stride", 1, MAX_STRIDE),
    padding: slider(model, "padding", 0, MAX_PADDING),
    dilation: slider(model, "dilation", 1, MAX_DILATION),
    step: slider(model, "step", 0, 0),
  };
  const transposed = html("input", { type: "checkbox", name: "transposed" });
  transposed.addEventListener("change", () => put(model, "transposed", transposed.checked));
  const play = html("button", { type: "button" }, "play");
  const controls = html("div", { class: "controls" }, ...["stride", "padding", "dilation"].map((n) => sliders[n].element),
    html("label", {}, transposed, " transposed"), sliders.step.element, play);
  const input = panel();
  const kernel = panel();
  const output = panel();
  const equation = html("div", { class: "equation", "aria-live": "polite" });
  el.replaceChildren(controls, html("div", { class: "panels" }, input.element, kernel.element, output.element), equation);

  let now; // the convolution of the present settings
  let cells = []; // of the output, row by row

  function draw() {
    theme(model, el);
    const [x, w] = [model.get("x"), model.get("w")];
    const settings = Object.fromEntries(["stride", "padding", "dilation", "transposed"].map((n) => [n, model.get(n)]));
    now = convolve(x, w, settings);
    for (const name of ["stride", "padding", "dilation"]) sliders[name].show(settings[name]);
    transposed.checked = settings.transposed;
    drawInput(input, now, x);
    drawKernel(kernel, model, settings.transposed);
    cells = drawOutput(output, now, look, current);
    current();
  }

  // The cell of the step: everything up to it is filled.
  function current() {
    if (!now.y.length) {
      equation.textContent = `The kernel is larger than the padded input of ${now.size.join(" by ")}: pad more, or dilate less.`;
      return;
    }
    const columns = now.out[1];
    const step = Math.min(model.get("step"), cells.length - 1);
    sliders.step.show(step, cells.length - 1);
    cells.forEach((cell, i) => cell.classList.toggle("empty", i > step));
    look(Math.floor(step / columns), step % columns);
  }

  function look(row, column) {
    const products = now.products(row, column);
    for (const cell of cells) cell.classList.remove("pointed");
    cells[row * now.out[1] + column].classList.add("pointed");
    mark(output, [[row, column]]);
    mark(input, products.map(({ place }) => place));
    const grid = html("table", {}, ...rowsOf(products, model.get("w")[0].length));
    const sum = html("p", {}, `output[${row}, ${column}] = `, html("b", { class: "sum" }, short(now.y[row][column])),
      `, the sum of ${products.length} products:`);
    equation.replaceChildren(sum, grid);
  }

  let timer;
  const stop = () => {
    clearInterval(timer);
    timer = undefined;
    play.textContent = "play";
  };
  play.addEventListener("click", () => {
    if (timer) return stop();
    const last = () => cells.length - 1;
    if (model.get("step") >= last()) put(model, "step", 0);
    play.textContent = "pause";
    timer = setInterval(() => {
      if (model.get("step") >= last()) return stop();
      put(model, "step", model.get("step") + 1);
    }, MILLISECONDS);
  });

  const unfollow = [
    follow(model, ["x", "w", "stride", "padding", "dilation", "transposed", "theme"], draw),
    follow(model, ["step"], current),
  ];
  return () => {
    stop();
    unfollow.forEach((undo) => undo());
  };
}

function panel() {
  const title = html("h4");
  const body = html("div");
  return { element: html("figure", {}, title, body), title, body, marks: svg("g") };
}

// A panel grows with its columns, and goes to the next line where there is no room to read it.
function resize(panel, columns) {
  panel.element.style.flex = `${columns} 1 ${Math.min(columns * 20, 330)}px`;
  panel.element.style.maxWidth = `${Math.max(columns * 36, 150)}px`;
}

// Frames around some cells, above all of them.
function mark(panel, places) {
  panel.marks.replaceChildren(
    ...places.map(([row, column]) => svg("rect", { class: "mark", x: column * 10, y: row * 10, width: 10, height: 10 })));
}

// Squares with their numbers, as far as they can be read; `describe` says how one is filled.
function squares(panel, values, describe) {
  const [rows, columns] = [values.length, values[0].length];
  resize(panel, columns);
  const cells = [];
  const picture = svg("svg", { viewBox: `-0.5 -0.5 ${columns * 10 + 1} ${rows * 10 + 1}`, role: "img" });
  values.forEach((line, row) =>
    line.forEach((value, column) => {
      const { fill, ink, kind } = describe(value, row, column);
      const cell = svg("g", { class: `cell ${kind}`, "data-row": row, "data-column": column, "data-value": value },
        svg("rect", { x: column * 10, y: row * 10, width: 10, height: 10, ...(fill && { fill }) }));
      if (columns <= READABLE) {
        const text = short(value);
        const size = Math.min(4.5, 15 / text.length);
        cell.append(svg("text", { x: column * 10 + 5, y: row * 10 + 5, "font-size": size, ...(ink && { style: `fill: ${ink}` }) }, text));
      }
      cells.push(cell);
    }),
  );
  picture.append(...cells, panel.marks);
  panel.body.replaceChildren(picture);
  return { picture, cells };
}

function range(values) {
  const all = values.flat();
  return [Math.min(...all), Math.max(...all)];
}

function drawInput(input, now, x) {
  input.title.textContent = `input ${x.length} × ${x[0].length}, with its zeros`;
  if (Math.min(...now.size) < 1) return input.body.replaceChildren();
  const [low, high] = range(x);
  squares(input, table(now.size, (row, column) => now.entry(row, column) ?? 0), (value, row, column) =>
    now.entry(row, column) === null ? { kind: "zero" } : { kind: "entry", ...shade(value, low, high) });
}

function drawKernel(kernel, model, flipped) {
  const w = model.get("w");
  kernel.title.textContent = flipped ? "kernel, laid on flipped" : "kernel";
  const inputs = w.map((line, row) =>
    line.map((weight, column) => {
      const field = html("input", { type: "number", step: "any", "aria-label": `weight ${row}, ${column}` });
      field.value = weight;
      field.addEventListener("change", () => {
        const value = field.valueAsNumber;
        if (!Number.isFinite(value)) return (field.value = weight);
        put(model, "w", w.map((l, i) => l.map((old, j) => (i === row && j === column ? value : old))));
      });
      return html("td", {}, field);
    }),
  );
  kernel.body.replaceChildren(html("table", { class: "kernel" }, ...inputs.map((line) => html("tr", {}, ...line))));
}

function drawOutput(output, now, look, leave) {
  if (!now.y.length) {
    output.title.textContent = "output: empty";
    output.body.replaceChildren();
    return [];
  }
  output.title.textContent = `output ${now.out[0]} × ${now.out[1]}: point at a cell`;
  const [low, high] = range(now.y);
  const { picture, cells } = squares(output, now.y, (value) => ({ kind: "result", ...shade(value, low, high) }));
  for (const cell of cells) {
    cell.addEventListener("pointerenter", () => look(Number(cell.dataset.row), Number(cell.dataset.column)));
  }
  picture.addEventListener("pointerleave", leave);
  return cells;
}

function rowsOf(products, columns) {
  const rows = [];
  for (let i = 0; i < products.length; i += columns) {
    const line = products.slice(i, i + columns).map(({ value, weight, product }) =>
      html("td", { "data-product": product }, `${short(value)} × ${signed(weight)} = ${short(product)}`));
    rows.push(html("tr", {}, ...line));
  }
  return rows;
}

function signed(value) {
  return value < 0 ? `(${short(value)})` : short(value);
}
