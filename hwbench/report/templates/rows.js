// Every row: sorted, filtered and downloaded without a library.

const STEP = 60; // rows shown at first, and more at a time

const COLUMNS_BEFORE = [
  { title: "machine", left: true, needs: "machine", value: (r) => r.machine },
  { title: "format", left: true, value: (r) => r.series },
  { title: "density", value: (r) => r.density, text: (r) => plain(r.density) },
  { title: "does", left: true, wide: true, value: (r) => r.does },
  { title: "shape", left: true, value: (r) => r.out_features * r.in_features, text: (r) => `${r.out_features}×${r.in_features}` },
  { title: "tokens", needs: "tokens", value: (r) => r.tokens, text: (r) => r.tokens ?? "–" },
  { title: "dtype", left: true, value: (r) => r.dtype },
  { title: "time", needs: "time_seconds", value: (r) => r.time_seconds, text: (r) => si(r.time_seconds, "s") },
  { title: "relative", needs: "time_seconds", value: (r) => r.relative, text: (r) => (r.format === "dense" && known(r.relative) ? "1" : plain(r.relative)), more: (r) => spread(r.relative_time, r.relative_low, r.relative_high) },
  { title: "of first run", needs: "ratio", value: (r) => r.ratio, text: (r) => plain(r.ratio), more: (r) => spread(r.ratio, r.ratio_low, r.ratio_high) },
  { title: "status", left: true, value: (r) => r.status_text, tip: (r) => r.reason },
  { title: "executed", needs: "time_seconds", value: (r) => r.flops_per_second, text: (r) => si(r.flops_per_second, "FLOP/s") },
  { title: "of roof", needs: "efficiency", value: (r) => r.efficiency, text: (r) => percent(r.efficiency) },
  { title: "stored", needs: "stored_bytes", value: (r) => r.stored_bytes, text: (r) => si(r.stored_bytes, "B") },
];

const COLUMNS_AFTER = [
  { title: "score", needs: "score", value: (r) => r.score, text: (r) => plain(r.score), more: (r) => r.score_text },
];

// The quantities that were read have their columns between the two.
function tableColumns(data) {
  const read = data.quantities.filter(({ column }) => column).map((quantity) => ({
    title: quantity.column,
    needs: quantity.name,
    value: (row) => row[quantity.name],
    text: (row) => amount(row[quantity.name], quantity),
  }));
  return [...COLUMNS_BEFORE, ...read, ...COLUMNS_AFTER];
}

function tableRow(data, number) {
  const row = enrich(data.row(number));
  row.machine = data.runs.length > 1 ? data.runs[row.run].machine : null;
  const options = Object.entries(JSON.parse(row.options || "{}")).map(([key, value]) => `${key}=${value}`);
  const setting = [row.regime === "hot" ? null : row.regime, row.mode === "eager" ? null : row.mode];
  const work = row.workload === "linear" ? null : row.workload;
  row.does = [data.directions[row.direction] || row.direction, work, ...options, ...setting].filter(Boolean).join(" ");
  const flags = (row.flags || "").split(",").filter(Boolean).map((flag) => flag.replaceAll("_", " "));
  const status = data.statuses[row.status] || row.status;
  row.status_text = [status, ...flags].join(", ");
  const score = known(row.score) && Object.hasOwn(data.scores, row.score_name) ? data.scores[row.score_name] : null;
  row.score_text = score ? [score.unit, score.title].filter(Boolean).join(" ") : "";
  return row;
}

const ORDER = new Intl.Collator("en", { numeric: true });

const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : ORDER.compare(a, b));

function startRows(data, filters) {
  const { state } = filters;
  const columns = tableColumns(data).filter(({ needs }) => (needs === "machine" ? data.runs.length > 1 : !needs || data.columns[needs]));
  const find = (id) => document.getElementById(id);
  let limit = STEP;
  let from = null; // the button of the chart whose rows alone are shown
  const table = find("table");
  const head = table.createTHead().insertRow();
  const body = table.createTBody();
  const tableRows = []; // the rows as the table needs them, made when they are first needed
  const tabled = (number) => { tableRows[number] ||= tableRow(data, number); return tableRows[number]; };

  columns.forEach((column) => {
    const cell = document.createElement("th");
    cell.scope = "col";
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = column.title;
    cell.className = column.left ? "left" : "";
    cell.append(button);
    button.addEventListener("click", () => {
      state.sort = state.sort === column.title ? `-${column.title}` : column.title;
      filters.remember();
      restart();
    });
    head.append(cell);
  });

  function only() {
    const [section, number] = state.only.split(".");
    const figure = data.figures[section]?.[Number(number)];
    return figure ? { title: figure.title, numbers: new Set(figureNumbers(figure)) } : null;
  }

  function passingRows() {
    const chart = only();
    const passing = [];
    for (let row = 0; row < data.count; row += 1) {
      if (filters.passes[row] && (!chart || chart.numbers.has(row))) passing.push(row);
    }
    return passing;
  }

  function chosen() {
    const passing = passingRows();
    const down = state.sort.startsWith("-");
    const sorted = columns.find((column) => column.title === (down ? state.sort.slice(1) : state.sort));
    columns.forEach((column, place) => {
      if (column === sorted) head.cells[place].setAttribute("aria-sort", down ? "descending" : "ascending");
      else head.cells[place].removeAttribute("aria-sort");
    });
    if (!sorted) return passing;
    const values = new Map(passing.map((row) => [row, sorted.value(tabled(row))]));
    const filled = (row) => { const v = values.get(row); return v !== null && v !== undefined && v !== ""; };
    const full = passing.filter(filled).sort((a, b) => compare(values.get(a), values.get(b)));
    return [...(down ? full.reverse() : full), ...passing.filter((row) => !filled(row))];
  }

  function line(row) {
    const element = document.createElement("tr");
    if (row.status !== "ok") element.className = "bad";
    element.dataset.case = row.number;
    for (const column of columns) {
      const cell = element.insertCell();
      cell.className = `${column.left ? "left" : ""}${column.wide ? " wide" : ""}`;
      const text = column.text ? column.text(row) : column.value(row) ?? "–";
      cell.append(column.title === "format" ? caseButton(row.number, text) : text);
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
    const chart = only();
    body.replaceChildren(...rows.slice(0, limit).map((number) => line(tabled(number))));
    const count = Math.min(rows.length, limit);
    find("count").textContent = rows.length ? `${count} of ${rows.length} rows${rows.length < data.count ? `, filtered from ${data.count}` : ""}` : "No row passes the filters.";
    find("further").hidden = count === rows.length;
    find("further").textContent = `Show ${Math.min(10 * STEP, rows.length - count)} more`;
    find("only").hidden = !chart;
    find("only").textContent = chart ? `Only: ${chart.title} ✕` : "";
  }

  function count() {
    find("passing").textContent = `${passingRows().length} of ${data.count} rows`;
  }

  function restart() {
    limit = STEP;
    show();
  }

  const rows = () => chosen().map((number) => enrich(data.row(number)));
  find("further").addEventListener("click", () => {
    const before = body.rows.length;
    limit += 10 * STEP;
    show();
    keepFocus(find("further"), body.rows[before]?.querySelector("button"));
  });
  function showOnly(chart) {
    state.only = chart;
    filters.remember();
    count();
    restart();
  }

  // All rows again, and back to the chart whose rows they were.
  find("only").addEventListener("click", () => {
    showOnly("");
    if (!from) return;
    filters.reveal(from);
    from.scrollIntoView({ block: "center" });
    from.focus({ preventScroll: true });
    from = null;
  });
  find("csv").addEventListener("click", () => download(asCsv(data, rows()), "text/csv", `${fileName(data)}.csv`));
  find("json").addEventListener("click", () => download(asJson(data, rows()), "application/json", `${fileName(data)}.json`));
  for (const button of document.querySelectorAll("[data-rows]")) {
    button.addEventListener("click", () => {
      const { figure } = button.closest("figure");
      const section = button.closest(".figures").dataset.section;
      from = button;
      showOnly(`${section}.${data.figures[section].indexOf(figure)}`);
      filters.reveal(find("rows"));
      find("rows").scrollIntoView();
      find("only").focus({ preventScroll: true });
    });
  }
  return { count, draw: restart };
}

const fileName = (data) => data.runs.map((run) => run.name.replaceAll(/[^\w.-]/g, "_")).join("+").slice(0, 120) || "hwbench";
const PAGE_ONLY = ["group_number", "label", "series", "against_dense"];
const downloaded = (data) => Object.keys(data.columns).filter((name) => !PAGE_ONLY.includes(name));

function asCsv(data, rows) {
  const names = downloaded(data);
  // A text that a spreadsheet would take for a formula has an apostrophe before it, as in export.
  const text = (value) => (/^[=+\-@\t\r\n]/.test(value) ? `'${value}` : value);
  const cell = (value) => (value === null || value === undefined ? "" : typeof value === "number" ? String(value) : `"${text(String(value)).replaceAll('"', '""')}"`);
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
