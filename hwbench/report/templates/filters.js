// The filters: which rows pass, the controls that say so, and the address that keeps them.

const EVERYTHING = "everything"; // the view of all sections; the other is a summary
const JOIN = "\u001f"; // between several values of one filter in the address: no name holds it

function startFilters(data, changed) {
  const form = document.getElementById("filters");
  const query = document.getElementById("query");
  const dimensions = makeDimensions(data).filter(({ values }) => values.length > 1);
  const state = {
    words: "", sort: "", only: "", opened: "", more: {}, section: "", view: "", setting: 0, level: 0, figure: "", open: "",
    fresh: true, // from the address, and not yet shown
  };
  const passes = new Uint8Array(data.count);

  for (const dimension of dimensions) form.insertBefore(control(dimension), form.querySelector(".search"));

  function control(dimension) {
    const box = document.createElement("details");
    box.className = "choice";
    box.dataset.filter = dimension.name;
    const title = document.createElement("summary");
    const set = document.createElement("fieldset");
    const legend = document.createElement("legend");
    legend.textContent = `${dimension.title}: all, or only those ticked`;
    set.append(legend);
    dimension.boxes = dimension.values.map((word, code) => {
      const label = document.createElement("label");
      const input = document.createElement("input");
      input.type = "checkbox";
      input.addEventListener("change", () => {
        if (input.checked) dimension.chosen.add(code);
        else dimension.chosen.delete(code);
        apply();
      });
      label.append(input, ` ${word}`);
      set.append(label);
      return input;
    });
    dimension.summary = title;
    box.append(title, set);
    box.addEventListener("toggle", () => {
      if (box.open) for (const other of form.querySelectorAll("details.choice[open]")) if (other !== box) other.open = false;
    });
    box.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !box.open) return;
      box.open = false;
      title.focus();
    });
    return box;
  }

  function show() {
    for (const { title, summary, chosen, boxes, values } of dimensions) {
      const names = [...chosen].map((code) => values[code]);
      summary.textContent = names.length ? `${title}: ${names.length > 2 ? `${names.length} chosen` : names.join(", ")}` : title;
      summary.classList.toggle("on", names.length > 0);
      boxes.forEach((box, code) => { box.checked = chosen.has(code); });
    }
    if (query.value !== state.words) query.value = state.words;
    document.getElementById("reset").hidden = !active();
  }

  const active = () => Boolean(state.words.trim()) || dimensions.some(({ chosen }) => chosen.size);

  function sieve() {
    passes.fill(1);
    for (const { chosen, codes } of dimensions) {
      if (chosen.size) for (let row = 0; row < data.count; row += 1) if (!chosen.has(codes[row])) passes[row] = 0;
    }
    const searched = state.words.replaceAll("_", " ").toLowerCase().split(/\s+/).filter(Boolean);
    if (!searched.length) return;
    const texts = searchTexts(data);
    for (let row = 0; row < data.count; row += 1) {
      if (passes[row] && !searched.every((word) => texts[row].includes(word))) passes[row] = 0;
    }
  }

  function address() {
    const parameters = new URLSearchParams();
    for (const { name, chosen, values } of dimensions) if (chosen.size) parameters.set(name, [...chosen].map((code) => values[code]).join(JOIN));
    if (state.words) parameters.set("search", state.words);
    if (state.sort) parameters.set("sort", state.sort);
    if (state.only) parameters.set("chart", state.only);
    if (state.opened) parameters.set("case", state.opened);
    for (const [section, number] of Object.entries(state.more)) parameters.set(`${section}.more`, number);
    for (const name of ["setting", "level", "figure", "open"]) if (state[name]) parameters.set(name, state[name]);
    if (state.view) parameters.set("view", state.view);
    return `#${[state.section, parameters.toString()].filter(Boolean).join("&")}`;
  }

  function read() {
    const parts = window.location.hash.slice(1).split("&").filter(Boolean);
    state.section = parts.length && !parts[0].includes("=") ? parts.shift() : "";
    const parameters = new URLSearchParams(parts.join("&"));
    for (const { name, chosen, values } of dimensions) {
      chosen.clear();
      for (const word of (parameters.get(name) || "").split(JOIN)) if (values.includes(word)) chosen.add(values.indexOf(word));
    }
    state.words = parameters.get("search") || "";
    state.sort = parameters.get("sort") || "";
    state.only = parameters.get("chart") || "";
    state.opened = parameters.get("case") || "";
    state.view = parameters.get("view") === EVERYTHING ? EVERYTHING : "";
    for (const name of ["figure", "open"]) state[name] = parameters.get(name) || "";
    for (const name of ["setting", "level"]) state[name] = Math.max(0, Math.trunc(Number(parameters.get(name)))) || 0;
    state.fresh = true;
    state.more = {};
    for (const [key, value] of parameters) if (key.endsWith(".more")) state.more[key.slice(0, -5)] = Number(value) || 0;
  }

  function remember() {
    const hash = address();
    if (hash === window.location.hash || (hash === "#" && !window.location.hash)) return;
    window.history.replaceState(null, "", hash);
  }

  function apply(write = true) {
    const begun = performance.now();
    sieve();
    show();
    if (write) remember();
    changed(begun);
  }

  const filters = {
    passes, state, apply, active, remember, reveal,
    reset() {
      for (const { chosen } of dimensions) chosen.clear();
      Object.assign(state, { words: "", only: "" });
      apply();
    },
  };

  // What stands in a section that the summary leaves out is shown with all the others.
  function reveal(element) {
    if (element.checkVisibility() || state.view === EVERYTHING) return;
    state.view = EVERYTHING;
    apply();
  }

  const unfold = document.getElementById("unfold"); // shown where the window is narrow
  unfold.addEventListener("click", () => unfold.setAttribute("aria-expanded", form.classList.toggle("open")));
  form.addEventListener("submit", (event) => event.preventDefault());
  query.addEventListener("input", () => { state.words = query.value; apply(); });
  document.getElementById("reset").addEventListener("click", () => { filters.reset(); query.focus(); });
  document.addEventListener("click", (event) => {
    for (const box of form.querySelectorAll("details.choice[open]")) if (!box.contains(event.target)) box.open = false;
  });
  document.addEventListener("click", (event) => {
    const link = event.target.closest('a[href^="#"]');
    const target = link && document.getElementById(link.getAttribute("href").slice(1));
    if (!target) return; // a jump inside the page keeps the filters in the address
    event.preventDefault();
    state.section = target.id;
    state.figure = "";
    remember();
    reveal(target);
    target.scrollIntoView();
    if (!target.hasAttribute("tabindex")) target.tabIndex = -1;
    target.focus({ preventScroll: true });
  });
  window.addEventListener("hashchange", () => { read(); apply(false); jump(); });

  function jump() {
    const target = state.section && document.getElementById(state.section);
    if (!target) return;
    reveal(target);
    target.scrollIntoView();
  }

  form.hidden = false;
  read();
  sieve();
  show();
  if (state.section) setTimeout(jump, 0);
  return filters;
}

// Each filter with its values as words, in order, and the place of each row's value among them.
function makeDimensions(data) {
  const worded = (name, words) => data.column(name).map((value) => (value === null ? "none" : words(value)));
  const out = data.column("out_features");
  const inside = data.column("in_features");
  const columns = [
    ["machine", "Machine", worded("run", (number) => data.runs[number].machine)],
    ["format", "Format", worded("format", String)],
    ["dtype", "Dtype", worded("dtype", String)],
    ["pass", "Pass", worded("direction", (name) => data.directions[name] || name)],
    ["shape", "Shape", out.map((count, row) => `${count}×${inside[row]}`)],
    ["tokens", "Tokens", worded("tokens", String)],
    ["density", "Density", worded("density_word", (word) => word || "none")],
    ["status", "Status", worded("status", (name) => data.statuses[name] || name)],
  ];
  const order = new Intl.Collator("en", { numeric: true });
  return columns.map(([name, title, words]) => {
    const values = [...new Set(words)];
    const numeric = values.every((word) => word === "none" || Number.isFinite(shareSize(word)));
    values.sort((a, b) => (a === "none") - (b === "none") || shareStored(a) - shareStored(b)
      || (numeric ? shareSize(a) - shareSize(b) : order.compare(a, b)));
    const places = new Map(values.map((word, code) => [word, code]));
    return { name, title, values, codes: Int32Array.from(words, (word) => places.get(word)), chosen: new Set() };
  });
}

// What the search looks in: one text a row, made when something is first searched for.
function searchTexts(data) {
  if (!data.texts) {
    const names = ["case", "label", "kernel", "reason", "regime", "mode", "flags", "options"];
    const columns = names.map((name) => data.column(name));
    const [status, direction, run] = ["status", "direction", "run"].map((name) => data.column(name));
    data.texts = Array.from({ length: data.count }, (_, row) => [
      ...columns.map((values) => values[row] ?? ""),
      data.statuses[status[row]] || "",
      data.directions[direction[row]] || "",
      data.runs[run[row]].machine,
    ].join(" ").replaceAll("_", " ").toLowerCase());
  }
  return data.texts;
}
