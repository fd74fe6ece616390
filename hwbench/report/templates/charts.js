// Charts: each figure element names its section and number; its rows come from the one table.

const range = (low, high, words) => (known(low) && known(high) ? ` (${words(low)}–${words(high)})` : "");

function chartRow(data, number) {
  const row = enrich(data.row(number));
  row.group_title = data.groups[row.group_number];
  row.flags ||= "none";
  row.density_text = known(row.asked_density) ? String(row.asked_density) : plain(row.density);
  row.time_text = si(row.time_seconds, "s") + range(row.time_low, row.time_high, (v) => si(v, "s"));
  row.relative_text = `${plain(row.relative)}×` + range(row.relative_low, row.relative_high, plain);
  row.stored_text = si(row.stored_bytes, "B");
  row.saved_text = si(row.saved_bytes, "B");
  row.error_text = plain(row.score);
  row.intensity_text = plain(row.intensity);
  row.rate_text = si(row.flops_per_second, "FLOP/s");
  row.efficiency_text = percent(row.efficiency);
  return row;
}

function figureNumbers(figure) {
  const numbers = [];
  for (const [start, end] of figure.rows) for (let n = start; n < end; n += 1) numbers.push(n);
  return numbers;
}

// An interval is drawn to three times the range of the points at most: one that is wider would
// squeeze all the others into a line. Its ends stand in the tooltip and in the table.
function cutSpans(rows) {
  const points = rows.map((row) => row.relative).filter(known);
  const [low, high] = [Math.min(1, ...points) / 3, Math.max(1, ...points) * 3];
  for (const row of rows) {
    row.span_low = known(row.relative_low) ? Math.max(row.relative_low, low) : null;
    row.span_high = known(row.relative_high) ? Math.min(row.relative_high, high) : null;
  }
  return rows;
}

function figureRows(data, figure) {
  const rows = figureNumbers(figure).map((number, place) => {
    const row = chartRow(data, number);
    if (figure.aside) row.aside = figure.aside[place];
    if (figure.front) {
      row.front = Boolean(figure.front[place]);
      row.error = figure.error[place];
      row.error_text = plain(row.error);
    }
    return row;
  });
  return cutSpans(rows);
}

async function draw(data, element) {
  const figure = data.figures[element.dataset.section][Number(element.dataset.number)];
  const specification = structuredClone(data.specifications[figure.kind]);
  specification.datasets = { ...specification.datasets, table: figureRows(data, figure), roofs: figure.roofs || [] };
  const step = specification.height?.step; // a row a line: then the width alone is fitted
  if (step) specification.height = step * specification.datasets.table.length;
  const plot = element.querySelector(".plot");
  element.view?.finalize();
  const result = await window.vegaEmbed(plot, specification, {
    actions: false,
    renderer: "svg",
    config: data.config,
    tooltip: { disableDefaultStyle: true },
  });
  plot.classList.remove("vega-embed");
  element.view = result;
  for (const svg of plot.querySelectorAll("svg")) svg.setAttribute("aria-hidden", "true");
}

function replaceFigure(data, element, number) {
  const figure = data.figures[element.dataset.section][number];
  element.dataset.number = number;
  element.querySelector("h3").textContent = figure.title;
  element.querySelector("figcaption p").textContent = figure.says;
  element.querySelector(".note").textContent = figure.note;
  element.querySelector(".plot").setAttribute("aria-label", `${figure.title}. ${figure.says}`);
  const alone = element.querySelector(".alone");
  if (alone) {
    alone.querySelector("summary").textContent = `${figure.alone.length} not drawn: no partner`;
    alone.querySelector("ul").replaceChildren(...figure.alone.map(([label, why]) => {
      const item = document.createElement("li");
      const name = document.createElement("b");
      name.textContent = label;
      item.append(name, ` ${why}`);
      return item;
    }));
  }
  return draw(data, element);
}

function startCharts(data) {
  const waiting = new Set(document.querySelectorAll("figure.chart"));
  const drawOnce = (element) => (waiting.delete(element) ? draw(data, element) : Promise.resolve());
  const watch = new IntersectionObserver(
    (entries) => entries.forEach((entry) => {
      if (!entry.isIntersecting) return;
      watch.unobserve(entry.target);
      drawOnce(entry.target);
    }),
    { rootMargin: "500px" },
  );
  waiting.forEach((element) => watch.observe(element));
  const next = () => {
    const [element] = waiting;
    if (element) drawOnce(element).then(() => setTimeout(next, 0));
  };
  next(); // from top to bottom, what is in view before; so a print has every chart
  for (const select of document.querySelectorAll("select[data-more]")) {
    const element = select.closest(".more").querySelector("figure");
    select.addEventListener("change", () => replaceFigure(data, element, Number(select.value)));
  }
}
