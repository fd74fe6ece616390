// What is taken along: a chart as SVG or PNG, a table as Markdown or LaTeX.

const EDGE = 16; // around the chart, in pixels
const LINE = 20; // of the legend

const drawer = (space) => (name, attributes, text = "") => {
  const element = document.createElementNS(space, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.textContent = text;
  return element;
};

// Colours of the page are variables that differ between light and dark; a file has their values.
function resolved(text) {
  const probe = document.body.appendChild(make("i"));
  const replaced = text.replace(/var\(--[\w-]+\)/g, (colour) => {
    probe.style.color = colour;
    return window.getComputedStyle(probe).color;
  });
  probe.remove();
  return replaced;
}

// The attributes of the mark of a series, as the legend of the page has it.
function markOf(data, series, format) {
  const { css, path } = data.looks[format];
  const { hollow, opacity, edge, dotted } = data.variant_looks[data.variants.get(series) ?? 0];
  const attributes = { d: path, fill: hollow ? "var(--card)" : css };
  if (edge === "none") return attributes;
  const stroke = { "fill-opacity": opacity || 1, stroke: edge === "ink" ? "var(--ink)" : css, "stroke-width": 0.28 };
  return { ...attributes, ...stroke, ...(dotted ? { "stroke-dasharray": "0.3 0.3" } : {}) };
}

// The marks of the formats that a chart draws, on as many lines as its width asks for.
function legendOf(draw, data, rows, width, top) {
  const kinds = new Map(rows.filter(({ format }) => data.looks[format]).map((row) => [row.series, row.format]));
  const formats = [...kinds.values()];
  const single = (format) => formats.indexOf(format) === formats.lastIndexOf(format);
  const names = [...kinds].map(([series, format]) => [single(format) ? format : series, markOf(data, series, format)]);
  const box = draw("g", {});
  const pen = document.createElement("canvas").getContext("2d");
  pen.font = "12px system-ui, sans-serif";
  let [x, y] = [EDGE, top];
  for (const [name, look] of names) {
    const wide = 34 + pen.measureText(name).width;
    if (x > EDGE && x + wide > width - EDGE) [x, y] = [EDGE, y + LINE];
    box.append(
      draw("path", { ...look, transform: `translate(${x + 6} ${y + 10}) scale(5)` }),
      draw("text", { x: x + 17, y: y + 14, fill: "var(--ink)", "font-size": 12 }, name),
    );
    x += wide;
  }
  return [box, names.length ? y + LINE : top];
}

const titleOf = (figure) => [...new Set([figure.querySelector("h3").textContent, figure.figure.title])].join(": ");

// A chart with its title, its legend and where it comes from, as the text of an SVG file.
async function chartFile(data, figure) {
  const { view } = figure;
  const chart = new DOMParser().parseFromString(await view.toSVG(), "image/svg+xml").documentElement;
  const draw = drawer(chart.namespaceURI);
  const [wide, high] = ["width", "height"].map((name) => Math.ceil(Number(chart.getAttribute(name))));
  const width = Math.max(360, wide + 2 * EDGE);
  const whole = draw("svg", { width, "font-family": "system-ui, sans-serif" });
  const title = titleOf(figure);
  chart.setAttribute("x", EDGE);
  chart.setAttribute("y", EDGE + 28);
  const [legend, end] = legendOf(draw, data, view.data("table"), width, EDGE + 36 + high);
  const source = data.runs.map(({ name, machine }) => (machine.includes(name) ? machine : `${machine}, ${name}`)).join("; ");
  const height = end + 26;
  whole.setAttribute("height", height);
  whole.setAttribute("viewBox", `0 0 ${width} ${height}`);
  whole.append(
    draw("title", {}, title),
    draw("rect", { width, height, fill: "var(--card)" }),
    draw("text", { x: EDGE, y: EDGE + 10, fill: "var(--ink)", "font-size": 13, "font-weight": 600 }, title),
    chart, legend,
    draw("text", { x: EDGE, y: end + 14, fill: "var(--soft)", "font-size": 10 }, `hwbench, ${source}`),
  );
  return { text: resolved(new XMLSerializer().serializeToString(whole)), width, height };
}

async function picture({ text, width, height }, scale = 3) {
  const image = new Image();
  image.src = URL.createObjectURL(new Blob([text], { type: "image/svg+xml" }));
  await image.decode();
  const canvas = Object.assign(document.createElement("canvas"), { width: scale * width, height: scale * height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  URL.revokeObjectURL(image.src);
  return new Promise((done) => { canvas.toBlob(done, "image/png"); });
}

async function saveChart(data, figure, form) {
  if (!figure.view) return;
  const section = figure.closest(".figures")?.dataset.section || "answer";
  const name = `${section} ${titleOf(figure)}`.replaceAll(/[^\w.]+/g, "-").replaceAll(/^-|-$/g, "").slice(0, 100);
  const file = await chartFile(data, figure);
  if (form === "svg") download(file.text, "image/svg+xml", `${name}.svg`);
  else download(await picture(file), "image/png", `${name}.png`);
}

// --- tables ---------------------------------------------------------------------------------------

// What a table shows: its heads, whether each column is of words, and its lines; bars are left out.
function shownTable(table) {
  const heads = [...table.tHead.rows].at(-1).cells;
  const names = [...heads].flatMap((head) => Array(head.colSpan).fill(head.textContent.trim()));
  const lines = [...table.tBodies].flatMap(({ rows }) => [...rows]).map(({ cells }) => [...cells]);
  const columns = names.map((_, place) => place).filter((place) => !lines[0]?.[place].classList.contains("bars"));
  const words = columns.map((place) => lines[0]?.[place].classList.contains("left"));
  const texts = lines.map((cells) => columns.map((place) => cells[place].textContent.trim()));
  return { names: columns.map((place) => names[place]), words, texts };
}

function asMarkdown({ names, words, texts }) {
  const line = (cells) => `| ${cells.map((text) => text.replace(/[\\|]/g, "\\$&").replaceAll("<", "&lt;")).join(" | ")} |`;
  return `${[line(names), line(words.map((left) => (left ? ":--" : "--:"))), ...texts.map(line)].join("\n")}\n`;
}

const LATEX = {
  "\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "×": "$\\times$", "±": "$\\pm$", "≤": "$\\le$",
  "≥": "$\\ge$", "µ": "$\\mu$", "–": "--", "−": "$-$", "…": "\\ldots{}", "<": "$<$", ">": "$>$", "’": "'",
};

function asLatex({ names, words, texts }) {
  const cell = (text) => text.replace(/[\\~^×±≤≥µ–−…<>’&%$#_{}]/g, (sign) => LATEX[sign] || `\\${sign}`);
  const line = (cells) => `${cells.map(cell).join(" & ")} \\\\`;
  return ["\\begin{tabular}{" + words.map((left) => (left ? "l" : "r")).join("") + "}", "\\hline", line(names), "\\hline",
    ...texts.map(line), "\\hline", "\\end{tabular}", ""].join("\n");
}

function startKeeping(data) {
  document.addEventListener("click", (event) => {
    const { save, copy, as } = event.target.dataset;
    if (save) saveChart(data, event.target.closest("figure"), save);
    if (!copy) return;
    const content = shownTable(document.getElementById(copy));
    const status = event.target.parentElement.querySelector("[data-copied]");
    copyText((as === "latex" ? asLatex : asMarkdown)(content), status, `Copied: ${content.texts.length} rows.`);
  });
  return () => {};
}
