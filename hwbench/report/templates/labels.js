// What charts share and say: one scale for figures that are compared, and names at the ends of lines.

const kindOf = ({ kind }) => kind.split(" ")[0];

// The value of each kind of chart whose figures are set beside one another, and its interval.
const RELATIVE = { field: "relative", value: "relative_time", low: "relative_low", high: "relative_high" };
const RATIO = { field: "ratio", value: "ratio", low: "ratio_low", high: "ratio_high", also: "ratio_roofs" };
const AXES = {
  pareto: RELATIVE, crossover: RELATIVE, sweep: RELATIVE, versus: RATIO, versus_all: RATIO,
  stored: { field: "stored_bytes" }, saved: { field: "saved_bytes" }, split: { field: "time_seconds" },
};

function axisOf(figure) {
  const kind = kindOf(figure);
  return kind === "reading" ? { field: figure.kind.slice("reading ".length) } : AXES[kind];
}

// The ends of one figure on this axis; intervals are cut as cutSpans cuts them.
function extent(data, figure, passes, { field, value = field, low, high, also }) {
  const numbers = figureNumbers(figure).filter((number) => passes[number]);
  const read = (name) => numbers.map((number) => data.column(name)[number]).filter(known);
  const dense = low ? [1] : []; // its place where times are over others
  const [least, most] = ends([...read(value), ...dense]);
  const spans = low ? [...read(low).map((end) => Math.max(end, least / 3)), ...read(high).map((end) => Math.min(end, most * 3))] : [];
  return ends([least, most, ...spans, ...(also ? read(also) : [])]);
}

function ends(values) {
  let [least, most] = [Infinity, -Infinity];
  for (const value of values) [least, most] = [Math.min(least, value), Math.max(most, value)];
  return [least, most];
}

// Two points that nobody sees hold the axis of a figure as wide as all figures beside it need it,
// so that places can be compared by eye. Python says which figures those are (beside).
function reachOf(data, figure, passes) {
  if (!figure.beside) return [];
  const axis = axisOf(figure);
  if (!data.reach.has(figure.beside)) {
    const twins = Object.values(data.figures).flat().filter(({ beside }) => beside === figure.beside);
    data.reach.set(figure.beside, ends(twins.flatMap((twin) => extent(data, twin, passes, axisOf(twin)))));
  }
  return data.reach.get(figure.beside).filter(Number.isFinite).map((end) => ({ [axis.field]: end }));
}

const PEN = document.createElement("canvas").getContext("2d");

// The width of a name in a chart, in pixels.
function textWidth(text) {
  PEN.font = "11px system-ui, sans-serif";
  return PEN.measureText(text).width;
}

// --- names at the ends of lines --------------------------------------------------------------------

const ENDS = {
  crossover: ["density", "relative"], sweep: ["tokens", "relative"],
  error_density: ["density", "score"], error_bytes: ["stored_ratio", "score"],
};
const APART = 13; // pixels between two names
const KEY = 30; // … for the mark beside a name
const NARROW = 340; // a plot that leaves no room for names: its legend has them
const SHARE = 0.36; // of the plot for names at most

// The last point of each series. Dense is a line with a name of its own where times are relative.
function lastPoints(rows, [across, up]) {
  const last = new Map();
  for (const row of rows) {
    if (!known(row[across]) || !known(row[up]) || (row.format === "dense" && up === "relative")) continue;
    if (!(last.get(row.series)?.[across] > row[across])) last.set(row.series, row);
  }
  return [...last.values()];
}

// The format, or its series without the names of knobs where it has several; as the cells of winners.
function shortNames(rows) {
  const several = new Map();
  for (const { format, series } of rows) several.set(format, (several.get(format) || new Set()).add(series));
  return rows.map(({ format, series }) => (several.get(format).size === 1 ? format : series.replaceAll(/ [a-z_]+=/g, " ")));
}

// The names from top to bottom: each as near to the end of its line as those beside it allow.
function moveApart(names, height) {
  names.sort((one, other) => one.y - other.y);
  let edge = 0;
  for (const name of names) {
    name.y = Math.max(name.y, edge);
    edge = name.y + APART;
  }
  edge = height;
  for (const name of [...names].reverse()) {
    name.y = Math.min(name.y, edge);
    edge = name.y - APART;
  }
}

// Names are placed where the scales of the drawn chart put the ends of its lines.
async function nameEnds(view, figure, rows) {
  const fields = ENDS[kindOf(figure)];
  if (!fields) return;
  const last = lastPoints(rows, fields);
  const texts = shortNames(last);
  const scale = view.scale("y");
  const names = last.map(({ number, format, series, variant, ...row }, place) => (
    { number, format, series, variant, text: texts[place], y: scale(row[fields[1]]) })).filter(({ y }) => Number.isFinite(y));
  const fits = view.width() >= NARROW && (names.length - 1) * APART <= view.height();
  const room = fits && names.length ? Math.min(KEY + Math.max(...names.map(({ text }) => textWidth(text))), SHARE * view.width()) : 0;
  moveApart(names, view.height());
  await view.signal("room", Math.ceil(room)).data("ends", room ? names : []).runAsync();
}

// --- names beside points ---------------------------------------------------------------------------

// The places of named points, and whose names come first: the front; what lies at a roof or above it.
const NAMED = {
  pareto: { fields: ["relative", "error"], first: (row) => row.front },
  roofline: { fields: ["intensity", "flops_per_second"], first: (row) => row.efficiency > 0.99 },
};
const MOST_NAMES = 24; // of one chart
const MARK = 6; // pixels around the middle of a point that a name leaves free
const TALL = 13; // pixels of a line of text
const DENSE = 34; // pixels of the word "dense" at the top of its line

// Where a name may stand: right or left of its point, above or below; then over or under its middle.
const BESIDE = [[1, -1], [-1, -1], [1, 1], [-1, 1], [0, -1], [0, 1]];
const ALIGN = { "-1": "right", 0: "center", 1: "left" };

const overlap = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;

function boxBeside({ x, y }, wide, [right, down]) {
  const left = { "-1": x - MARK - 1 - wide, 0: x - wide / 2, 1: x + MARK + 1 }[right];
  const off = right ? 2 : MARK + 1; // a name over the middle stays clear of the mark
  const top = down > 0 ? y + off : y - off - TALL;
  return { left, top, right: left + wide, bottom: top + TALL };
}

// Who comes first is named first, then the others from the left; who has no free place has no name.
function placeNames(points, texts, { width, height, words, widthOf, kind: { fields, first } }) {
  const taken = [...words, ...points.map(({ x, y }) => ({ left: x - MARK, top: y - MARK, right: x + MARK, bottom: y + MARK }))];
  const order = points.map((_, place) => place).sort((a, b) => first(points[b].row) - first(points[a].row) || points[a].x - points[b].x);
  const placed = [];
  for (const place of order) {
    if (placed.length === MOST_NAMES) break;
    const { row } = points[place];
    const wide = widthOf(texts[place]);
    for (const at of BESIDE) {
      const box = boxBeside(points[place], wide, at);
      const inside = box.left >= 0 && box.right <= width && box.top >= 0 && box.bottom <= height;
      if (!inside || taken.some((other) => overlap(box, other))) continue;
      taken.push(box);
      const { number, format, series, variant } = row;
      const where = Object.fromEntries(fields.map((name) => [name, row[name]]));
      placed.push({ number, format, series, variant, ...where, front: first(row), text: texts[place], align: ALIGN[at[0]], dx: at[0] * (MARK + 1), dy: (box.top + box.bottom) / 2 - points[place].y });
      break;
    }
  }
  return placed;
}

// The words of a roofline where _charts.py draws them: no name of a point may lie on one.
function roofWords(figure, across, up, height) {
  return figure.roofs.filter(({ text }) => text.trim()).map(({ text, at, lift, intensity, flops_per_second: rate }) => {
    const [x, y, wide] = [across(intensity), up(rate), textWidth(text)];
    const [left, bottom] = {
      compute: [x - wide, y - 5 - lift], measured: [x - 10 - wide, y + 2], cache: [x + 12, y + 9], ridge: [x + 5, height - 4],
    }[at];
    return { left, right: left + wide, top: bottom - TALL, bottom };
  });
}

async function namePoints(view, figure, rows) {
  const kind = NAMED[kindOf(figure)];
  if (!kind) return;
  const [across, up] = ["x", "y"].map((name) => view.scale(name));
  const [x, y] = kind.fields;
  const points = rows.map((row) => ({ row, x: across(row[x]), y: up(row[y]) })).filter((at) => Number.isFinite(at.x) && Number.isFinite(at.y));
  const texts = shortNames(points.map(({ row }) => row)).map((name, place) => {
    const { row } = points[place];
    return row.density < 1 ? `${name} ${row.density_text}` : name;
  });
  const denseX = across(1);
  const dense = [{ left: denseX, top: 0, right: denseX + DENSE, bottom: TALL + 3 }];
  const words = figure.roofs ? roofWords(figure, across, up, view.height()) : dense;
  const room = { width: view.width(), height: view.height(), words, widthOf: textWidth, kind };
  await view.data("names", placeNames(points, texts, room)).runAsync();
}
