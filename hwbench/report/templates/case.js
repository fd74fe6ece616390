// One case in a dialog: what it took, where it stands, and the command that measures it again.

const shellWord = (text) => (/^[\w@%+=:,./-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

// The terms of --filter that are true of a row, by key; those of knobs and options are Python's.
function filterTerms(data, row) {
  const read = (name) => data.column(name)[row] ?? "None";
  return {
    format: `format=${read("format")}`,
    ...data.again.terms[data.column("options")[row]],
    ...data.again.terms[data.column("knobs")[row]],
    direction: `direction=${read("direction")}`,
    tokens: `tokens=${read("tokens")}`,
    shape: `shape=${read("out_features")}x${read("in_features")}`,
    dtype: `dtype=${read("dtype")}`,
    workload: `workload=${read("workload")}`,
    regime: `regime=${read("regime")}`,
    mode: `mode=${read("mode")}`,
  };
}

// The fewest terms, in this order, that leave of its run this row alone; all of them where the
// suite may have other cases than the run. A knob that only the suite gives the format is refused.
function filterOf(data, number, all) {
  const [run, format] = [data.column("run"), data.column("format")];
  const ownTerms = filterTerms(data, number);
  let left = [];
  for (let row = 0; row < data.count; row += 1) {
    if (run[row] === run[number] && format[row] === format[number]) left.push(filterTerms(data, row));
  }
  const knobs = data.again.runs[run[number]].knobs[format[number]] || [];
  const had = new Set(left.flatMap((terms) => (terms.workload === ownTerms.workload ? Object.keys(terms) : [])));
  const used = [ownTerms.format];
  for (const key of new Set([...Object.keys(ownTerms), ...had, ...knobs])) {
    const matching = left.filter((terms) => terms[key] === ownTerms[key]);
    if (key !== "format" && (matching.length < left.length || all || !had.has(key))) used.push(ownTerms[key] ?? `${key}=None`);
    left = matching;
  }
  return used;
}

// The command that measures a case again, and the note beside it.
function reproduce(data, number) {
  const row = data.row(number);
  const { suite, file, rest, filter } = data.again.runs[row.run];
  const [axes, elsewhere] = [1, 2].map((need) => data.again.needs[number] === need); // as _again.py has it
  const words = ["hwbench run --suite", elsewhere ? file : suite, rest];
  if (axes) {
    if (known(row.tokens)) words.push(`--shape ${row.out_features}x${row.in_features} --tokens ${row.tokens} --dtype ${row.dtype}`);
    for (const name of ["density", "stored"]) {
      const share = (data.again.terms[row.knobs] || {})[name];
      if (share) words.push(`--${share.replace("=", " ")}`);
    }
    words.push(`--format ${shellWord(row.format)}`, data.again.given[row.options] || "");
  }
  // The filter of the run may leave dense out, which is then there as a yardstick only.
  const runFilter = filter && row.format !== "dense" ? [filter] : [];
  const all = axes || (filter && row.format === "dense");
  words.push(`--filter ${shellWord([...runFilter, ...filterOf(data, number, all)].join(","))}`);
  const note = elsewhere ? "No suite of hwbench has this case: put the path of the run’s suite file there." : "";
  return { command: words.filter(Boolean).join(" "), note };
}

// The command that shows the kernels of a case; nothing where hwbench profile does not run such a case.
function profiled(data, number) {
  const row = data.row(number);
  const usual = row.workload === "linear" && row.options === "{}" && row.mode === "eager" && row.regime === "hot";
  if (!usual || row.status !== "ok") return "";
  const words = ["hwbench profile --format", shellWord(row.format)];
  for (const [name, value] of Object.entries(JSON.parse(row.knobs))) {
    if (name === "density" || name === "stored") words.push(`--${name} ${value}`);
    else words.push("--knob", shellWord(`${name}=${knobWord(value)}`));
  }
  words.push(`--shape ${row.out_features}x${row.in_features} --tokens ${row.tokens} --dtype ${row.dtype}`);
  words.push(`--direction ${row.direction}`, data.again.runs[row.run].device);
  return words.join(" ");
}

// A knob as --knob reads it: JSON, or a text that is none.
function knobWord(value) {
  if (typeof value !== "string") return JSON.stringify(value);
  try {
    JSON.parse(value);
    return JSON.stringify(value);
  } catch {
    return value;
  }
}

const listOf = (text) => Object.entries(JSON.parse(text || "{}")).map(([key, value]) => `${key} ${typeof value === "string" ? value : JSON.stringify(value)}`).join(", ");

// The facts of a row under their headings; those that are not known are left out.
function caseFacts(data, row) {
  const share = known(row.asked_density) && row.density !== row.asked_density ? `${plain(row.density)} (asked ${row.asked_density})` : plain(row.density);
  const score = Object.hasOwn(data.scores, row.score_name || "") ? data.scores[row.score_name] : { title: "score", unit: "" };
  const sections = [
    ["Result", [
      ["status", data.statuses[row.status] || row.status],
      ["reason", row.reason],
      ["time", known(row.time_seconds) && `${si(row.time_seconds, "s")}${range(row.time_low, row.time_high, (v) => si(v, "s"))}`],
      ["relative to dense", known(row.relative) && `${plain(row.relative)}×${range(row.relative_low, row.relative_high, plain)}`],
      ["of the first run", known(row.ratio) && `${plain(row.ratio)}×${range(row.ratio_low, row.ratio_high, plain)}`],
      [score.title, known(row.score) && [plain(row.score), score.unit].filter(Boolean).join(" ")],
      ...data.quantities.map((quantity) => [quantity.heading, known(row[quantity.name]) && amount(row[quantity.name], quantity)]),
      ["replicates", known(row.replicates) && String(row.replicates)],
    ]],
    ["Where it stands", [
      ["bound by", row.bound],
      ["of its roof", known(row.efficiency) && percent(row.efficiency)],
      ["executed", known(row.flops_per_second) && si(row.flops_per_second, "FLOP/s")],
      ["intensity", known(row.intensity) && `${plain(row.intensity)} FLOP/B`],
      ["FLOPs", known(row.flops) && si(row.flops, "FLOP")],
      ["bytes moved", known(row.compulsory_bytes) && si(row.compulsory_bytes, "B")],
      ["bytes between stages", row.intermediate_bytes > 0 && si(row.intermediate_bytes, "B")],
    ]],
    ["Format", [
      ["knobs", listOf(row.knobs)],
      ["resolved", listOf(row.resolved)],
      ["kernel", row.kernel],
      ["density", known(row.density) && share],
      ["parameters", known(row.parameters) && String(row.parameters)],
      ["stored", known(row.stored_bytes) && `${si(row.stored_bytes, "B")}, ${percent(row.stored_ratio)} of dense`],
      ["workload", [row.workload, listOf(row.options)].filter(Boolean).join(": ")],
      ["caches", row.regime],
      ["mode", row.mode],
      ["timed by", row.contract],
    ]],
  ];
  const filled = sections.map(([heading, facts]) => [heading, facts.filter(([, value]) => value)]);
  return filled.filter(([, facts]) => facts.length);
}

// A dialog stands above all that is not in it, so the one tooltip of the charts goes with it. Vega
// finds it by its id, and makes it in the body only where there is none.
function takeTooltip(place) {
  const tooltip = document.getElementById("vg-tooltip-element") || make("div", "", { id: "vg-tooltip-element", className: "vg-tooltip" });
  tooltip.classList.remove("visible"); // it was of another chart
  place.append(tooltip);
}

function startCase(data, filters) {
  const dialog = document.getElementById("case");
  const find = (name) => dialog.querySelector(`[data-part=${name}]`);
  const everyRow = new Uint8Array(data.count).fill(1);
  let shown = null; // the number of the case
  const names = new Map(data.settings.flatMap(({ candidates }) => candidates.map((each) => [each.row, each])));

  function paint(part, figure) {
    const element = find(part);
    element.hidden = !figure;
    element.figure = figure;
    if (figure) element.painted = drawFigure(data, element, everyRow);
  }

  function fill(number) {
    const row = enrich(data.row(number));
    const candidate = names.get(number);
    find("title").textContent = candidate ? candidate.name : row.label;
    find("setting").textContent = data.groups[row.group_number];
    find("verdict").textContent = candidate ? [
      row.format === "dense" ? si(row.time_seconds, "s") : `${si(row.time_seconds, "s")}, ${plain(row.relative)}× the time of dense`,
      candidate.verdict, candidate.error, candidate.modes,
    ].filter(Boolean).join("; ") : "";
    const flags = (row.flags || "").split(",").filter(Boolean);
    find("flags").replaceChildren(...flags.map((name) => make("li", `${name.replaceAll("_", " ")}: ${data.flags[name] || "set by a meter of another package"}`)));
    find("facts").replaceChildren(...caseFacts(data, row).map(([heading, facts]) => {
      const box = make("div");
      const list = make("dl");
      list.append(...facts.map(([name, value]) => {
        const line = make("div");
        line.append(make("dt", name), make("dd", value));
        return line;
      }));
      box.append(make("h3", heading), list);
      return box;
    }));
    const { command, note } = reproduce(data, number);
    find("command").textContent = command;
    find("note").textContent = note;
    const kernels = profiled(data, number);
    find("profile").hidden = !kernels;
    find("kernels").textContent = kernels;
    find("id").textContent = `${row.case}, run ${data.runs[row.run].name}`;
    find("status").textContent = "";
  }

  function open(number) {
    fill(number);
    shown = number;
    if (!dialog.open) {
      dialog.showModal();
      takeTooltip(dialog);
    }
    dialog.scrollTop = 0;
    filters.state.opened = String(number);
    filters.remember();
    // The width of the charts is that of the dialog, so they are drawn when it is open.
    const has = (name) => known(data.column(name)[number]);
    paint("spread", has("spread_5") && data.specifications.spread ? { kind: "spread", rows: [[number, number + 1]] } : null);
    paint("series", data.figures.series.find((figure) => figureNumbers(figure)[0] === number));
  }

  dialog.addEventListener("close", () => {
    takeTooltip(document.body);
    filters.state.opened = "";
    filters.remember();
  });
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); }); // beside it
  find("close").addEventListener("click", () => dialog.close());
  for (const [button, command] of [["copy", "command"], ["copy-kernels", "kernels"]]) {
    find(button).addEventListener("click", () => copyText(find(command).textContent, find("status")));
  }
  document.addEventListener("click", (event) => {
    const place = event.target.closest("[data-case]");
    if (!place || dialog.contains(place)) return;
    // Who selects words of a row does not ask for its case; who presses its button does.
    if (event.target.closest("button") || window.getSelection().isCollapsed) open(Number(place.dataset.case));
  });
  document.addEventListener("mark", (event) => open(event.detail)); // of a chart
  return () => {
    const number = Number(filters.state.opened);
    if (filters.state.opened !== "" && Number.isInteger(number) && number >= 0 && number < data.count) {
      if (!dialog.open || number !== shown) open(number);
    } else if (dialog.open) dialog.close();
  };
}

// Copy a text to the clipboard and say so in the status; without a clipboard the text is selected.
async function copyText(text, status, done = "Copied.") {
  try {
    await navigator.clipboard.writeText(text);
    status.textContent = done;
  } catch {
    const area = make("textarea", text, { value: text });
    (status.closest("dialog") || document.body).append(area);
    area.select();
    status.textContent = document.execCommand("copy") ? done : "This browser does not let a page copy: select the text.";
    area.remove();
  }
}

// A format as the button that opens its case.
function caseButton(number, ...content) {
  const button = make("button", "", { type: "button", className: "case" });
  button.dataset.case = number;
  button.append(...content);
  return button;
}
