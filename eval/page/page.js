"use strict";
// The state of the page lives in the address after "#", so that a view can be linked to.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56a0d3", "#8a63d2", "#7a7a7a", "#c23b3b", "#3a9d9d"];
const SYMBOLS = ["circle", "square", "diamond", "triangle-up", "cross", "x", "star", "hexagon", "triangle-down", "pentagon"];
const SHOWN = 25; // queries in a list before "more"

const finished = data.rows.filter((row) => row.error === null);
const families = [...new Set(finished.map((row) => row.family))];
const datasets = [...new Set(finished.map((row) => row.dataset))];
const judged = Object.keys(data.runs);
const state = {
  dataset: datasets.includes("average") ? "average" : datasets[0],
  measure: data.measure,
  size: "code_bytes",
  bars: false,
  hidden: new Set(),
  budget: null,
  sort: "code_bytes",
  descending: false,
  where: judged[0],
  left: null,
  right: "F32",
};

// ---- The two rules that the command line has too -----------------------------------------------------------------

function upperHull(points) {
  const order = points.map((_, i) => i).sort((a, b) => points[a][0] - points[b][0] || points[b][1] - points[a][1] || a - b);
  const under = (a, b, c) => {
    const [ax, bx, cx] = [Math.log2(a[0]), Math.log2(b[0]), Math.log2(c[0])];
    return (b[1] - a[1]) * (cx - ax) <= (c[1] - a[1]) * (bx - ax);
  };
  const hull = [];
  for (const i of order) {
    if (hull.length && points[i][1] <= points[hull.at(-1)][1]) continue;
    while (hull.length >= 2 && under(points[hull.at(-2)], points[hull.at(-1)], points[i])) hull.pop();
    hull.push(i);
  }
  return hull;
}

function bestWithin(rows, budget, measure, size) {
  const better = (a, b) => b[measure] - a[measure] || a[size] - b[size] || (a.spec < b.spec ? -1 : a.spec > b.spec ? 1 : 0);
  return rows.filter((row) => row[size] <= budget && !row.heavy).sort(better)[0];
}

// ---- Small helpers -------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = Object.assign(document.createElement(tag), attributes);
  node.append(...children);
  return node;
}

function options(select, values, chosen) {
  select.replaceChildren(...values.map((value) => element("option", { value, textContent: value, selected: value === chosen })));
}

const bytesText = (value) => (value >= 100 || Number.isInteger(value) ? Math.round(value * 10) / 10 : value.toFixed(1)) + " B";
const score = (value) => (value === undefined || value === null ? "–" : value.toFixed(4));
const signed = (value) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(3);
const visible = () =>
  finished.filter((row) => row.dataset === state.dataset && !state.hidden.has(row.family) && row[state.measure] !== undefined);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function hover(row) {
  const lines = [`<b>${row.spec}</b>`, `${state.measure} ${score(row[state.measure])}`];
  if (state.measure === data.measure) lines.push(`95 % ${score(row[`${data.measure}_low`])} to ${score(row[`${data.measure}_high`])}`);
  lines.push(`${bytesText(row.code_bytes)} code, ${bytesText(row.index_bytes_per_vector)} index`);
  if (row.heavy) lines.push("heavy: what the vectors share outweighs half of float32");
  if (row.float32_difference !== undefined) lines.push(`${signed(row.float32_difference)} from float32 (p = ${row.float32_p.toFixed(3)})`);
  lines.push(`${Math.round(row.queries_per_second)} queries/s, ${row.p50_ms.toFixed(2)} ms median`);
  return lines.join("<br>");
}

// ---- The chart -------------------------------------------------------------------------------------------------------

function drawChart() {
  const rows = visible();
  const light = rows.filter((row) => !row.heavy);
  const points = light.map((row) => [row[state.size], row[state.measure]]);
  const hull = upperHull(points);
  const best = bestWithin(rows, state.budget, state.measure, state.size);
  const traces = [{
    x: hull.map((i) => points[i][0]), y: hull.map((i) => points[i][1]), text: hull.map((i) => light[i].spec), mode: "lines+text",
    textposition: "top left", textfont: { size: 11 }, line: { color: css("--soft"), width: 1.5, dash: "dot" }, name: "frontier",
    hoverinfo: "skip", cliponaxis: false,
  }];
  families.forEach((family, index) => {
    const [colour, symbol] = [COLOURS[index % COLOURS.length], SYMBOLS[(index + Math.floor(index / COLOURS.length)) % SYMBOLS.length]];
    const mine = rows.filter((row) => row.family === family);
    if (!mine.length) return;
    const trace = {
      x: mine.map((row) => row[state.size]), y: mine.map((row) => row[state.measure]), text: mine.map(hover), name: family,
      mode: "markers", hovertemplate: "%{text}<extra></extra>",
      marker: { size: 10, color: colour, symbol, line: { width: 1, color: css("--page") } },
    };
    if (state.bars && state.measure === data.measure) {
      trace.error_y = {
        type: "data", symmetric: false, thickness: 1, width: 3, color: colour,
        array: mine.map((row) => row[`${data.measure}_high`] - row[data.measure]),
        arrayminus: mine.map((row) => row[data.measure] - row[`${data.measure}_low`]),
      };
    }
    traces.push(trace);
  });
  if (best) {
    traces.push({
      x: [best[state.size]], y: [best[state.measure]], mode: "markers", name: "best within the budget", hoverinfo: "skip",
      marker: { size: 20, symbol: "circle-open", color: css("--accent"), line: { width: 3 } },
    });
  }
  const axis = { gridcolor: css("--line"), linecolor: css("--line"), zeroline: false, tickfont: { color: css("--soft") } };
  const sizes = rows.map((row) => row[state.size]);
  const layout = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", font: { color: css("--ink"), family: "system-ui, sans-serif" },
    margin: { l: 60, r: 20, t: 20, b: 55 }, hovermode: "closest", modebar: { bgcolor: "rgba(0,0,0,0)", color: css("--soft"), activecolor: css("--accent") }, legend: { orientation: "h", y: -0.2 },
    hoverlabel: { bgcolor: css("--panel"), bordercolor: css("--line"), font: { color: css("--ink") } },
    xaxis: { ...axis, type: "log", dtick: Math.log10(2), tick0: 0, tickformat: "~r", title: { text: byId("size").selectedOptions[0].textContent },
      range: sizes.length ? [Math.log10(Math.min(...sizes)) - 0.12, Math.log10(Math.max(...sizes)) + 0.12] : undefined },
    yaxis: { ...axis, title: { text: state.measure } },
    shapes: state.budget === null ? [] : [{
      type: "line", x0: state.budget, x1: state.budget, y0: 0, y1: 1, yref: "paper", line: { color: css("--accent"), width: 1, dash: "dash" },
    }],
  };
  Plotly.react("chart", traces, layout, { displaylogo: false, responsive: true, modeBarButtonsToRemove: ["select2d", "lasso2d"] });
  byId("chart").dataset.frontier = hull.map((i) => light[i].spec).join(" ");
  byId("best").textContent = best
    ? `${best.spec}: ${state.measure} ${score(best[state.measure])} at ${bytesText(best[state.size])}`
    : "No spec shown fits this budget.";
  byId("best").dataset.spec = best ? best.spec : "";
  return { hull: new Set(hull.map((i) => light[i].spec)), best };
}

// ---- The table -------------------------------------------------------------------------------------------------------

const COLUMNS = [
  ["spec", "spec", (row) => row.spec],
  ["family", "method", (row) => row.family],
  ["code_bytes", "code B", (row) => bytesText(row.code_bytes)],
  ["index_bytes_per_vector", "index B", (row) => bytesText(row.index_bytes_per_vector)],
  ...data.measures.map((name) => [name, name, (row) => score(row[name])]),
  ["float32_difference", "Δ float32", (row) => (row.float32_difference === undefined ? "–" : signed(row.float32_difference))],
  ["float32_p", "p", (row) => (row.float32_p === undefined ? "–" : row.float32_p.toFixed(3))],
  ["queries_per_second", "queries/s", (row) => Math.round(row.queries_per_second)],
  ["p50_ms", "p50 ms", (row) => row.p50_ms.toFixed(2)],
  ["p95_ms", "p95 ms", (row) => row.p95_ms.toFixed(2)],
  ["encode_per_second", "encoded/s", (row) => Math.round(row.encode_per_second)],
  ["peak_memory_mb", "peak MB", (row) => row.peak_memory_mb.toFixed(0)],
];

function drawTable({ hull, best }) {
  const sign = state.descending ? -1 : 1;
  const rows = visible().sort((a, b) => {
    const [x, y] = [a[state.sort], b[state.sort]];
    return sign * (typeof x === "string" ? x.localeCompare(y) : (x ?? -Infinity) - (y ?? -Infinity));
  });
  const head = COLUMNS.map(([key, title]) => {
    const button = element("button", { type: "button", textContent: title + (state.sort === key ? (state.descending ? " ↓" : " ↑") : "") });
    button.onclick = () => change({ sort: key, descending: state.sort === key ? !state.descending : key !== "spec" && key !== "family" });
    const cell = element("th", { scope: "col" }, button);
    if (state.sort === key) cell.ariaSort = state.descending ? "descending" : "ascending";
    return cell;
  });
  const body = rows.map((row) => {
    const cells = COLUMNS.map(([key, , text]) => {
      if (key !== "spec") return element("td", { textContent: text(row) });
      const button = element("button", { type: "button", textContent: (hull.has(row.spec) ? "● " : row.heavy ? "▲ " : "") + row.spec, title: "Compare query by query" });
      button.onclick = () => { change({ left: row.spec }); byId("compare-title").scrollIntoView(); };
      return element("td", {}, button);
    });
    return element("tr", { className: row === best ? "best" : "" }, ...cells);
  });
  const caption = element("caption", { hidden: true, textContent: `Runs on ${state.dataset}` });
  byId("runs").replaceChildren(caption, element("thead", {}, element("tr", {}, ...head)), element("tbody", {}, ...body));
  const failed = data.rows.filter((row) => row.error !== null);
  byId("failed").replaceChildren(...failed.map((row) => element("p", { className: "hint", textContent: `Failed: ${row.spec} on ${row.dataset}: ${row.error}` })));
}

// ---- Query by query --------------------------------------------------------------------------------------------------

function passageList(dataset, spec, query) {
  const shown = data.runs[dataset].specs[spec].top[query].map((row) => {
    const [id, text] = data.runs[dataset].passages[row];
    const grade = data.runs[dataset].relevant[query][row];
    const item = element("li", {});
    if (grade) item.append(element("span", { className: "relevant", textContent: `✓ relevant${grade > 1 ? ` (${grade})` : ""} ` }));
    item.append(element("code", { textContent: id }), ` ${text}`);
    return item;
  });
  return element("div", {}, element("h4", { textContent: spec }), element("ol", {}, ...shown));
}

function queryItem(dataset, entry) {
  const node = element("details", {}, element("summary", {}, element("b", { textContent: signed(entry.difference) }), entry.text));
  node.addEventListener("toggle", () => {
    if (node.open && node.childElementCount === 1) {
      const pair = [state.left, state.right].map((spec) => passageList(dataset, spec, entry.query));
      node.append(element("div", { className: "pair" }, ...pair));
    }
  });
  return node;
}

function drawList(box, dataset, entries) {
  const nodes = entries.slice(0, SHOWN).map((entry) => queryItem(dataset, entry));
  if (entries.length > SHOWN) {
    const more = element("button", { type: "button", textContent: `${entries.length - SHOWN} more` });
    more.onclick = () => more.replaceWith(...entries.slice(SHOWN).map((entry) => queryItem(dataset, entry)));
    nodes.push(more);
  }
  box.replaceChildren(...(nodes.length ? nodes : [element("p", { className: "hint", textContent: "None." })]));
}

function drawComparison(best) {
  const run = data.runs[state.where];
  const specs = Object.keys(run.specs);
  if (!specs.includes(state.right)) state.right = specs[0];
  if (!specs.includes(state.left)) state.left = best && specs.includes(best.spec) ? best.spec : specs[0];
  options(byId("left"), specs, state.left);
  options(byId("right"), specs, state.right);
  const entries = run.queries.map((text, query) => ({
    text, query, difference: run.specs[state.left].scores[query] - run.specs[state.right].scores[query],
  }));
  const wins = entries.filter((e) => e.difference > 1e-9).sort((a, b) => b.difference - a.difference);
  const losses = entries.filter((e) => e.difference < -1e-9).sort((a, b) => a.difference - b.difference);
  const mean = entries.reduce((sum, e) => sum + e.difference, 0) / entries.length;
  byId("verdict").textContent = `${state.left} against ${state.right}, ${data.measure}: ${wins.length} wins, `
    + `${entries.length - wins.length - losses.length} ties, ${losses.length} losses; mean difference ${signed(mean)}.`;
  drawList(byId("wins"), state.where, wins);
  drawList(byId("losses"), state.where, losses);
}

// ---- State -------------------------------------------------------------------------------------------------------------

const sizes = () => [...new Set(visible().map((row) => row[state.size]))].sort((a, b) => a - b);

function readAddress() {
  const wanted = new URLSearchParams(location.hash.slice(1));
  if (datasets.includes(wanted.get("dataset"))) state.dataset = wanted.get("dataset");
  if (data.measures.includes(wanted.get("measure"))) state.measure = wanted.get("measure");
  if (wanted.get("size") === "index_bytes_per_vector") state.size = "index_bytes_per_vector";
  if (judged.includes(wanted.get("where"))) state.where = wanted.get("where");
  for (const key of ["left", "right"]) if (wanted.has(key)) state[key] = wanted.get(key);
  if (wanted.has("hidden")) state.hidden = new Set(wanted.get("hidden").split(" ").filter((family) => families.includes(family)));
  if (Number(wanted.get("budget")) > 0) state.budget = Number(wanted.get("budget"));
  state.bars = wanted.has("bars");
}

function writeAddress() {
  const parts = new URLSearchParams({ dataset: state.dataset, measure: state.measure, size: state.size, budget: state.budget });
  if (state.hidden.size) parts.set("hidden", [...state.hidden].join(" "));
  if (state.bars) parts.set("bars", "1");
  for (const key of ["where", "left", "right"]) if (state[key]) parts.set(key, state[key]);
  history.replaceState(null, "", `#${parts}`);
}

function draw() {
  const steps = sizes();
  if (state.budget === null) state.budget = steps[Math.floor((steps.length - 1) / 2)] ?? null;
  byId("budget").max = Math.max(0, steps.length - 1);
  byId("budget").value = Math.max(0, steps.findLastIndex((size) => size <= state.budget));
  byId("budget").ariaValueText = `${state.budget} bytes`;
  if (document.activeElement !== byId("bytes")) byId("bytes").value = Math.round(state.budget * 10) / 10;
  const drawn = drawChart();
  drawTable(drawn);
  if (judged.length) drawComparison(drawn.best);
}

function change(parts) {
  const focus = document.activeElement?.closest("th")?.cellIndex; // the table is made anew: keep the place of the keyboard
  Object.assign(state, parts);
  draw();
  writeAddress();
  if (focus !== undefined) byId("runs").tHead.rows[0].cells[focus].firstChild.focus();
}

function start() {
  readAddress();
  byId("summary").textContent = data.summary;
  options(byId("dataset"), datasets, state.dataset);
  options(byId("measure"), data.measures, state.measure);
  options(byId("where"), judged, state.where);
  byId("size").value = state.size;
  byId("bars").checked = state.bars;
  byId("toggles").replaceChildren(...families.map((family) => {
    const box = element("input", { type: "checkbox", checked: !state.hidden.has(family), value: family });
    box.onchange = () => { box.checked ? state.hidden.delete(family) : state.hidden.add(family); change({}); };
    return element("label", {}, box, ` ${family}`);
  }));
  const setAll = (shown) => () => {
    byId("toggles").querySelectorAll("input").forEach((box) => { box.checked = shown; });
    change({ hidden: new Set(shown ? [] : families) });
  };
  byId("all").onclick = setAll(true);
  byId("none").onclick = setAll(false);
  for (const key of ["dataset", "measure", "where", "left", "right"]) byId(key).onchange = (event) => change({ [key]: event.target.value });
  byId("size").onchange = (event) => change({ size: event.target.value, budget: null });
  byId("bars").onchange = (event) => change({ bars: event.target.checked });
  byId("budget").oninput = (event) => change({ budget: sizes()[event.target.value] ?? state.budget });
  byId("bytes").oninput = (event) => { if (Number(event.target.value) > 0) change({ budget: Number(event.target.value) }); };
  for (const id of ["controls", "comparing"]) byId(id).onsubmit = (event) => event.preventDefault();
  byId("about").replaceChildren(...data.about.flatMap(([name, value]) => [
    element("dt", { textContent: name }), element("dd", {}, name === "command" ? element("code", { textContent: value }) : value),
  ]));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  draw();
}

start();
