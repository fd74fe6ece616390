// Every row: sorted, filtered and downloaded without a library.

const STEP = 60; // rows shown at first, and more at a time

const COLUMNS = [
  { title: "machine", left: true, needs: "machine", value: (r) => r.machine },
  { title: "format", left: true, value: (r) => r.series },
  { title: "density", value: (r) => r.density, text: (r) => plain(r.density) },
  { title: "does", left: true, wide: true, value: (r) => r.does },
  { title: "shape", left: true, value: (r) => r.out_features * r.in_features, text: (r) => `${r.out_features}×${r.in_features}` },
  { title: "tokens", needs: "tokens", value: (r) => r.tokens, text: (r) => r.tokens ?? "–" },
  { title: "dtype", left: true, value: (r) => r.dtype },
  { title: "time", needs: "time_seconds", value: (r) => r.time_seconds, text: (r) => si(r.time_seconds, "s") },
  { title: "relative", needs: "time_seconds", value: (r) => r.relative, text: (r) => (r.format === "dense" && known(r.relative) ? "1" : plain(r.relative)), more: (r) => spread(r.relative_time, r.relative_low, r.relative_high) },
  { title: "status", left: true, value: (r) => r.said, tip: (r) => r.reason },
  { title: "executed", needs: "time_seconds", value: (r) => r.flops_per_second, text: (r) => si(r.flops_per_second, "FLOP/s") },
  { title: "of roof", needs: "efficiency", value: (r) => r.efficiency, text: (r) => percent(r.efficiency) },
  { title: "stored", needs: "stored_bytes", value: (r) => r.stored_bytes, text: (r) => si(r.stored_bytes, "B") },
  { title: "saved", needs: "saved_bytes", value: (r) => r.saved_bytes, text: (r) => si(r.saved_bytes, "B") },
  { title: "peak", needs: "peak_bytes", value: (r) => r.peak_bytes, text: (r) => si(r.peak_bytes, "B") },
  { title: "energy", needs: "energy_joules", value: (r) => r.energy_joules, text: (r) => si(r.energy_joules, "J") },
  { title: "num. error", needs: "numerical_error", value: (r) => r.numerical_error, text: (r) => plain(r.numerical_error, 2) },
  { title: "score", needs: "score", value: (r) => r.score, text: (r) => plain(r.score), more: (r) => (known(r.score) ? (r.score_name || "").replaceAll("_", " ") : "") },
];

function tableRow(data, number) {
  const row = enrich(data.row(number));
  row.machine = data.runs.length > 1 ? data.runs[row.run].machine : null;
  const options = Object.entries(JSON.parse(row.options || "{}")).map(([key, value]) => `${key}=${value}`);
  const setting = [row.regime === "hot" ? null : row.regime, row.mode === "eager" ? null : row.mode];
  const work = row.workload === "linear" ? null : row.workload;
  row.does = [data.directions[row.direction] || row.direction, work, ...options, ...setting].filter(Boolean).join(" ");
  const flags = (row.flags || "").split(",").filter(Boolean).map((flag) => flag.replaceAll("_", " "));
  const status = data.statuses[row.status] || row.status;
  row.said = [status, ...flags].join(", ");
  row.words = [row.machine, row.case, row.label, row.said, row.reason, row.does, row.kernel].join(" ").toLowerCase();
  return row;
}

function compare(a, b) {
  const [emptyA, emptyB] = [a, b].map((value) => value === null || value === undefined || value === "");
  if (emptyA || emptyB) return emptyA - emptyB;
  return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
}

function startRows(data) {
  const all = Array.from({ length: data.count }, (_, number) => tableRow(data, number));
  const columns = COLUMNS.filter(({ needs }) => (needs === "machine" ? data.runs.length > 1 : !needs || data.columns[needs]));
  const find = (id) => document.getElementById(id);
  const state = { sort: null, down: false, limit: STEP, only: null, onlyTitle: "" };
  const table = find("table");
  const head = table.createTHead().insertRow();
  const body = table.createTBody();

  for (const column of columns) {
    const cell = document.createElement("th");
    cell.scope = "col";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.title;
    cell.className = column.left ? "left" : "";
    cell.append(button);
    button.addEventListener("click", () => {
      state.down = state.sort === column ? !state.down : false;
      state.sort = column;
      for (const other of head.cells) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", state.down ? "descending" : "ascending");
      show();
    });
    head.append(cell);
  }

  function chosen() {
    const asked = find("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const status = find("status").value;
    const kept = all.filter((row) => (!state.only || state.only.has(row.number))
      && (!status || (row.status === "ok") === (status === "ok"))
      && asked.every((word) => row.words.includes(word)));
    if (!state.sort) return kept;
    const { value } = state.sort;
    const filled = (row) => { const v = value(row); return v !== null && v !== undefined && v !== ""; };
    const sorted = kept.filter(filled).sort((a, b) => compare(value(a), value(b)));
    return [...(state.down ? sorted.reverse() : sorted), ...kept.filter((row) => !filled(row))];
  }

  function line(row) {
    const element = document.createElement("tr");
    if (row.status !== "ok") element.className = "bad";
    for (const column of columns) {
      const cell = element.insertCell();
      cell.className = `${column.left ? "left" : ""}${column.wide ? " wide" : ""}`;
      cell.textContent = column.text ? column.text(row) : column.value(row) ?? "–";
      const tip = column.tip?.(row);
      if (tip) cell.title = tip;
      const more = column.more?.(row);
      if (more) {
        const aside = document.createElement("span");
        aside.className = "pm";
        aside.textContent = ` ${more}`;
        cell.append(aside);
      }
    }
    return element;
  }

  function show() {
    const rows = chosen();
    body.replaceChildren(...rows.slice(0, state.limit).map(line));
    const shown = Math.min(rows.length, state.limit);
    find("count").textContent = rows.length ? `${shown} of ${rows.length} rows${rows.length < all.length ? `, filtered from ${all.length}` : ""}` : "No row fits the filter.";
    find("further").hidden = shown === rows.length;
    find("further").textContent = `Show ${Math.min(10 * STEP, rows.length - shown)} more`;
    find("only").hidden = !state.only;
    find("only").textContent = `Only: ${state.onlyTitle} ✕`;
  }

  function restart() {
    state.limit = STEP;
    show();
  }

  find("tools").addEventListener("submit", (event) => event.preventDefault());
  find("query").addEventListener("input", restart);
  find("status").addEventListener("change", restart);
  find("further").addEventListener("click", () => { state.limit += 10 * STEP; show(); });
  find("only").addEventListener("click", () => { state.only = null; restart(); });
  find("csv").addEventListener("click", () => download(asCsv(data, chosen()), "text/csv", `${fileName(data)}.csv`));
  find("json").addEventListener("click", () => download(asJson(data, chosen()), "application/json", `${fileName(data)}.json`));
  for (const button of document.querySelectorAll("[data-rows]")) {
    button.addEventListener("click", () => {
      const element = button.closest("figure");
      const figure = data.figures[element.dataset.section][Number(element.dataset.number)];
      state.only = new Set(figureNumbers(figure));
      state.onlyTitle = figure.title;
      restart();
      find("rows").scrollIntoView();
      find("only").focus({ preventScroll: true });
    });
  }
  show();
}

const fileName = (data) => data.runs.map((run) => run.name.replaceAll(/[^\w.-]/g, "_")).join("+").slice(0, 120) || "hwbench";
const downloaded = (data) => Object.keys(data.columns).filter((name) => name !== "group_number" && name !== "label" && name !== "series");

function asCsv(data, rows) {
  const names = downloaded(data);
  const cell = (value) => (value === null || value === undefined ? "" : typeof value === "number" ? String(value) : `"${String(value).replaceAll('"', '""')}"`);
  const value = (row, name) => (name === "run" ? data.runs[row.run].name : row[name]);
  return [names.join(","), ...rows.map((row) => names.map((name) => cell(value(row, name))).join(","))].join("\r\n") + "\r\n";
}

function asJson(data, rows) {
  const names = downloaded(data);
  const value = (row, name) => (name === "run" ? data.runs[row.run].name : row[name]);
  return JSON.stringify(rows.map((row) => Object.fromEntries(names.map((name) => [name, value(row, name)]))), null, 1);
}

function download(text, type, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
