// What both widgets share: elements, numbers as text, colours, controls tied to the model.

const SVG = "http://www.w3.org/2000/svg";

function html(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

// Four digits at most; whole numbers as they are.
function short(value) {
  return Number.isInteger(value) && Math.abs(value) < 1e6 ? String(value) : String(Number(value.toPrecision(4)));
}

// Nunez, Anderton and Renslow, PLOS ONE 2018: cividis at equal distances, read by any colour vision.
const CIVIDIS = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
  [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];

function shade(value, low, high) {
  const at = high > low ? Math.min(Math.max((value - low) / (high - low), 0), 1) * (CIVIDIS.length - 1) : 4;
  const below = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const colour = CIVIDIS[below].map((c, i) => Math.round(c + (at - below) * (CIVIDIS[below + 1][i] - c)));
  const luminance = (0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]) / 255;
  return { fill: `rgb(${colour.join(",")})`, ink: luminance > 0.45 ? "black" : "white" };
}

// A labelled <input type="range"> that follows a number of the model, and sets it.
function slider(model, name, min, max) {
  const value = html("output");
  const input = html("input", { type: "range", min, max, name, "aria-label": name });
  input.addEventListener("input", () => put(model, name, Number(input.value)));
  const element = html("label", {}, `${name} `, input, value);
  return {
    element,
    show(number, most = max) {
      input.max = most;
      input.value = number;
      value.textContent = short(number);
    },
  };
}

function put(model, name, value) {
  model.set(name, value);
  model.save_changes();
}

// The colours of the page around: JupyterLab's theme, else what the reader's system prefers.
function theme(model, el) {
  const jupyter = document.body.dataset.jpThemeLight;
  const found = jupyter === undefined ? "light dark" : jupyter === "false" ? "dark" : "light";
  el.style.colorScheme = model.get("theme") === "auto" ? found : model.get("theme");
}

// Draws now and whenever one of the names changes; returns what undoes that.
function follow(model, names, draw) {
  for (const name of names) model.on(`change:${name}`, draw);
  draw();
  return () => names.forEach((name) => model.off(`change:${name}`, draw));
}
