// Draws the charts of a report, and follows its menus: which view of a chart, which metric, which arms of a sweep.
"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const charts = page.charts, arms = page.arms || [], metrics = page.metrics || {}, shades = page.shades;
const options = { responsive: true, displaylogo: false, displayModeBar: false };
const phone = window.matchMedia("(max-width: 600px)");
const mostLines = 60, mostBands = 12, mostRows = 40, mostGrids = 6; // beyond these a chart says nothing any more
const paperWidth = 640; // Paper is narrower than most windows, and plotly.js lays out in pixels.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const plotOf = (name) => document.querySelector("#" + name + " .plot");

const chosen = {}; // menu -> the key that is chosen
for (const menu of all("select[data-menu]")) chosen[menu.dataset.menu] = menu.value;
let shown = new Set(arms.keys()); // arms that no filter hides

// --- Charts

function draw(name) {
  stale.delete(name);
  const chart = charts[name], caption = document.querySelector("#" + name + " figcaption p");
  const index = chart.keys.indexOf(chart.menus.map((menu) => chosen[menu]).join());
  if (index < 0) {
    Plotly.purge(plotOf(name));
    plotOf(name).style.minHeight = "";
    caption.textContent = chart.missing;
    return;
  }
  const view = chart.views[index], { data, layout, note } = ofShownArms(view);
  // On a phone a drag scrolls the page; it would zoom the chart otherwise.
  layout.dragmode = phone.matches ? false : "zoom";
  caption.textContent = [chart.captions[index], note].join(" ");
  plotOf(name).style.minHeight = "";
  Plotly.react(plotOf(name), data, layout, options);
}

// The traces and points of a view that belong to a shown arm, or to none.
function ofShownArms(view) {
  const layout = Object.assign({}, view.layout), isRows = layout.meta && layout.meta.rows;
  const armsOf = (trace) => (trace.meta ? trace.meta.arms || [trace.meta.arm] : []);
  const there = [...new Set(view.data.flatMap(armsOf))].filter((arm) => shown.has(arm)).sort((a, b) => a - b);
  const drawn = spread(there, isRows ? mostRows : mostLines), isDrawn = new Set(drawn);
  const tooMany = there.length > drawn.length, hasBands = drawn.length <= mostBands;
  if (isRows) layoutRows(layout, drawn);
  const data = view.data
    .filter((trace) => !trace.meta || trace.meta.arms || (isDrawn.has(trace.meta.arm) && (hasBands || !trace.meta.band)))
    .map((trace) => (!trace.meta ? trace : trace.meta.arms ? pointsOf(trace, drawn) : named(trace, layout.meta)));
  const notes = [
    tooMany ? drawn.length + " of " + there.length + " arms, evenly spread; filters show the others." : "",
    !hasBands && view.data.some((trace) => trace.meta && trace.meta.band) ? "Bands appear at " + mostBands + " arms or fewer." : "",
  ];
  return { data, layout, note: notes.join(" ") };
}

// At most so many of the values, the first and the last among them.
function spread(values, limit) {
  if (values.length <= limit) return values;
  return [...Array(limit).keys()].map((place) => values[Math.round((place * (values.length - 1)) / (limit - 1))]);
}

function named(trace, meta) {
  return Object.assign({ name: arms[trace.meta.arm].name, hovertemplate: "%{fullData.name}<br>" + meta.hover + "<extra></extra>" }, trace);
}

function pointsOf(trace, drawn) {
  const picked = [...trace.meta.arms.keys()].filter((place) => drawn.includes(trace.meta.arms[place]));
  const pick = (values) => (Array.isArray(values) ? picked.map((place) => values[place]) : values);
  const rows = picked.map((place) => drawn.indexOf(trace.meta.arms[place]) + trace.meta.offset);
  const copy = Object.assign({}, trace, { x: pick(trace.x), y: rows, customdata: pick(trace.customdata) });
  copy.text = picked.map((place) => arms[trace.meta.arms[place]].name);
  copy.marker = Object.assign({}, trace.marker, {
    color: trace.marker.color || picked.map((place) => arms[trace.meta.arms[place]].colour),
  });
  if (trace.error_x) {
    const { array, arrayminus } = trace.error_x;
    copy.error_x = Object.assign({}, trace.error_x, { array: pick(array), arrayminus: pick(arrayminus) });
  }
  return copy;
}

function layoutRows(layout, drawn) {
  const ticks = drawn.map((arm) => arms[arm].ticks), lines = ticks.flatMap((tick) => tick.split("<br>"));
  const mostLines = Math.max(1, ...ticks.map((tick) => tick.split("<br>").length));
  const rows = { tickmode: "array", tickvals: [...drawn.keys()], ticktext: ticks, range: [drawn.length - 0.5, -0.5] };
  layout.yaxis = Object.assign({}, layout.yaxis, rows);
  layout.margin = Object.assign({}, layout.margin, { l: 14 + 6.9 * Math.max(0, ...lines.map((line) => line.length)) });
  layout.height = 130 + drawn.length * (13 + 15 * mostLines);
}

// A chart is drawn when it comes near the window: observing it anew asks at once whether it is.
const stale = new Set(Object.keys(charts));
const nearby = new IntersectionObserver(
  (entries) => entries.filter((entry) => entry.isIntersecting && stale.has(entry.target.id)).forEach((entry) => draw(entry.target.id)),
  { rootMargin: "500px" }
);
function redraw(names) {
  for (const name of names) {
    stale.add(name);
    const figure = document.getElementById(name);
    nearby.unobserve(figure);
    nearby.observe(figure);
  }
}
const drawAll = () => [...stale].forEach(draw);

// --- Tables

function fillTables() {
  const metric = metrics[chosen.metric];
  if (!metric) return;
  for (const unit of all("[data-unit]")) unit.textContent = metric.unit;
  for (const row of all(".verdicts tbody tr")) {
    const texts = metric.cells[row.dataset.arm];
    row.hidden = !texts || !shown.has(Number(row.dataset.arm));
    if (texts) all("[data-label]", row).forEach((cell, place) => (cell.dataset.text = cell.textContent = texts[place]));
  }
  sortRows();
  fillGrids(metric);
}

function fillGrids(metric) {
  const isShown = (cell) => shown.has(Number(cell.dataset.arm)) && metric.effects[cell.dataset.arm];
  const sizes = all(".grid td[data-arm]").filter(isShown).map((cell) => Math.abs(metric.effects[cell.dataset.arm][0]));
  const largest = Math.max(...sizes, Number.MIN_VALUE);
  for (const cell of all(".grid td[data-arm]")) {
    const effect = isShown(cell) ? metric.effects[cell.dataset.arm] : null, texts = metric.cells[cell.dataset.arm];
    cell.replaceChildren();
    cell.style.backgroundColor = effect ? shade((effect[0] / largest) * (metric.higher ? -1 : 1)) : "";
    cell.classList.toggle("unclear", Boolean(effect && effect[1]));
    if (!effect) continue;
    const strong = document.createElement("strong"), small = document.createElement("small");
    [strong.textContent, small.textContent] = [texts[2], texts[3]];
    cell.append(strong, small);
  }
  const grids = all(".grid"), filled = grids.filter((grid) => all("td[data-arm]", grid).some(isShown));
  for (const grid of grids) grid.hidden = !filled.slice(0, mostGrids).includes(grid);
  for (const note of all(".more-grids")) note.hidden = filled.length <= mostGrids;
  for (const end of all(".largest")) end.textContent = sizes.length ? Number(largest.toPrecision(2)) + " " + metric.unit : "0";
}

// From better (-1) over none (0) to worse (1).
function shade(position) {
  const channels = (colour) => [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  const none = channels(shades[1]), end = channels(position < 0 ? shades[0] : shades[2]);
  return "rgb(" + none.map((value, at) => Math.round(value + Math.abs(position) * (end[at] - value))) + ")";
}

let order = null; // which column the rows are in the order of, and whether from the largest down
function sortRows() {
  if (!order) return;
  const body = document.querySelector(".verdicts tbody"), sign = order.isDown ? -1 : 1;
  const textOf = (row) => row.cells[order.column].textContent;
  const numberOf = (row) => parseFloat(textOf(row).replace("−", "-").replace(/,/g, ""));
  const compare = (a, b) => {
    const [x, y] = [numberOf(a), numberOf(b)];
    if (!isNaN(x) && !isNaN(y)) return sign * (x - y);
    if (isNaN(x) !== isNaN(y)) return isNaN(x) ? 1 : -1; // what has no number comes last
    return sign * textOf(a).localeCompare(textOf(b), undefined, { numeric: true });
  };
  body.append(...all("tr", body).sort(compare));
}

for (const head of all(".verdicts th[aria-sort]"))
  head.querySelector("button").addEventListener("click", () => {
    order = { column: head.cellIndex, isDown: head.getAttribute("aria-sort") === "ascending" };
    for (const other of all(".verdicts th[aria-sort]")) other.setAttribute("aria-sort", "none");
    head.setAttribute("aria-sort", order.isDown ? "descending" : "ascending");
    sortRows();
  });

// --- Menus

for (const menu of all("select[data-menu]"))
  menu.addEventListener("change", () => {
    chosen[menu.dataset.menu] = menu.value;
    redraw(Object.keys(charts).filter((name) => charts[name].menus.includes(menu.dataset.menu)));
    if (menu.dataset.menu === "metric") fillTables();
  });

// A baseline stays beside the arms that are held against it, unless its stratum is filtered away.
function passes(arm, key, value) {
  const mine = key in arm.values ? arm.values[key] : "";
  return !value || value === "=" + mine || (arm.baseline && !page.within.includes(key));
}

function applyFilters() {
  const filters = all("select[data-filter]").map((menu) => [menu.dataset.filter, menu.value]);
  shown = new Set([...arms.keys()].filter((index) => filters.every(([key, value]) => passes(arms[index], key, value))));
  const isShown = (element) => element.dataset.arms.split(" ").some((arm) => shown.has(Number(arm)));
  for (const element of all("[data-arms]")) element.hidden = !isShown(element);
  for (const count of all(".count")) count.textContent = shown.size + " of " + arms.length + " arms shown";
  for (const menu of all("select[data-menu=run]")) {
    for (const option of menu.options) option.hidden = option.disabled = !shown.has(Number(option.value));
    const first = [...menu.options].find((option) => !option.disabled);
    if (menu.selectedOptions[0].disabled && first) chosen.run = menu.value = first.value;
  }
  fillTables();
  redraw(Object.keys(charts));
}

for (const menu of all("select[data-filter]")) menu.addEventListener("change", applyFilters);
for (const button of all(".clear"))
  button.addEventListener("click", () => {
    for (const menu of all("select[data-filter]")) menu.value = "";
    applyFilters();
  });

// --- Start, and paper

if (arms.length) applyFilters();
else redraw(Object.keys(charts));
window.addEventListener("beforeprint", () => {
  drawAll();
  for (const name of Object.keys(charts)) if (plotOf(name).data) Plotly.relayout(plotOf(name), { width: paperWidth });
});
window.addEventListener("afterprint", () => {
  for (const name of Object.keys(charts)) if (plotOf(name).data) Plotly.relayout(plotOf(name), { width: null, autosize: true });
});
