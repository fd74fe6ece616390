// Who wins where, as a table: drawn again from the rows that pass, at first so many groups.

const GROUPS = 40;

function startHeat(data, filters) {
  const table = document.getElementById("heat");
  if (!table) return () => {};
  const button = document.getElementById("heat-more");
  const column = (name) => data.column(name);
  const [format, series, words, shade, best, group, workload] = [
    "format", "series", "density_word", "shade", "best", "group_number", "workload"].map(column);
  let limit = GROUPS;
  let asked = false; // until a filter is used the table is the one that Python wrote

  function cell(tag, text, more = {}) {
    const element = document.createElement(tag);
    element.textContent = text;
    return Object.assign(element, more);
  }

  const marks = new Map([...document.querySelectorAll("[data-look]")].map((mark) => [mark.dataset.look, mark]));
  const sign = (name) => marks.get(name)?.cloneNode(true) || "";

  function value(number) {
    if (number === undefined) return cell("td", "");
    const relative = column("relative_time")[number];
    if (!known(relative)) {
      const [text, says] = data.heat_words[column("status")[number]] || ["–", "no relative time"];
      return cell("td", text, { className: "none", title: says });
    }
    const text = significant(relative, relative > 0.9 && relative < 1.1 ? 3 : 2);
    return cell("td", text, { className: `${shade[number]}${best[number] ? " best" : ""}` });
  }

  function draw() {
    const columns = new Map(); // series → its densities, each with its format
    const lines = new Map(); // group → place → row
    for (let row = 0; row < data.count; row += 1) {
      if (!filters.passes[row] || format[row] === "dense" || workload[row] === "projection") continue;
      if (!columns.has(series[row])) columns.set(series[row], { name: format[row], words: new Set() });
      columns.get(series[row]).words.add(words[row]);
      if (!lines.has(group[row])) lines.set(group[row], new Map());
      lines.get(group[row]).set(`${series[row]}\n${words[row]}`, row);
    }
    const heads = document.createElement("tr");
    heads.append(cell("th", "group", { rowSpan: 2, scope: "col" }));
    const below = document.createElement("tr");
    const order = [];
    for (const [label, { name, words: densities }] of columns) {
      const sorted = [...densities].sort((a, b) => (a === "") - (b === "") || Number(b) - Number(a));
      const head = cell("th", "", { colSpan: sorted.length, scope: "colgroup" });
      head.append(sign(name), label);
      heads.append(head);
      for (const word of sorted) {
        below.append(cell("th", word || "–", { scope: "col" }));
        order.push(`${label}\n${word}`);
      }
    }
    const body = [...lines].slice(0, limit).map(([number, cells]) => {
      const line = document.createElement("tr");
      line.append(cell("th", data.groups[number], { scope: "row" }), ...order.map((place) => value(cells.get(place))));
      return line;
    });
    table.tHead.replaceChildren(heads, below);
    table.tBodies[0].replaceChildren(...body);
    table.hidden = !lines.size;
    document.getElementById("heat-nothing").hidden = lines.size > 0;
    button.hidden = lines.size <= limit;
    button.textContent = `Show all ${lines.size} groups`;
  }

  button.addEventListener("click", () => { limit = Infinity; asked = true; draw(); });
  return () => {
    asked ||= filters.active();
    if (asked) draw();
  };
}
