// Words, tables and charts. Whatever a server says becomes text, never markup.

export const $ = (id) => document.getElementById(id);

export function text(node, value) {
  const said = String(value);
  if (node.textContent !== said) node.textContent = said;
  return node;
}

export function el(name, how = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(how)) {
    if (key === "class") node.className = value;
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== undefined) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

let made = 0;
// A section with a heading that names it; what a view adds goes into it.
export function card(title, how = {}) {
  const id = `h${++made}`;
  return el("section", { class: "card", "aria-labelledby": id, ...how }, el("h2", { id }, title));
}

// --- numbers

const known = (value) => typeof value === "number" && Number.isFinite(value);
const UNKNOWN = "unknown";

export function num(value, digits = 3) {
  if (!known(value)) return UNKNOWN;
  if (value === 0) return "0";
  if (Math.abs(value) >= 1000) return Math.round(value).toLocaleString("en-GB");
  return String(Number(value.toPrecision(digits)));
}
export const percent = (share) => {
  if (!known(share)) return UNKNOWN;
  const value = share * 100;
  if (value > 0 && value < 0.1) return "< 0.1 %";
  return `${Math.abs(value) >= 10 || value === Math.round(value) ? Math.round(value) : value.toFixed(1)} %`;
};
export const rate = (value) => (known(value) ? (value >= 9.95 ? num(Math.round(value)) : value.toFixed(1)) : UNKNOWN);
export const score = (value) => (known(value) ? value.toFixed(2) : "–");
export function millis(ms) {
  if (!known(ms)) return UNKNOWN;
  if (ms >= 1000) return `${num(ms / 1000)} s`;
  return `${ms >= 99.5 ? Math.round(ms) : ms.toPrecision(2)} ms`;
}
export const seconds = (s) => (known(s) ? millis(s * 1e3) : UNKNOWN);
// On an axis.
export const onAxis = (ms) => (ms >= 1000 ? `${num(ms / 1000)} s` : `${num(ms)} ms`);
export function bytes(value) {
  if (!known(value)) return UNKNOWN;
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  while (Math.abs(value) >= 1000 && at < units.length - 1) [value, at] = [value / 1000, at + 1];
  return `${num(value)} ${units[at]}`;
}
export function lasting(s) {
  if (!known(s)) return UNKNOWN;
  if (s < 90) return `${Math.round(s)} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  if (s < 129600) return `${Math.round(s / 3600)} h`;
  return `${Math.round(s / 86400)} days`;
}
export const clockTime = (time_s) => new Date(time_s * 1e3).toLocaleTimeString("en-GB");

// --- pieces

export function meter(share, mood = "") {
  const bar = el("span");
  bar.style.width = `${Math.max(0, Math.min(1, share || 0)) * 100}%`;
  return el("span", { class: `meter ${mood}`, "aria-hidden": "true" }, bar);
}

export function swatch({ tint, pattern }) {
  const node = el("span", { class: `swatch p-${pattern}`, "aria-hidden": "true" });
  node.style.setProperty("--tint", `var(--c-${tint})`);
  return node;
}

// A node that is only built again when what it says has changed: whoever reads it does not lose the place.
export function renewed(node, key, build) {
  const said = JSON.stringify(key);
  if (node.dataset.said === said) return node;
  node.dataset.said = said;
  const content = build();
  node.replaceChildren(...(Array.isArray(content) ? content : [content]).filter((child) => child !== null));
  return node;
}

// A table whose rows and cells stay the same nodes from second to second. Columns: {head, cell(row), num, wide, row}.
// A cell is text, a number, or {key, build} for anything else.
export class Table {
  constructor(caption, columns, how = {}) {
    this.columns = columns;
    this.rows = new Map();
    this.caption = el("caption", how.quiet ? { class: "hidden" } : {}, caption);
    this.body = el("tbody");
    const heads = columns.map((column) => el("th", { scope: "col", class: column.num ? "num" : "" }, column.head));
    this.table = el("table", { class: how.class || "" }, this.caption, el("thead", {}, el("tr", {}, ...heads)), this.body);
    this.none = el("p", { class: "none" }, how.none || "");
    // On a phone rows are laid out as cards, which must not make them less of a table to a screen reader.
    if (how.class?.includes("fold")) {
      const roles = { table: "table", thead: "rowgroup", tbody: "rowgroup", tr: "row", th: "columnheader" };
      for (const node of [this.table, ...this.table.querySelectorAll("*")]) {
        const role = roles[node.localName];
        if (role) node.setAttribute("role", role);
      }
    }
    this.folds = Boolean(how.class?.includes("fold"));
    this.node = el("div", {}, this.none, this.table);
    this.update([]);
  }

  update(rows) {
    const before = this.rows;
    this.rows = new Map();
    rows.forEach((row, index) => {
      const line = before.get(row.key) || this.line();
      before.delete(row.key);
      this.rows.set(row.key, line);
      this.columns.forEach((column, at) => this.fill(line.children[at], column.cell(row)));
      if (this.body.children[index] !== line) this.body.insertBefore(line, this.body.children[index] || null);
    });
    for (const line of before.values()) line.remove();
    this.none.hidden = rows.length > 0 || !this.none.textContent;
    this.table.hidden = rows.length === 0 && Boolean(this.none.textContent);
  }

  line() {
    const cells = this.columns.map((column) => {
      const how = { class: [column.num ? "num" : "", column.wide ? "wide" : "", column.bare ? "bare" : "", column.one ? "one" : ""].join(" ").trim() };
      const role = this.folds ? { role: column.row ? "rowheader" : "cell" } : {};
      return column.row ? el("th", { scope: "row", ...how, ...role }) : el("td", { ...how, ...role, "data-head": column.head });
    });
    return el("tr", this.folds ? { role: "row" } : {}, ...cells);
  }

  fill(cell, said) {
    if (said !== null && typeof said === "object") renewed(cell, said.key, said.build);
    else text(cell, said ?? "");
  }
}

// A table that may be wider than the page can be moved with the keyboard.
export const scrolling = (node, name) => el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, node);

export function pairs(list) {
  return el("dl", { class: "pairs" }, ...list.flatMap(([name, value]) => [el("dt", {}, name), el("dd", {}, value)]));
}

export function badge(word, mood) {
  const mark = { edge: "✓", warn: "!", bad: "✕" }[mood] || "·";
  return el("span", { class: `badge ${mood}` }, `${mark} ${word}`);
}

// --- pictures of inputs

export function picture({ kind, width, height, data }, name) {
  const values = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
  const canvas = el("canvas", { class: kind, role: "img", "aria-label": name });
  if (kind === "lines") {
    [canvas.width, canvas.height] = [192, 112];
    lines(canvas, values, width, height);
    return canvas;
  }
  [canvas.width, canvas.height] = [width, height];
  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const each = kind === "rgb" ? 3 : 1;
  for (let at = 0; at < width * height; at++) {
    for (let channel = 0; channel < 3; channel++) image.data[4 * at + channel] = values[each * at + (each === 3 ? channel : 0)];
    image.data[4 * at + 3] = 255;
  }
  context.putImageData(image, 0, 0);
  return canvas;
}

function lines(canvas, values, width, count) {
  const context = canvas.getContext("2d");
  context.lineWidth = 3;
  for (let line = 0; line < count; line++) {
    context.strokeStyle = color(["teal", "violet", "amber"][line]);
    context.beginPath();
    for (let at = 0; at < width; at++) {
      const x = 4 + (at / Math.max(1, width - 1)) * 184;
      context.lineTo(x, 106 - (values[line * width + at] / 255) * 100);
    }
    context.stroke();
  }
}

// --- charts

export const SPAN_S = 180;
const SPANS_S = [60, 120, SPAN_S];
const probe = document.createElement("span");
export function color(name, group = "c-") {
  if (!probe.isConnected) document.body.append(Object.assign(probe, { hidden: true }));
  probe.style.color = `var(--${group}${name})`;
  return getComputedStyle(probe).color;
}

function grain(tint, pattern) {
  const base = color(tint);
  if (pattern === "solid") return base;
  const ratio = devicePixelRatio || 1;
  const tile = document.createElement("canvas");
  tile.width = tile.height = Math.round(8 * ratio);
  const context = tile.getContext("2d");
  context.scale(tile.width / 8, tile.height / 8);
  context.fillStyle = base;
  context.fillRect(0, 0, 8, 8);
  context.strokeStyle = context.fillStyle = color("grain", "");
  context.lineWidth = 2;
  context.beginPath();
  const ways = {
    rise: [[-2, 2, 2, -2], [-2, 10, 10, -2], [6, 10, 10, 6]],
    fall: [[-2, 6, 2, 10], [-2, -2, 10, 10], [6, -2, 10, 2]],
    level: [[0, 4, 8, 4]],
    upright: [[4, 0, 4, 8]],
  }[pattern];
  if (ways) for (const [x, y, u, v] of ways) { context.moveTo(x, y); context.lineTo(u, v); }
  else context.arc(4, 4, 1.7, 0, 7);
  if (ways) context.stroke(); else context.fill();
  return context.createPattern(tile, "repeat");
}

const minutes = (u, splits) => splits.map((at) => {
  const back = Math.round(u.scales.x.max - at);
  return back <= 0 ? "now" : back % 60 ? `${back} s ago` : `${back / 60} min ago`;
});

// Lines, or areas on top of each other, over the last minutes. keys: [{key, name, tint, pattern}], from below.
export class Chart {
  constructor({ height = 200, stacked = false, write = num, log = false }) {
    Object.assign(this, { height, stacked, write, log, keys: [], points: [], uplot: null });
    this.box = el("div", { class: "chart" });
    this.caption = el("figcaption");
    this.legend = el("ul", { class: "keys" });
    this.node = el("figure", {}, this.legend, this.box, this.caption);
    this.caption.id = `c${++made}`;
    this.box.setAttribute("role", "img");
    this.box.setAttribute("aria-labelledby", this.caption.id);
    this.box.style.height = `${height}px`;
    new ResizeObserver(() => this.uplot?.setSize({ width: this.width(), height })).observe(this.box);
  }

  width() { return Math.max(200, Math.floor(this.box.clientWidth)); }

  // points: [{t, values: {key: number or null}}], times rising; now: the right end.
  update(keys, points, now, summary) {
    const same = this.uplot && keys.length === this.keys.length && keys.every((key, at) => key.key === this.keys[at].key);
    Object.assign(this, { keys, points, now });
    // At first the chart is as wide as what there is to show.
    const there_s = points.length ? now - points[0].t : 0;
    this.span_s = SPANS_S.find((span_s) => there_s <= span_s) || SPAN_S;
    if (!same) this.begin();
    this.uplot.setData(this.data());
    text(this.caption, summary);
  }

  // Again, in other colours.
  begin() {
    this.uplot?.destroy();
    this.uplot = null;
    renewed(this.legend, this.keys.map((key) => key.key), () =>
      this.keys.map((key) => el("li", {}, this.stacked ? swatch(key) : dash(key), key.name)));
    if (this.now !== undefined) this.uplot = new uPlot(this.options(), this.data(), this.box);
  }

  data() {
    const times = this.points.map((point) => point.t);
    const rows = this.keys.map((key) => this.points.map((point) => point.values?.[key.key] ?? (this.stacked && point.values ? 0 : null)));
    if (this.stacked) rows.forEach((row, at) => at && row.forEach((value, i) => { if (value !== null) row[i] += rows[at - 1][i]; }));
    // The tallest is drawn first, and those below over it.
    return [times, ...(this.stacked ? rows.reverse() : rows)];
  }

  options() {
    const ink = color("muted", "");
    const rule = color("rule", "");
    const order = this.stacked ? [...this.keys].reverse() : this.keys;
    const axis = { stroke: ink, font: "12px system-ui, sans-serif", grid: { stroke: rule, width: 1 }, ticks: { stroke: rule, width: 1, size: 4 } };
    return {
      width: this.width(), height: this.height, padding: [8, 24, 0, 0],
      legend: { show: false }, cursor: { show: false }, select: { show: false },
      scales: {
        x: { time: false, range: () => [this.now - this.span_s, this.now] },
        y: this.log
          ? { distr: 3, range: (u, low, high) => [10 ** Math.floor(Math.log10(low || 1)), 10 ** Math.ceil(Math.log10((high || 10) * 1.01))] }
          : { range: (u, low, high) => [0, Math.max(1, (high || 0) * 1.1)] },
      },
      axes: [
        { ...axis, splits: (u) => [3, 2, 1, 0].map((part) => u.scales.x.max - (part / 3) * this.span_s), values: minutes, size: 30 },
        { ...axis, size: this.log ? 56 : 38, values: (u, splits) => splits.map((at) => (at === null ? "" : this.write(at))) },
      ],
      series: [{}, ...order.map((key) => ({
        label: key.name, stroke: this.stacked ? color("card", "") : color(key.tint), width: this.stacked ? 0.5 : 2,
        fill: this.stacked ? grain(key.tint, key.pattern) : undefined, dash: key.dash, points: { show: false }, spanGaps: false,
      }))],
    };
  }
}

function dash(key) {
  const canvas = el("canvas", { width: "44", height: "20", "aria-hidden": "true" });
  Object.assign(canvas.style, { width: "22px", height: "10px", marginRight: ".4rem" });
  const context = canvas.getContext("2d");
  context.strokeStyle = color(key.tint);
  context.lineWidth = 5;
  context.setLineDash((key.dash || []).map((part) => 2 * part));
  context.moveTo(0, 10);
  context.lineTo(44, 10);
  context.stroke();
  return canvas;
}
