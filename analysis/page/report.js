"use strict";
// Sorting, the theme, and curves that tell their numbers. Needs nothing but this page.

for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  const original = [...body.rows];
  heads.forEach((head, column) => {
    head.tabIndex = 0;
    const sort = () => {
      const next = { ascending: "descending", descending: null }[head.getAttribute("aria-sort")];
      const order = next === undefined ? "ascending" : next;
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      if (order) head.setAttribute("aria-sort", order);
      const sign = order === "descending" ? -1 : 1;
      const rows = order === null ? original : [...original].sort((a, b) => sign * compare(a, b, column));
      body.append(...rows);
    };
    head.addEventListener("click", sort);
    head.addEventListener("keydown", (event) => { if (event.key === "Enter") sort(); });
  });
}

function compare(a, b, column) {
  const [x, y] = [a, b].map((row) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  });
  const [m, n] = [x, y].map((text) => parseFloat(text.replace("−", "-")));
  if (Number.isNaN(m) || Number.isNaN(n)) {
    if (Number.isNaN(m) !== Number.isNaN(n)) return Number.isNaN(m) ? 1 : -1;
    return x.localeCompare(y);
  }
  return m - n;
}

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  const now = root.dataset.theme ?? (dark ? "dark" : "light");
  root.dataset.theme = now === "dark" ? "light" : "dark";
});

const SVG = "http://www.w3.org/2000/svg";
const charts = JSON.parse(document.getElementById("charts-data").textContent);
const labels = [...new Set(charts.flatMap((c) => c.panels.flatMap((p) => p.series.map((s) => s.label))))];
const color = (label) => `var(--s${labels.indexOf(label) % 4})`;
for (const figure of document.querySelectorAll(".chart")) draw(figure, charts[figure.dataset.chart]);

function make(parent, name, attributes, text) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  parent.append(element);
  return element;
}

function ticks(low, high) {
  const rough = (high - low) / 4, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= rough);
  const found = [];
  for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + 1e-9 * step; t += step) found.push(t);
  return found.map((t) => Math.round(t * 1e6) / 1e6);
}

function draw(figure, chart) {
  const count = chart.panels.length, wide = 560, high = 240, left = 44, gap = 18, top = 22, bottom = 36;
  const width = (wide - left - 8 - gap * (count - 1)) / count;
  const all = chart.panels.flatMap((p) => p.series);
  const ys = all.flatMap((s) => s.mean.flatMap((m, i) => [m - s.std[i], m + s.std[i]]));
  const xs = all.flatMap((s) => s.x);
  const [y0, y1] = [Math.min(0, ...ys), Math.max(...ys) || 1], [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const y = (v) => top + (high - top - bottom) * (1 - (v - y0) / (y1 - y0));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${wide} ${high}`);
  svg.setAttribute("role", "img");
  svg.setAttribute("aria-label", chart.title);
  const legend = document.createElement("div");
  legend.className = "legend";
  figure.prepend(svg, legend);
  for (const t of ticks(y0, y1)) {
    make(svg, "line", { class: "grid", x1: left, x2: wide - 8, y1: y(t), y2: y(t) });
    make(svg, "text", { x: left - 6, y: y(t) + 4, "text-anchor": "end" }, t);
  }
  make(svg, "text", { transform: `translate(11 ${(top + high - bottom) / 2}) rotate(-90)`, "text-anchor": "middle" }, chart.y);
  chart.panels.forEach((panel, number) => {
    const start = left + number * (width + gap), x = (v) => start + width * (v - x0) / (x1 - x0 || 1);
    make(svg, "text", { class: "title", x: start + width / 2, y: 13, "text-anchor": "middle" }, panel.title);
    for (const t of ticks(x0, x1)) make(svg, "text", { x: x(t), y: high - bottom + 15, "text-anchor": "middle" }, t);
    make(svg, "text", { x: start + width / 2, y: high - 4, "text-anchor": "middle" }, chart.x);
    for (const s of panel.series) {
      const up = s.x.map((v, i) => `${x(v)},${y(s.mean[i] + s.std[i])}`);
      const down = s.x.map((v, i) => `${x(v)},${y(s.mean[i] - s.std[i])}`).reverse();
      make(svg, "polygon", { points: [...up, ...down].join(" "), fill: color(s.label), opacity: 0.18 });
      make(svg, "polyline", { points: s.x.map((v, i) => `${x(v)},${y(s.mean[i])}`).join(" "), fill: "none", stroke: color(s.label), "stroke-width": 1.8 });
    }
    const cursor = make(svg, "line", { class: "cursor", y1: top, y2: high - bottom, visibility: "hidden" });
    const area = make(svg, "rect", { class: "hover", x: start, y: top, width, height: high - top - bottom, fill: "transparent" });
    const points = [...new Set(panel.series.flatMap((s) => s.x))].sort((a, b) => a - b);
    area.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect(), at = (event.clientX - box.left) * wide / box.width;
      const nearest = points.reduce((a, b) => (Math.abs(x(b) - at) < Math.abs(x(a) - at) ? b : a));
      cursor.setAttribute("visibility", "visible");
      cursor.setAttribute("x1", x(nearest));
      cursor.setAttribute("x2", x(nearest));
      tell(legend, panel.series, nearest, `${panel.title}, ${chart.x} ${nearest}: `);
    });
    area.addEventListener("pointerleave", () => {
      cursor.setAttribute("visibility", "hidden");
      tell(legend, chart.panels[0].series, null, "");
    });
  });
  tell(legend, chart.panels[0].series, null, "");
}

function tell(legend, series, at, start) {
  legend.textContent = start;
  for (const s of series) {
    const item = document.createElement("span"), dot = document.createElement("i"), i = s.x.indexOf(at);
    dot.style.background = color(s.label);
    const number = i < 0 ? "" : ` ${s.mean[i].toFixed(2)} ± ${s.std[i].toFixed(2)}`;
    item.append(dot, s.label + number);
    legend.append(item);
  }
}
