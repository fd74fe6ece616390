// The decision: what to use in a setting within a largest error, and who ranks where. Python has
// made the candidates and their words; here those are chosen that pass the filters.

const MOST_SETTINGS = 12; // with their answers at once …
const MOST_CHOICES = 100; // … and by name

const within = (candidate, level) => level.limit === null || (candidate.loss !== null && candidate.loss <= level.limit);

function bestOf(setting, level, passes) {
  const kept = setting.candidates.filter((each) => within(each, level) && passes[each.row]);
  return kept.find(({ verdict }) => verdict !== "never quiet") || kept[0];
}

// Candidates that stand before the best and are not judged.
function unjudged(setting, best) {
  return setting.candidates.slice(0, setting.candidates.indexOf(best)).map((_, place) => place);
}

function kept(setting, places, level, passes) {
  return places.map((place) => setting.candidates[place]).filter((each) => within(each, level) && passes[each.row]);
}

function element(tag, text = "", more = {}) {
  return Object.assign(document.createElement(tag), { textContent: text }, more);
}

// What to use, instead of what, at which error; as Setting.says of hwbench/report/decision.py.
function sayWhat(data, setting, best) {
  const row = enrich(data.row(best.row));
  const time = si(row.time_seconds, "s");
  if (row.format === "dense") return `Keep dense: ${time}; nothing within this error is faster.`;
  const instead = setting.dense === null ? "" : ` instead of ${si(data.row(setting.dense).time_seconds, "s")}`;
  const share = known(row.relative) ? ` (${plain(row.relative)}×)` : "";
  return `Use ${best.name}: ${time}${instead}${share}, ${best.error}.`;
}

function startDecision(data, filters) {
  const card = document.getElementById("decision");
  if (!card || !data.settings.length) return () => {};
  const at = (id) => document.getElementById(id);
  const [select, ladder, headline, close, basis] = ["setting", "ladder", "headline", "close", "basis"].map(at);
  const picture = at("picture");
  const state = { setting: 0, level: 0 };
  const marks = new Map([...document.querySelectorAll("[data-look]")].map((mark) => [mark.dataset.look, mark]));
  const sign = (name) => marks.get(name)?.cloneNode(true) || "";

  const live = () => data.settings.map((setting, place) => [setting, place])
    .filter(([setting]) => setting.candidates.some(({ row }) => filters.passes[row]));

  function listSettings(found) {
    const chosen = found.find(([, place]) => place === state.setting);
    const listed = found.slice(0, MOST_CHOICES);
    if (!listed.includes(chosen)) listed.push(chosen);
    const options = listed.map(([setting, place]) => element("option", setting.title, { value: place, selected: place === state.setting }));
    if (listed.length < found.length) options.push(element("option", `… ${found.length - listed.length} further ones: use the filters`, { disabled: true }));
    select.replaceChildren(...options);
    select.disabled = found.length < 2;
  }

  function rung(setting, level, place) {
    const best = bestOf(setting, level, filters.passes);
    const label = element("label", "", { className: place === state.level ? "rung on" : "rung" });
    const input = element("input", "", { type: "radio", name: "level", value: place, checked: place === state.level });
    input.addEventListener("change", () => {
      state.level = place;
      draw();
      ladder.querySelector("input:checked").focus();
    });
    const row = best && data.row(best.row);
    const said = best ? [sign(row.format), best.name] : ["nothing measured"];
    const name = element("span", "", { className: "what" });
    name.append(...said);
    label.append(input, element("span", level.label, { className: "level" }), name,
      element("span", row ? si(row.time_seconds, "s") : "", { className: "time" }),
      element("span", row && known(enrich(row).relative) ? `${plain(row.relative)}×` : "", { className: "share" }));
    return label;
  }

  function bar(candidate, row, most) {
    const place = (value) => `${(100 * Math.min(value, most)) / most}%`;
    const box = element("span", "", { className: "gauge" });
    const fill = element("span", "", { className: `fill ${candidate.verdict.replaceAll(" ", "-")}` });
    fill.style.width = place(row.relative);
    box.append(fill);
    if (known(row.relative_low) && known(row.relative_high)) {
      const span = element("span", "", { className: "span" });
      span.style.left = place(row.relative_low);
      span.style.width = `calc(${place(row.relative_high)} - ${place(row.relative_low)})`;
      box.append(span);
    }
    const one = element("span", "", { className: "one" });
    one.style.left = place(1);
    box.append(one);
    return box;
  }

  function rank(setting) {
    const shown = setting.candidates.filter(({ row }) => filters.passes[row]);
    const rows = shown.map(({ row }) => enrich(data.row(row)));
    const most = Math.min(2, Math.max(1.05, ...rows.map(({ relative }) => relative)));
    at("ranking").tBodies[0].replaceChildren(...shown.map((candidate, place) => {
      const row = rows[place];
      const line = element("tr", "", { className: within(candidate, setting.levels[state.level]) ? "" : "beyond" });
      const name = element("th", "", { scope: "row", className: "left" });
      name.append(sign(row.format), candidate.name);
      const drawn = element("td", "", { className: "bars" });
      drawn.append(bar(candidate, row, most));
      const relative = row.format === "dense" ? "1×" : `${plain(row.relative)}× ${spread(row.relative, row.relative_low, row.relative_high)}`;
      line.append(name, drawn, element("td", relative), element("td", si(row.time_seconds, "s")),
        element("td", candidate.error, { className: "left" }), element("td", si(row.stored_bytes, "B")),
        element("td", candidate.verdict, { className: `left word ${candidate.verdict.replaceAll(" ", "-")}` }));
      return line;
    }));
  }

  function everywhere(found) {
    const label = data.settings[state.setting].levels[state.level].label;
    at("everywhere-level").textContent = label;
    const lines = found.slice(0, MOST_SETTINGS).map(([setting, place]) => {
      const level = setting.levels.find((each) => each.label === label) || setting.levels.at(-1);
      const best = bestOf(setting, level, filters.passes);
      const row = best && enrich(data.row(best.row));
      const line = element("tr", "", { className: place === state.setting ? "on" : "" });
      const title = element("th", "", { scope: "row", className: "left" });
      const button = element("button", setting.title, { type: "button", className: "quiet" });
      button.addEventListener("click", () => { state.setting = place; draw(); card.scrollIntoView({ block: "nearest" }); });
      title.append(button);
      line.append(title, element("td", best ? best.name : "nothing measured", { className: "left" }),
        element("td", row ? si(row.time_seconds, "s") : "–"), element("td", row && known(row.relative) ? `${plain(row.relative)}×` : "–"),
        element("td", best ? best.error : "–", { className: "left" }));
      return line;
    });
    at("everywhere").tBodies[0].replaceChildren(...lines);
    const left = found.length - lines.length;
    at("everywhere-left").textContent = left > 0 ? `${left} further settings: choose above, or use the filters.` : "";
    at("everywhere-box").hidden = found.length < 2;
  }

  function paint(setting) {
    const figure = data.figures.accuracy.find(({ group, scored }) => group === setting.group && scored === setting.scored);
    picture.hidden = !figure;
    card.classList.toggle("solo", !figure);
    picture.figure = figure;
    if (!figure) return Promise.resolve();
    picture.querySelector(".plot").setAttribute("aria-label", `${figure.title}. ${figure.says}`);
    return drawFigure(data, picture, filters.passes);
  }

  function draw() {
    const found = live();
    card.hidden = !found.length;
    at("decision-nothing").hidden = found.length > 0;
    if (!found.length) return Promise.resolve();
    if (!found.some(([, place]) => place === state.setting)) state.setting = found[0][1];
    const setting = data.settings[state.setting];
    state.level = Math.min(state.level, setting.levels.length - 1);
    listSettings(found);
    const level = setting.levels[state.level];
    const best = bestOf(setting, level, filters.passes);
    headline.textContent = best ? sayWhat(data, setting, best) : "Nothing that was measured stays within this error.";
    const beside = (words, places) => {
      const names = kept(setting, places, level, filters.passes).map(({ name }) => name);
      return names.length ? [`${words}: ${names.join("; ")}.`] : [];
    };
    close.textContent = best ? [...beside("Tied within 3 %", best.tied), ...beside("Too close to call", best.close), ...beside("Faster once, but the machine was never quiet", unjudged(setting, best))].join(" ") : "";
    basis.textContent = setting.basis;
    basis.classList.toggle("warning", setting.synthetic);
    ladder.replaceChildren(...setting.levels.map((each, place) => rung(setting, each, place)));
    rank(setting);
    everywhere(found);
    return paint(setting);
  }

  select.addEventListener("change", () => { state.setting = Number(select.value); draw(); });
  return draw;
}
