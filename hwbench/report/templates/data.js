// The data of the page, once, as columns; and numbers in words as hwbench/units.py writes them.

async function inflate(base64) {
  const bytes = Uint8Array.from(atob(base64.trim()), (character) => character.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Response(stream).text();
}

async function readData() {
  const element = document.getElementById("hw-data");
  const text = element.textContent;
  const data = JSON.parse(element.dataset.form === "gzip" ? await inflate(text) : text);
  data.variants = new Map(Object.entries(data.variants)); // a series may have any name
  const read = new Map();
  data.column = (name) => {
    if (!read.has(name)) {
      const packed = data.columns[name];
      const values = packed && (packed.values || packed.at.map((place) => packed.words[place]));
      read.set(name, values || new Array(data.count).fill(null));
    }
    return read.get(name);
  };
  data.row = (number) => {
    const row = { number };
    for (const name of Object.keys(data.columns)) row[name] = data.column(name)[number];
    return row;
  };
  return data;
}

// What was asked for, "0.5" of dense's weights or "0.5 stored" of its bytes: which, and how much.
const shareStored = (word) => word.endsWith(" stored");
const shareSize = (word) => Number(word.replace(/ stored$/, ""));

const PREFIXES = { "-12": "p", "-9": "n", "-6": "µ", "-3": "m", 0: "", 3: "k", 6: "M", 9: "G", 12: "T", 15: "P" };

const known = (value) => typeof value === "number" && Number.isFinite(value);

function significant(value, digits = 3) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e6 || size < 1e-4) {
    return value.toExponential(digits - 1).replace(/e([+-])(\d)$/, "e$10$2");
  }
  const places = Math.max(0, digits - 1 - Math.floor(Math.log10(size)));
  const text = value.toFixed(places);
  return Math.abs(Number(text)) >= 10 ** (digits - places) && places ? value.toFixed(places - 1) : text;
}

function si(value, unit) {
  if (!known(value)) return "–";
  if (value === 0) return `0 ${unit}`;
  let exponent = Math.min(15, Math.max(-12, 3 * Math.floor(Math.log10(Math.abs(value)) / 3)));
  let scaled = value / 10 ** exponent;
  if (Math.abs(scaled) >= 999.5 && exponent < 15) [exponent, scaled] = [exponent + 3, scaled / 1000];
  return `${significant(scaled)} ${PREFIXES[exponent]}${unit}`;
}

const plain = (value, digits = 3) => (known(value) ? significant(value, digits) : "–");
// Whether a density is far from the one that was asked for, as far_from_asked of hwbench/report/_words.py.
const farFromAsked = (data, density, asked) => known(density) && known(asked) && Math.abs(density - asked) > data.far * asked;
const percent = (value) => (known(value) ? `${(100 * value).toFixed(0)} %` : "–");

// A value in the unit of its quantity, as hwbench/report/_words.py writes it.
const amount = (value, { unit, digits }) => (unit ? si(value, unit) : plain(value, digits));

function spread(value, low, high) {
  if (!known(value) || !known(low) || !known(high)) return "";
  if (high - low > Math.abs(value)) return `(${significant(low)}–${significant(high)})`;
  const places = value ? Math.max(0, 2 - Math.floor(Math.log10(Math.abs(value)))) : 2;
  const half = (high - low) / 2;
  const text = half.toFixed(places);
  return `±${Number(text) ? text : significant(half, 1)}`; // never a zero that certainty would be
}

// What a row means beyond its columns, shared by charts, table and downloads.
function enrich(row) {
  const dense = row.format === "dense";
  row.relative = dense && known(row.time_seconds) ? 1 : row.relative_time;
  row.stored_ratio = known(row.stored_bytes) && row.dense_bytes ? row.stored_bytes / row.dense_bytes : null;
  row.flops_per_second = known(row.time_seconds) && row.flops ? row.flops / row.time_seconds : null;
  return row;
}

// An element with its text, and what else it is.
const make = (tag, text = "", more = {}) => Object.assign(document.createElement(tag), { textContent: text }, more);

// A button that hides once all is shown hands its focus to the first that it showed.
function keepFocus(button, element) {
  if (!button.hidden || !element) return;
  if (!element.matches("button")) element.tabIndex = -1;
  element.focus({ preventScroll: true });
}

// The mark of a series, or of its format where that has one only, as it stands in a legend of the
// page; nothing without one.
function marks() {
  const byName = new Map([...document.querySelectorAll("[data-look]")].map((mark) => [mark.dataset.look, mark]));
  return ({ series, format }) => (byName.get(series) || byName.get(format))?.cloneNode(true) || "";
}
