"use strict";
// Tables: every one of a page can be sorted and filtered. Those of the document keep their rows; the trials come as data
// and are built as they are shown, so that ten thousand of them open at once.
const number = (text) => {
  const found = /[+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?/i.exec(text.replace(/−/g, "-").replace(/^[^\d+.-]*[<>]/, ""));
  return found && found.index === 0 ? parseFloat(found[0]) : NaN;
};
const compare = (a, b, sign) => {
  if (a === b) return 0;
  if (a === null || a === "" || Number.isNaN(a)) return 1; // what is not known comes last either way
  if (b === null || b === "" || Number.isNaN(b)) return -1;
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * (String(a) < String(b) ? -1 : 1);
};
function make(tag, values = {}, ...children) {
  const element = document.createElement(tag);
  Object.assign(element, values);
  element.append(...children);
  return element;
}
function controls(table, count, changed) {
  const state = { column: -1, sign: 0, words: [] };
  const heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = make("button", { type: "button", textContent: head.textContent });
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      state.sign = state.column === column ? -state.sign : head.dataset.text === undefined ? -1 : 1;
      state.column = column;
      heads.forEach((h) => h.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", state.sign > 0 ? "ascending" : "descending");
      changed(state);
    });
  });
  if (count > 7) {
    const input = make("input", { type: "search", placeholder: "filter", ariaLabel: "filter rows" });
    const shown = make("span");
    const tools = make("div", { className: "tools" }, input, shown);
    table.closest(".scroll").before(tools);
    input.addEventListener("input", () => {
      state.words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
      changed(state);
    });
    state.tell = (n) => { shown.textContent = n === count ? "" : `${n} of ${count}`; };
  }
  return state;
}
const holds = (text, words) => words.every((word) => text.includes(word));

function staticTable(table) {
  const body = table.tBodies[0];
  const parts = [];
  for (const row of body.rows) {
    if (row.classList.contains("group") || !parts.length) parts.push({ head: null, rows: [] });
    if (row.classList.contains("group")) parts.at(-1).head = row;
    else parts.at(-1).rows.push({ row, text: `${parts.at(-1).head?.textContent ?? ""} ${row.textContent}`.toLowerCase() });
  }
  const count = parts.reduce((sum, part) => sum + part.rows.length, 0);
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    const texts = parts.flatMap((part) => part.rows.map((r) => r.row.cells[column].textContent.trim()));
    if (texts.filter((text) => Number.isNaN(number(text)) && text !== "–").length) head.dataset.text = "";
  });
  const value = (row, column) => {
    const cell = row.cells[column];
    return table.tHead.rows[0].cells[column].dataset.text === undefined ? number(cell.textContent.trim()) : cell.textContent;
  };
  controls(table, count, (state) => {
    let left = 0;
    for (const part of parts) {
      if (state.column >= 0) {
        part.rows.forEach((r) => { r.key = value(r.row, state.column); });
        part.rows.sort((a, b) => compare(a.key, b.key, state.sign));
      }
      const found = part.rows.filter((r) => holds(r.text, state.words));
      part.rows.forEach((r) => { r.row.hidden = true; });
      found.forEach((r) => { r.row.hidden = false; });
      if (part.head) part.head.hidden = !found.length;
      body.append(...(part.head ? [part.head] : []), ...part.rows.map((r) => r.row));
      left += found.length;
    }
    state.tell?.(left);
  });
}

function dataTable(table, data, samples) {
  const step = data.first;
  const rows = data.rows.map((values, place) => ({ values, place, text: null }));
  const ranked = new Map();
  const ranks = (column) => { // of every row, the place of its value among the column's; -1 where there is none
    if (!ranked.has(column)) {
      const values = [...new Set(rows.map((row) => row.values[column]))].filter((value) => value !== null);
      values.sort((a, b) => compare(a, b, 1));
      const places = new Map(values.map((value, place) => [value, place]));
      ranked.set(column, Int32Array.from(rows, (row) => places.get(row.values[column]) ?? -1));
    }
    return ranked.get(column);
  };
  const body = table.tBodies[0];
  const more = make("button", { type: "button", className: "more" });
  table.closest(".scroll").after(more);
  let found = rows, shown = 0;
  const keyColumn = data.columns.indexOf("key");
  const tell = (value) => value === null ? "–" : typeof value === "number" && !Number.isInteger(value)
    ? value.toFixed(3).replace("-", "−") : String(value);
  const build = (row) => {
    const tr = make("tr");
    row.values.forEach((value, column) => {
      const name = data.columns[column], td = make("td");
      const text = column === keyColumn ? String(value ?? "").slice(0, 16) : tell(value);
      if (data.wide.includes(name)) td.className = "wide";
      // `samples` maps a trial's key to a file beside the page that holds its documents: its score is a link there
      if (name === "score" && Object.hasOwn(samples, row.values[keyColumn])) {
        td.append(make("a", { href: samples[row.values[keyColumn]], textContent: text }));
      } else td.append(column === keyColumn ? make("code", { textContent: text }) : text);
      tr.append(td);
    });
    return tr;
  };
  const show = (count) => {
    body.append(...found.slice(shown, shown + count).map(build));
    shown = Math.min(found.length, shown + count);
    more.hidden = shown >= found.length;
    more.textContent = `show ${Math.min(step, found.length - shown)} more of ${found.length - shown}`;
  };
  const redraw = (state) => {
    found = rows;
    if (state.words.length) {
      rows.forEach((row) => { row.text ??= row.values.filter((v) => v !== null).join(" ").toLowerCase(); });
      found = rows.filter((row) => holds(row.text, state.words));
    }
    if (state.column >= 0) {
      const order = ranks(state.column), known = found.filter((row) => order[row.place] >= 0);
      known.sort((a, b) => state.sign * (order[a.place] - order[b.place]));
      found = known.concat(found.filter((row) => order[row.place] < 0)); // what is not known comes last either way
    }
    shown = 0;
    body.replaceChildren();
    show(step);
    state.tell?.(found.length);
  };
  [...table.tHead.rows[0].cells].forEach((head, column) => {
    if (rows.some((row) => typeof row.values[column] === "string")) head.dataset.text = "";
  });
  controls(table, rows.length, redraw);
  more.addEventListener("click", () => show(step));
  body.replaceChildren();
  show(step);
}

// Charts: the picture in the document gives way to the same specification drawn for this width, when it comes into view.
const SHAPES = {
  circle: "M13 2a4 4 0 1 0 .01 0Z", square: "M9 2h8v8h-8Z", "triangle-up": "M13 1.5 18 10H8Z", diamond: "M13 1 18 6 13 11 8 6Z",
  cross: "M11 1.5h4v2.5h2.5v4H15v2.5h-4V8H8.500V4H11Z", "triangle-down": "M13 10.500 18 2H8Z",
  "triangle-right": "M17.500 6 9 1v10Z", "triangle-left": "M8.500 6 17 1v10Z",
};
function swatch({ color = "currentColor", shape, dash = [] }) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 26 12");
  svg.setAttribute("aria-hidden", "true");
  const part = (d, values) => {
    const path = document.createElementNS(ns, "path");
    Object.entries({ d, ...values }).forEach(([k, v]) => path.setAttribute(k, v));
    svg.append(path);
  };
  part("M0 6H26", { stroke: color, "stroke-width": 1.7, "stroke-dasharray": dash.join(" ") });
  if (shape) part(SHAPES[shape] ?? SHAPES.circle, { fill: color });
  return svg;
}
function fitted(spec, width) {
  const out = structuredClone(spec), gap = 14, axis = 64;
  let rows = (out.vconcat ?? [out]).map((row) => row.hconcat ?? [row]);
  const first = rows[0][0];
  const square = first.width === first.height;
  const gradient = out.usermeta.lines.length ? 0 : 70;
  if (width < 560) rows = rows.flat().map((panel) => [panel]);
  for (const row of rows) {
    const space = Math.min(width, row.length === 1 && !square ? 720 : square ? 360 * row.length + axis : 1100) - axis - gradient;
    row.forEach((panel, place) => {
      const shape = panel.height / panel.width;
      panel.width = Math.max(120, Math.floor((space - gap * (row.length - 1)) / row.length));
      panel.height = square ? panel.width : Math.round(Math.min(300, Math.max(170, panel.width * shape)));
      if (place === 0) for (const layer of panel.layer) {
        const y = layer.encoding?.y;
        if (y?.axis && y.axis.labels === false) { delete y.axis; y.title = first.layer[0].encoding.y.title ?? y.title; }
      }
    });
  }
  const { datasets, params, resolve, config, data } = out;
  Object.assign(config, { background: null, axis: { ...config.axis, titleLimit: 260 } });
  if (!gradient) for (const layer of rows.flat().flatMap((panel) => panel.layer)) {
    for (const name of ["color", "shape", "strokeDash"]) if (layer.encoding[name]?.field) layer.encoding[name].legend = null;
  }
  return { $schema: out.$schema, ...(data ? { data } : {}), datasets, params, resolve, config, usermeta: out.usermeta,
    spacing: gap, vconcat: rows.map((row) => ({ hconcat: row, spacing: gap, resolve })) };
}
async function chart(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const place = make("div", { className: "drawn" });
  const off = new Set();
  let view = null, width = 0;
  const draw = async () => {
    width = figure.clientWidth;
    const result = await vegaEmbed(place, fitted(spec, width), {
      actions: false, renderer: "svg", ast: true, defaultStyle: false, tooltip: { theme: "custom", disableDefaultStyle: true },
    });
    view = result.view;
    await view.signal("hidden", [...off]).runAsync();
  };
  const holder = figure.querySelector(".static");
  holder.after(place);
  try { await draw(); } catch (error) { place.remove(); throw error; }
  holder.remove();
  const { lines, references, bands, subsets } = spec.usermeta;
  const legend = make("div", { className: "legend" });
  for (const line of lines) {
    const button = make("button", { type: "button", ariaPressed: "true" }, swatch(line), line.name);
    button.addEventListener("click", () => {
      const on = off.delete(line.name) || !off.add(line.name);
      button.ariaPressed = String(on);
      view.signal("hidden", [...off]).runAsync();
    });
    legend.append(button);
  }
  references.forEach((line) => legend.append(make("span", {}, swatch(line), line.name)));
  for (const [name, label, there, on] of [["bands", "intervals", bands, true], ["subsets", "single subsets", subsets, false]]) {
    if (!there) continue;
    const box = make("input", { type: "checkbox", checked: on });
    box.addEventListener("change", () => view.signal(name, box.checked).runAsync());
    legend.append(make("label", {}, box, label));
  }
  place.after(legend);
  let waiting = 0;
  new ResizeObserver(() => {
    clearTimeout(waiting);
    waiting = setTimeout(() => { if (Math.abs(figure.clientWidth - width) > 40) draw(); }, 200);
  }).observe(figure);
}

document.querySelectorAll("table.sortable").forEach(staticTable);
const trials = document.getElementById("trials-data");
if (trials) {
  const samples = JSON.parse(document.getElementById("samples").textContent);
  dataTable(document.getElementById("trials"), JSON.parse(trials.textContent), samples);
}
const seen = new IntersectionObserver((entries) => entries.forEach((entry) => {
  if (!entry.isIntersecting) return;
  seen.unobserve(entry.target);
  chart(entry.target);
}), { rootMargin: "300px" });
if (window.vegaEmbed) document.querySelectorAll("figure.chart").forEach((figure) => seen.observe(figure));
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((part) => { part.open = true; }));
