// convjax.conv and convjax.conv_transpose of one channel in two dimensions, so that each product can be shown.
//
// A transposed convolution is the plain one over an input with zeros between its entries, the kernel flipped, padded by
// dilation * (k - 1) - padding (Dumoulin and Visin, arXiv:1603.07285, chapter 4).

function convolve(x, w, { stride, padding, dilation, transposed }) {
  const spread = transposed ? stride : 1;
  const step = transposed ? 1 : stride;
  const kernel = transposed ? w.map((row) => [...row].reverse()).reverse() : w;
  const taps = [w.length, w[0].length];
  const pads = taps.map((k) => (transposed ? dilation * (k - 1) - padding : padding));
  const size = [x.length, x[0].length].map((n, axis) => (n - 1) * spread + 1 + 2 * pads[axis]);
  const out = size.map((n, axis) => Math.floor((n - dilation * (taps[axis] - 1) - 1) / step) + 1);
  // The entry of x at a place of the padded field, or null for a zero that was put in.
  const entry = (row, column) => {
    const [i, j] = [row - pads[0], column - pads[1]];
    if (i % spread || j % spread) return null;
    return x[i / spread]?.[j / spread] ?? null;
  };
  const products = (row, column) =>
    kernel.flatMap((weights, a) =>
      weights.map((weight, b) => {
        const place = [row * step + a * dilation, column * step + b * dilation];
        const value = entry(...place) ?? 0;
        return { place, value, weight, product: value * weight };
      }),
    );
  const sum = (row, column) => products(row, column).reduce((total, { product }) => total + product, 0);
  const y = Math.min(...out) < 1 ? [] : table(out, sum);
  return { size, out, entry, products, y };
}

function table([rows, columns], value) {
  return Array.from({ length: rows }, (_, i) => Array.from({ length: columns }, (_, j) => value(i, j)));
}
