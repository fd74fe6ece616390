// Side by side: the ratios of each compared run as a table, drawn from its rows that pass.

function startRatios(data, filters) {
  const column = (name) => data.column(name);
  const [run, ratio, explained, group] = ["run", "ratio", "explained", "group_number"].map(column);
  const after = (table, name) => {
    let element = table.closest(".scroll");
    while (!element.classList.contains(name)) element = element.nextElementSibling;
    return element;
  };
  const tables = [...document.querySelectorAll("table.ratios")].map((table) => ({
    table,
    nothing: after(table, "ratios-nothing"),
    more: after(table, "ratios-more"),
    limit: STEP,
    rows: [...run.keys()].filter((row) => run[row] === Number(table.dataset.run) && (known(ratio[row]) || explained[row])),
  }));

  const cells = (row) => [
    row.series,
    plain(row.density),
    si(row.base_seconds, "s"),
    si(row.time_seconds, "s"),
    known(row.ratio) ? `${plain(row.ratio)} ${spread(row.ratio, row.ratio_low, row.ratio_high)}`.trim() : "–",
    plain(row.ratio_roofs),
    row.explained ?? "",
  ];

  function line(row) {
    const element = document.createElement("tr");
    element.dataset.case = row.number;
    cells(row).forEach((text, place, all) => {
      const cell = element.insertCell();
      cell.append(place === 0 ? caseButton(row.number, text) : text);
      if (place === 0 || place === all.length - 1) cell.className = "left";
    });
    return element;
  }

  function headed(row) {
    const body = document.createElement("tbody");
    const head = document.createElement("th");
    Object.assign(head, { scope: "rowgroup", colSpan: 7, className: "left" });
    head.textContent = data.groups[row.group_number].replace(`, ${data.runs[row.run].machine}`, "");
    body.insertRow().append(head);
    return body;
  }

  function draw(each) {
    const passing = each.rows.filter((row) => filters.passes[row]);
    const bodies = new Map();
    for (const number of passing.slice(0, each.limit)) {
      const row = data.row(number);
      if (!bodies.has(group[number])) bodies.set(group[number], headed(row));
      bodies.get(group[number]).append(line(row));
    }
    for (const body of [...each.table.tBodies]) body.remove();
    each.table.append(...bodies.values());
    each.table.hidden = !passing.length;
    each.nothing.hidden = passing.length > 0;
    const left = passing.length - each.limit;
    each.more.hidden = left <= 0;
    each.more.textContent = `Show ${Math.min(10 * STEP, left)} more`;
  }

  for (const each of tables) {
    each.more.addEventListener("click", () => {
      const before = each.limit;
      each.limit += 10 * STEP;
      draw(each);
      keepFocus(each.more, each.table.querySelectorAll("button")[before]);
    });
  }
  return () => {
    for (const each of tables) {
      each.limit = STEP;
      draw(each);
    }
  };
}
