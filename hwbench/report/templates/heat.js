// Who wins where, as a table: drawn again from the rows that pass, at first so many groups.

const GROUPS = 40;

// The table of the rows that pass, as text: its heads, its densities, and a line a group. The column
// against_dense, which Python writes, says which rows it may hold.
function heatTable(data, passes, limit) {
  const [against, series, format, words, group] = [
    "against_dense", "series", "format", "density_word", "group_number"].map(data.column);
  const groups = new Map(); // group → its rows
  for (let row = 0; row < data.count; row += 1) {
    if (!passes[row] || !against[row]) continue;
    if (!groups.has(group[row])) groups.set(group[row], []);
    groups.get(group[row]).push(row);
  }
  const groupsShown = [...groups].slice(0, limit);
  const columns = new Map(); // series → its densities, and its format
  for (const row of groupsShown.flatMap(([, rows]) => rows)) {
    if (!columns.has(series[row])) columns.set(series[row], { format: format[row], words: new Set() });
    columns.get(series[row]).words.add(words[row]);
  }
  const heads = [...columns].map(([label, column]) => ({
    label,
    format: column.format,
    words: [...column.words].sort((a, b) => (a === "") - (b === "") || shareStored(a) - shareStored(b)
      || shareSize(b) - shareSize(a)),
  }));
  const order = heads.flatMap((head) => head.words.map((word) => `${head.label}\n${word}`));
  const lines = groupsShown.map(([number, rows]) => {
    const places = new Map(rows.map((row) => [`${series[row]}\n${words[row]}`, row]));
    return { title: data.groups[number], cells: order.map((place) => heatCell(data, places.get(place))) };
  });
  return { heads, lines, groups: groups.size };
}

function heatCell(data, row) {
  if (row === undefined) return { text: "", shade: "" };
  const relative = data.column("relative_time")[row];
  if (!known(relative)) {
    const [text, says] = data.heat_words[data.column("status")[row]] || ["–", "no relative time"];
    return { text, shade: "none", says };
  }
  const text = significant(relative, relative > 0.9 && relative < 1.1 ? 3 : 2);
  const level = data.column("level")[row];
  const ring = data.column("best")[row] ? " best" : level ? " level" : "";
  const [density, asked] = ["density", "asked_density"].map((name) => data.column(name)[row]);
  const far = farFromAsked(data, density, asked);
  const says = [far && `density ${significant(density)}`, data.level_words[level]].filter(Boolean).join("; ");
  return { text: far ? `${text}†` : text, shade: data.column("shade")[row] + ring, says };
}

function startHeat(data, filters) {
  const table = document.getElementById("heat");
  if (!table) return () => {};
  const button = document.getElementById("heat-more");
  let limit = GROUPS;
  let filtered = false; // until a filter is used the table is the one that Python wrote

  const sign = marks();

  function value({ text, shade, says }) {
    return make("td", text, { ...(shade && { className: shade }), ...(says && { title: says }) });
  }

  function draw() {
    const { heads, lines, groups } = heatTable(data, filters.passes, limit);
    const above = make("tr");
    above.append(make("th", "setting", { rowSpan: 2, scope: "col" }));
    const below = make("tr");
    for (const { label, format, words } of heads) {
      const head = make("th", "", { colSpan: words.length, scope: "colgroup" });
      head.append(sign({ series: label, format }), label);
      above.append(head);
      below.append(...words.map((word) => make("th", word || "–", { scope: "col" })));
    }
    table.tHead.replaceChildren(above, below);
    table.tBodies[0].replaceChildren(...lines.map(({ title, cells }) => {
      const line = make("tr");
      line.append(make("th", title, { scope: "row" }), ...cells.map(value));
      return line;
    }));
    table.hidden = !groups;
    document.getElementById("heat-nothing").hidden = groups > 0;
    button.hidden = groups <= limit;
    button.textContent = `Show all ${groups} settings`;
  }

  button.addEventListener("click", () => {
    limit = Infinity;
    filtered = true;
    draw();
    keepFocus(button, table.tBodies[0].rows[GROUPS]);
  });
  return () => {
    filtered ||= filters.active();
    if (filtered) draw();
  };
}
