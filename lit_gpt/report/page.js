// The values under the pointer, for every figure that carries its curve.
for (const figure of document.querySelectorAll("figure[data-curve]")) {
  const { lines, names, digits } = JSON.parse(figure.dataset.curve);
  const svg = figure.querySelector("svg"), mark = figure.querySelector(".at"), out = figure.querySelector("output");
  const nearest = (points, x) => points.reduce((a, b) => (Math.abs(b[0] - x) < Math.abs(a[0] - x) ? b : a));
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    const at = nearest(lines[0], x);
    mark.setAttribute("x1", at[0]);
    mark.setAttribute("x2", at[0]);
    mark.setAttribute("visibility", "visible");
    const value = (y) => (y !== 0 && Math.abs(y) < 1e-3 ? y.toExponential(3) : y.toLocaleString("en", { maximumFractionDigits: digits }));
    const parts = lines.map((points, i) => {
      const point = nearest(points, at[0]);
      return `${names[i]} ${value(point[3])}` + (point[2] === at[2] ? "" : ` (step ${point[2]})`);
    });
    out.textContent = `step ${at[2]}: ` + parts.join(", ");
  });
  svg.addEventListener("pointerleave", () => {
    mark.setAttribute("visibility", "hidden");
    out.textContent = "";
  });
}
