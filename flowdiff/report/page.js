"use strict";
// page.py writes the data. A cell is text, or [text, number to sort by or null, 1 if best].
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const make = (tag, properties = {}, ...children) => {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
};
const MAX_PICTURES = 48;
const chosen = new Set(data.chosen); // numbers of the runs whose samples are shown
const order = new Intl.Collator("en", { numeric: true });
let view = null; // { columns, rows: [{ cells, runs, node, box, words, fields }], sorted: [column, descending] }

// ---------------------------------------------------------------------------------------------- the table

const textOf = (cell) => (Array.isArray(cell) ? cell[0] : cell);
const valueOf = (cell) => (Array.isArray(cell) ? cell[1] : cell === "" ? null : cell);

function show(name) {
  view = data.views[name];
  if (!view.head) build(view);
  element("table").replaceChildren(view.head, view.body);
  mark();
  filter();
}

function build(table) {
  table.head = make("thead");
  const line = make("tr", {}, make("th", { className: "pick", scope: "col", title: "show the samples of this row" }, "▦"));
  table.columns.forEach((column, i) => {
    const button = make("button", { type: "button", onclick: () => sort(i) }, column.title);
    const best = { "-1": "lower is better", 1: "higher is better" }[column.sign];
    if (best) button.title = best;
    const head = make("th", { scope: "col", className: column.numeric ? "number" : "" }, button);
    head.setAttribute("aria-sort", "none");
    line.append(head);
  });
  table.head.append(line);
  table.body = make("tbody");
  const titles = table.columns.map((column) => column.title.toLowerCase());
  const shorts = titles.map((title) => title.replace(/\.name$/, "").split(".").pop());
  for (const row of table.rows) {
    const label = "show samples of " + row.runs.map((i) => data.runs[i].label).slice(0, 3).join(", ");
    row.box = make("input", { type: "checkbox", onchange: () => choose(row) });
    row.box.setAttribute("aria-label", label);
    row.node = make("tr", {}, make("td", { className: "pick" }, row.box));
    row.cells.forEach((cell, i) => {
      const classes = [table.columns[i].numeric ? "number" : "", Array.isArray(cell) && cell[2] ? "best" : ""];
      const td = make("td", { className: classes.join(" ").trim() });
      if (titles[i] === "state" && row.state) td.append(make("span", { className: `state ${row.state}` }, textOf(cell)));
      else td.textContent = textOf(cell);
      row.node.append(td);
    });
    row.words = row.cells.map(textOf).join(" ").toLowerCase();
    row.fields = new Map();
    row.cells.forEach((cell, i) => row.fields.set(shorts[i], cell).set(titles[i], cell));
    table.body.append(row.node);
  }
}

function sort(column) {
  const [last, descending] = view.sorted ?? [-1, false];
  // The first click puts the best value on top; names and descriptive numbers are sorted ascending.
  const down = last === column ? !descending : view.columns[column].sign > 0;
  view.sorted = [column, down];
  const direction = down ? -1 : 1;
  view.rows.sort((a, b) => {
    const [x, y] = [valueOf(a.cells[column]), valueOf(b.cells[column])];
    if (x === null || y === null) return (x === null) - (y === null); // empty cells stay at the end
    if (typeof x === "number" && typeof y === "number") return direction * (x - y);
    return direction * order.compare(x, y);
  });
  view.body.replaceChildren(...view.rows.map((row) => row.node));
  view.head.querySelectorAll("th[aria-sort]").forEach((head, i) => {
    head.setAttribute("aria-sort", i !== column ? "none" : down ? "descending" : "ascending");
  });
}

const COMPARISONS = {
  "<": (a, b) => a < b, ">": (a, b) => a > b, "<=": (a, b) => a <= b, ">=": (a, b) => a >= b,
};

function matches(row, word) {
  const parts = word.match(/^([^<>=]+)(<=|>=|<|>|=)(.*)$/);
  if (parts && row.fields.has(parts[1]) && parts[3] !== "") {
    const cell = row.fields.get(parts[1]);
    if (parts[2] === "=") return textOf(cell).toLowerCase() === parts[3];
    const [value, bound] = [valueOf(cell), Number(parts[3])];
    return typeof value === "number" && !Number.isNaN(bound) && COMPARISONS[parts[2]](value, bound);
  }
  return row.words.includes(word);
}

function filter() {
  const words = element("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  let visible = 0;
  for (const row of view.rows) {
    row.node.hidden = !words.every((word) => matches(row, word));
    visible += !row.node.hidden;
  }
  element("count").textContent = `${visible} of ${view.rows.length} rows`;
}

// ------------------------------------------------------------------------------------- samples side by side

function choose(row) {
  for (const run of row.runs) row.box.checked ? chosen.add(run) : chosen.delete(run);
  mark();
  gallery();
}

function mark() {
  for (const row of view.rows) {
    const count = row.runs.filter((run) => chosen.has(run)).length;
    row.box.checked = count > 0 && count === row.runs.length;
    row.box.indeterminate = count > 0 && count < row.runs.length;
    row.node.classList.toggle("chosen", count > 0);
  }
}

function gallery() {
  const wanted = [...chosen];
  const pictured = wanted.filter((run) => run in data.pictures);
  const notes = [];
  if (!wanted.length) notes.push("No run is selected.");
  if (wanted.length > pictured.length) notes.push(`${wanted.length - pictured.length} of the selected runs have no samples.png.`);
  if (pictured.length > MAX_PICTURES) notes.push(`Only the first ${MAX_PICTURES} of ${pictured.length} grids are shown.`);
  element("samples-note").textContent = notes.join(" ");
  element("gallery").replaceChildren(...pictured.slice(0, MAX_PICTURES).map((run) => {
    const { label, caption } = data.runs[run];
    const image = make("img", { loading: "lazy", decoding: "async", alt: `samples of ${label}`, src: data.pictures[run] });
    image.onerror = () => image.replaceWith(make("p", { className: "muted" }, `not found: ${data.pictures[run]}`));
    return make("figure", {}, image, make("figcaption", {}, make("strong", {}, label), caption));
  }));
}

// ------------------------------------------------------------------------------------------ compare configs

function compare() {
  const { keys, housekeeping, values, rows } = data.config;
  const [left, right] = [rows[element("left").value], rows[element("right").value]];
  const cell = (i) => (i ? make("td", {}, values[i]) : make("td", {}, make("span", { className: "absent" }, "not set")));
  const differing = keys.map((_, i) => i).filter((i) => left[i] !== right[i]);
  const shown = element("housekeeping").checked ? differing : differing.filter((i) => !housekeeping[i]);
  shown.sort((a, b) => housekeeping[a] - housekeeping[b]);
  const hidden = differing.length - shown.length;
  const count = shown.length ? `${shown.length} key${shown.length > 1 ? "s" : ""} differ${shown.length > 1 ? "" : "s"}` : "No key differs";
  element("diff-note").textContent = count + (hidden ? `, not counting ${hidden} of paths, logging and hardware.` : ".");
  const head = make("thead", {}, make("tr", {}, ...["key", "left", "right"].map((id) => {
    const label = id === "key" ? "key" : data.runs[element(id).value].label;
    return make("th", { scope: "col" }, label);
  })));
  const body = shown.map((i) => make("tr", {}, make("td", {}, keys[i]), cell(left[i]), cell(right[i])));
  element("diff").replaceChildren(...(shown.length ? [head, make("tbody", {}, ...body)] : []));
}

// --------------------------------------------------------------------------------------------------- start

const NAMES = { settings: "settings, mean ± sd over seeds", runs: "every run", sampling: "ways of sampling" };
for (const [name, table] of Object.entries(data.views)) {
  if (table) element("view").append(make("option", { value: name }, NAMES[name]));
}
element("view").onchange = (event) => show(event.target.value);
element("filter").oninput = filter;
element("clear").onclick = () => { chosen.clear(); mark(); gallery(); };
["left", "right"].forEach((id, side) => {
  element(id).append(...data.runs.map((run, i) => make("option", { value: i }, run.label)));
  element(id).value = data.compared[side] ?? data.compared[0];
  element(id).onchange = compare;
});
element("housekeeping").onchange = compare;
if (!data.views.settings.rows.length) element("view").value = "runs";
show(element("view").value);
gallery();
compare();
