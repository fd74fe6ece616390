// Charts: each figure element is a place that shows one figure of its section; its rows come from
// the one table, as far as they pass the filters.

const range = (low, high, words) => (known(low) && known(high) ? ` (${words(low)}–${words(high)})` : "");

function chartRow(data, number) {
  const row = enrich(data.row(number));
  row.group_title = data.groups[row.group_number];
  row.flags ||= "none";
  row.variant = data.variants.get(row.series) ?? 0;
  // A density that is a tenth below what was asked for, or more, is written as it is.
  const near = known(row.asked_density) && !farFromAsked(data, row.density, row.asked_density);
  row.density_text = near ? String(row.asked_density) : known(row.density) ? String(Number(row.density.toPrecision(3))) : "–";
  row.time_text = si(row.time_seconds, "s") + range(row.time_low, row.time_high, (v) => si(v, "s"));
  row.relative_text = `${plain(row.relative)}×` + range(row.relative_low, row.relative_high, plain);
  row.stored_text = si(row.stored_bytes, "B");
  row.error_text = plain(row.score);
  row.intensity_text = plain(row.intensity);
  row.rate_text = si(row.flops_per_second, "FLOP/s");
  row.efficiency_text = percent(row.efficiency);
  row.time_short = si(row.time_seconds, "s");
  row.relative_short = `${plain(row.relative)}×`;
  for (const quantity of data.quantities) row[`${quantity.name}_text`] = amount(row[quantity.name], quantity);
  row.shape_text = `${row.out_features}×${row.in_features}`;
  row.area = row.out_features * row.in_features;
  row.line = `${row.label}, ${row.direction}`;
  row.ratio_text = `${plain(row.ratio)}×` + range(row.ratio_low, row.ratio_high, plain);
  row.base_text = si(row.base_seconds, "s");
  row.roofs_text = known(row.ratio_roofs) ? `${plain(row.ratio_roofs)}×` : "–";
  return spreadOut(row);
}

// Quantiles and replicates are carried as thousandths of a logarithm over the time.
function spreadOut(row) {
  const at = (code) => (known(code) && known(row.time_seconds) ? row.time_seconds * Math.exp(code / 1000) : null);
  [row.low, row.quarter, row.three_quarters, row.high] = [5, 25, 75, 95].map((share) => at(row[`spread_${share}`]));
  row.replicates_at = [];
  for (let place = 0; known(row[`replicate_${place}`]); place += 1) row.replicates_at.push(at(row[`replicate_${place}`]));
  return row;
}

function figureNumbers(figure) {
  if (!figure.numbers) {
    figure.numbers = [];
    for (const [start, end] of figure.rows) for (let n = start; n < end; n += 1) figure.numbers.push(n);
  }
  return figure.numbers;
}

// An interval is drawn to three times the range of the points at most: one that is wider would
// squeeze all the others into a line. Its ends stand in the tooltip and in the table.
function cutSpans(rows, value) {
  const points = rows.map((row) => row[value]).filter(known);
  const [lower, upper] = [`${value}_low`, `${value}_high`];
  const [low, high] = [Math.min(1, ...points) / 3, Math.max(1, ...points) * 3];
  for (const row of rows) {
    row.span_low = known(row[lower]) ? Math.max(row[lower], low) : null;
    row.span_high = known(row[upper]) ? Math.min(row[upper], high) : null;
  }
  return rows;
}

function figureRows(data, figure, passes) {
  const rows = [];
  figureNumbers(figure).forEach((number, place) => {
    if (!passes[number]) return;
    const row = chartRow(data, number);
    for (const [name, values] of Object.entries(figure.own || {})) row[name] = values[place];
    if (figure.own?.series) row.variant = data.variants.get(row.series) ?? 0;
    if ("error" in row) row.error_text = plain(row.error);
    rows.push(row);
  });
  if (figure.kind === "split") pairPasses(data, rows);
  rows.forEach((row, place) => { row.place = place; });
  return cutSpans(findFront(rows, figure.better === "higher" ? -1 : 1), figure.value || "relative");
}

// The passes of one case stand together, the case first whose least time is least.
function pairPasses(data, rows) {
  const least = new Map();
  for (const { label, time_seconds: time } of rows) least.set(label, Math.min(least.get(label) ?? Infinity, time));
  const passes = Object.keys(data.directions);
  rows.sort((a, b) => least.get(a.label) - least.get(b.label) || ORDER.compare(a.label, b.label)
    || passes.indexOf(a.direction) - passes.indexOf(b.direction));
}

// The front of what is drawn: nothing else that is drawn is both faster and better.
function findFront(rows, sign) {
  let least = Infinity;
  for (const row of rows.filter((each) => known(each.error)).sort((a, b) => a.relative - b.relative || sign * (a.error - b.error))) {
    row.front = sign * row.error < least;
    least = Math.min(least, sign * row.error);
  }
  return rows;
}

const LINES = { split: "line", winners: "shape_text", versus_all: "format" }; // what has a line of its own, else each case

// What a kind of chart reads beside its rows.
function fedBeside(data, figure, passes) {
  return {
    ...(figure.kind === "error_density projection_error" && { closed: figure.closed || [] }),
    ...(axisOf(figure) && { reach: reachOf(data, figure, passes) }),
    ...(ENDS[kindOf(figure)] && { ends: [] }),
    ...(NAMED[kindOf(figure)] && { names: [] }),
  };
}

// A place keeps its Vega view: another figure of the same kind only changes the view's data. (A
// roofline is made anew: the text along its roofs decides how wide the plot can be. So are samples.)
async function drawFigure(data, element, passes) {
  const figure = element.figure;
  const turn = (element.turn || 0) + 1; // another drawing of this place may begin while this one waits
  element.turn = turn;
  const rows = figureRows(data, figure, passes);
  const specification = data.specifications[figure.kind];
  const step = specification.height?.step; // a row a line: then the width alone is fitted
  const lines = step && step * Math.max(1, new Set(rows.map((row) => row[LINES[figure.kind] || "label"])).size);
  const fed = { table: rows, ...fedBeside(data, figure, passes) };
  if (element.view && element.kind === figure.kind && !figure.roofs && !figure.points) {
    const { view } = element;
    for (const [name, values] of Object.entries(fed)) view.data(name, values);
    if (fed.ends) view.signal("room", 0); // as a view begins, so that both have one width
    if (step) view.height(lines);
    await view.resize().runAsync();
  } else {
    element.view?.finalize();
    const whole = structuredClone(specification);
    whole.datasets = { ...whole.datasets, ...fed, roofs: figure.roofs || [], points: figure.points || [], bands: figure.bands || [] };
    if (step) whole.height = lines;
    const plot = element.querySelector(".plot");
    const result = await window.vegaEmbed(plot, whole, {
      actions: false,
      logLevel: 1, // errors: a layer without a point is none
      renderer: "svg",
      config: data.config,
      tooltip: { disableDefaultStyle: true },
    });
    plot.classList.remove("vega-embed");
    element.view = result.view;
    element.view.addEventListener("click", (event, mark) => {
      if (known(mark?.datum?.number)) element.dispatchEvent(new CustomEvent("mark", { detail: mark.datum.number, bubbles: true }));
    });
    element.kind = figure.kind;
  }
  if (element.turn === turn) await nameEnds(element.view, figure, rows);
  if (element.turn === turn) await namePoints(element.view, figure, rows);
  fade(element);
  for (const svg of element.querySelectorAll(".plot svg")) {
    svg.setAttribute("aria-hidden", "true");
    svg.closest(".plot").style.containIntrinsicHeight = `${svg.getAttribute("height")}px`;
  }
  element.dataset.points = rows.length;
}

// Write the words around a chart, where it is another figure than the one Python wrote there.
function describe(element, figure, drawn) {
  element.querySelector("h3").textContent = figure.title;
  element.querySelector("figcaption p").textContent = figure.says;
  element.querySelector(".plot").setAttribute("aria-label", `${figure.title}. ${figure.says}`);
  const total = figureNumbers(figure).length;
  const hidden = drawn < total ? `Filtered: ${drawn} of ${total} points are drawn; the sentence above is about all of them. ` : "";
  element.querySelector(".note").textContent = hidden + figure.note;
  const alone = element.querySelector(".alone");
  alone.hidden = !figure.alone.length;
  alone.querySelector("summary").textContent = figure.heading;
  alone.querySelector("ul").replaceChildren(...figure.alone.map(([label, why]) => {
    const item = document.createElement("li");
    const name = document.createElement("b");
    name.textContent = label;
    item.append(name, ` ${why}`);
    return item;
  }));
}

const LISTED = 100; // figures in a list at most: filters find the others

function listFigures({ figures, select }, rest, chosen) {
  const listed = rest.slice(0, LISTED);
  if (chosen && rest.includes(chosen) && !listed.includes(chosen)) listed.push(chosen);
  const options = listed.map((figure) => {
    const option = document.createElement("option");
    option.value = figures.indexOf(figure);
    option.textContent = figure.title;
    option.selected = figure === chosen;
    return option;
  });
  if (listed.length < rest.length) {
    const option = document.createElement("option");
    option.disabled = true;
    option.textContent = `… ${rest.length - listed.length} further ones: use the filters`;
    options.push(option);
  }
  select.replaceChildren(...options);
}

function startCharts(data, filters) {
  const sections = [...document.querySelectorAll(".figures")].map((box) => ({
    box,
    id: box.dataset.section,
    figures: data.figures[box.dataset.section],
    places: [...box.querySelectorAll("figure.chart")],
    select: box.querySelector("select"),
  }));
  const waiting = new Set();
  let busy = 0;

  // A chart of a section that is not shown has no width: it waits until it is.
  const visible = (element) => element.checkVisibility();

  const redraw = (element) => {
    if (!visible(element) || !waiting.delete(element) || !element.figure) return Promise.resolve();
    busy += 1;
    if (element.stale) describe(element, element.figure, element.shown);
    element.stale = false;
    return drawFigure(data, element, filters.passes).finally(() => {
      busy -= 1;
      if (!busy && !data.late.size && ![...waiting].some(visible)) document.body.dataset.drawn = "yes";
    });
  };

  function assign(element, figure) {
    element.hidden = !figure;
    const before = element.figure;
    element.figure = figure;
    if (!figure) return waiting.delete(element);
    let passing = 0;
    for (const number of figureNumbers(figure)) passing += filters.passes[number];
    element.stale ||= figure !== before || passing !== element.shown; // its words
    element.shown = passing;
    return waiting.add(element);
  }

  function update() {
    for (const section of sections) {
      const live = section.figures.filter((figure) => figureNumbers(figure).some((number) => filters.passes[number]));
      const fixed = section.select ? section.places.slice(0, -1) : section.places;
      fixed.forEach((element, place) => assign(element, live[place]));
      const rest = live.slice(fixed.length);
      if (section.select) {
        const chosen = section.figures[filters.state.more[section.id]];
        listFigures(section, rest, chosen);
        section.box.querySelector(".more").hidden = !rest.length;
        section.box.querySelector(".more-count").textContent = rest.length;
        assign(section.places.at(-1), rest.includes(chosen) ? chosen : rest[0]);
      }
      section.box.querySelector(".nothing").hidden = live.length > 0;
    }
    const first = [...waiting].filter(inView);
    return Promise.all(first.map(redraw)).then(() => setTimeout(next, 0));
  }

  // What is in view is drawn at once; then the tables, then the other charts from top to bottom. So
  // a print has all.
  function next() {
    const [table] = data.late;
    if (table) {
      data.late.delete(table);
      table();
      setTimeout(next, 0);
      return;
    }
    const element = [...waiting].find(visible);
    if (element) redraw(element).then(() => setTimeout(next, 0));
    else if (!busy) document.body.dataset.drawn = "yes"; // also where there is nothing to draw
  }

  const watch = new IntersectionObserver(
    (entries) => entries.forEach(({ isIntersecting, target }) => {
      target.classList.toggle("away", !isIntersecting);
      if (isIntersecting) redraw(target);
    }),
    { rootMargin: "400px" },
  );
  for (const section of sections) {
    section.places.forEach((element) => watch.observe(element));
    section.select?.addEventListener("change", () => {
      filters.state.more[section.id] = Number(section.select.value);
      filters.remember();
      assign(section.places.at(-1), section.figures[section.select.value]);
      next();
    });
  }
  return update;
}
