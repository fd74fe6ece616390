// The decision: what to use in a setting within a largest error, and who ranks where. Python has
// made the candidates and their words; here those are chosen that pass the filters.

const MOST_SETTINGS = 12; // with their answers at once …
const MOST_CHOICES = 100; // … and by name
const MOST_MODES = 3; // sentences on two modes, as Setting.headline of hwbench/report/decision.py

const within = (candidate, level) => level.limit === null || (candidate.loss !== null && candidate.loss <= level.limit);

// Among these candidates of a setting; as Setting.best of hwbench/report/decision.py.
function bestOf(candidates, setting) {
  const first = candidates.find(({ verdict }) => verdict !== "never quiet") || candidates[0];
  const surer = first && (first.surer || []).find((place) => candidates.includes(setting.candidates[place]));
  return surer !== undefined && first.close.includes(surer) ? setting.candidates[surer] : first;
}

// What to use, instead of what, at which error; as Setting.says of hwbench/report/decision.py.
function sayWhat(data, best) {
  const row = enrich(data.row(best.row));
  const time = si(row.time_seconds, "s");
  if (row.format === "dense") return `Keep dense: ${time}; nothing within this error is proved to be faster.`;
  return `${best.advice || "Use"} ${best.name}: ${time}${best.instead}, ${best.error}.`;
}

// A sentence as nodes in which no line ends between a time and its unit.
function unbroken(sentence) {
  return sentence.split(/(\d[\d.]* [mµnp]?s(?![a-z]))/).map((part, place) => (place % 2 ? make("span", part, { className: "nobr" }) : part));
}

// The error of a candidate without what it is called: the words under the ladder say that.
function errorOf(data, { error }) {
  const titles = Object.values(data.scores).map(({ title }) => title);
  const title = ["its error is", ...titles].find((each) => error.startsWith(`${each} `));
  return title ? error.slice(title.length + 1) : error;
}

function startDecision(data, filters) {
  const card = document.getElementById("decision");
  if (!card || !data.settings.length) return () => {};
  const at = (id) => document.getElementById(id);
  const [select, ladder, headline, close, basis] = ["setting", "ladder", "headline", "close", "basis"].map(at);
  const picture = at("picture");
  const { state } = filters; // its setting and level stand in the address
  const sign = marks();

  const eligible = (candidates, level) => candidates.filter((each) => within(each, level) && filters.passes[each.row]);

  const live = () => data.settings.map((setting, place) => [setting, place])
    .filter(([setting]) => setting.candidates.some(({ row }) => filters.passes[row]));

  function listSettings(settings) {
    const chosen = settings.find(([, place]) => place === state.setting);
    const listed = settings.slice(0, MOST_CHOICES);
    if (!listed.includes(chosen)) listed.push(chosen);
    const options = listed.map(([setting, place]) => make("option", setting.title, { value: place, selected: place === state.setting }));
    if (listed.length < settings.length) options.push(make("option", `… ${settings.length - listed.length} further ones: use the filters`, { disabled: true }));
    select.replaceChildren(...options);
    select.disabled = settings.length < 2;
  }

  function rung(setting, level, place) {
    const best = bestOf(eligible(setting.candidates, level), setting);
    const label = make("label", "", { className: place === state.level ? "rung on" : "rung" });
    const input = make("input", "", { type: "radio", name: "level", value: place, checked: place === state.level });
    input.addEventListener("change", () => {
      state.level = place;
      filters.remember();
      draw();
      ladder.querySelector("input:checked").focus();
    });
    const row = best && data.row(best.row);
    const content = best ? [sign(row), make("span", best.name)] : [make("span", "nothing measured")];
    const name = make("span", "", { className: "what" });
    name.append(...content);
    label.append(input, make("span", level.label, { className: "level" }), name,
      make("span", row ? si(row.time_seconds, "s") : "", { className: "time" }),
      make("span", row && known(enrich(row).relative) ? `${plain(row.relative)}×` : "", { className: "share" }));
    return label;
  }

  function bar(candidate, row, most) {
    const place = (value) => `${(100 * Math.min(value, most)) / most}%`;
    const box = make("span", "", { className: "gauge" });
    const fill = make("span", "", { className: `fill ${candidate.verdict.replaceAll(" ", "-")}` });
    fill.style.width = place(row.relative);
    box.append(fill);
    if (known(row.relative_low) && known(row.relative_high)) {
      const span = make("span", "", { className: "span" });
      span.style.left = place(row.relative_low);
      span.style.width = `calc(${place(row.relative_high)} - ${place(row.relative_low)})`;
      box.append(span);
    }
    const denseLine = make("span", "", { className: "one" });
    denseLine.style.left = place(1);
    box.append(denseLine);
    return box;
  }

  function rank(setting) {
    light(lit.pressed); // the lines that were hovered go away
    const passing = setting.candidates.filter(({ row }) => filters.passes[row]);
    const rows = passing.map(({ row }) => enrich(data.row(row)));
    const most = Math.min(2, Math.max(1.05, ...rows.map(({ relative }) => relative)));
    at("ranking").tBodies[0].replaceChildren(...passing.map((candidate, place) => {
      const row = rows[place];
      const line = make("tr", "", { className: within(candidate, setting.levels[state.level]) ? "" : "beyond" });
      const name = make("th", "", { scope: "row", className: "left" });
      line.dataset.case = candidate.row;
      lights(line, nameOf(row));
      const nameBox = make("span", "", { className: "named" });
      nameBox.append(sign(row), caseButton(candidate.row, candidate.name));
      name.append(nameBox);
      const barCell = make("td", "", { className: "bars" });
      barCell.append(bar(candidate, row, most));
      const relative = row.format === "dense" ? "1×" : `${plain(row.relative)}× ${spread(row.relative, row.relative_low, row.relative_high)}`;
      line.append(name, barCell, make("td", relative), make("td", si(row.time_seconds, "s")),
        make("td", errorOf(data, candidate), { className: "left" }), make("td", si(row.stored_bytes, "B")),
        make("td", candidate.verdict, { className: `left word ${candidate.verdict.replaceAll(" ", "-")}` }));
      return line;
    }));
  }

  function everywhere(settings) {
    const chosen = data.settings[state.setting];
    const { label, limit } = chosen.levels[state.level];
    at("everywhere-level").textContent = label;
    const lines = settings.slice(0, MOST_SETTINGS).map(([setting, place]) => {
      const level = setting.levels.find((each) => each.label === label)
        || (setting.by_error === chosen.by_error ? { limit } : setting.levels.at(-1));
      const best = bestOf(eligible(setting.candidates, level), setting);
      const row = best && enrich(data.row(best.row));
      const line = make("tr", "", { className: place === state.setting ? "on" : "" });
      const title = make("th", "", { scope: "row", className: "left" });
      const button = make("button", setting.title, { type: "button", className: "quiet" });
      button.addEventListener("click", () => {
        state.setting = place;
        filters.remember();
        draw();
        at("everywhere").querySelector("tr.on button").focus({ preventScroll: true }); // the lines are new ones
        card.scrollIntoView({ block: "nearest" });
      });
      title.append(button);
      line.append(title, make("td", best ? best.name : "nothing measured", { className: "left" }),
        make("td", row ? si(row.time_seconds, "s") : "–"), make("td", row && known(row.relative) ? `${plain(row.relative)}×` : "–"),
        make("td", best ? best.error : "–", { className: "left" }));
      return line;
    });
    at("everywhere").tBodies[0].replaceChildren(...lines);
    const left = settings.length - lines.length;
    at("everywhere-left").textContent = left > 0 ? `${left} further settings: choose above, or use the filters.` : "";
    at("everywhere-box").hidden = settings.length < 2;
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
    const settings = live();
    card.hidden = !settings.length;
    at("decision-nothing").hidden = settings.length > 0;
    if (!settings.length) return Promise.resolve();
    if (!settings.some(([, place]) => place === state.setting)) {
      state.setting = settings[0][1];
      filters.remember();
    }
    const setting = data.settings[state.setting];
    state.level = Math.min(state.level, setting.levels.length - 1);
    listSettings(settings);
    const level = setting.levels[state.level];
    const candidates = eligible(setting.candidates, level);
    const best = bestOf(candidates, setting);
    const beside = (words, rivals) => (rivals.length ? [`${words}: ${rivals.map(({ name }) => name).join("; ")}.`] : []);
    const candidatesAt = (places) => eligible(places.map((place) => setting.candidates[place]), level);
    const before = candidates.slice(0, candidates.indexOf(best));
    const unjudged = before.filter(({ verdict }) => verdict === "never quiet");
    const shorter = before.filter((each) => !unjudged.includes(each));
    const modal = best ? [...shorter.filter(({ modes }) => modes), ...candidatesAt(best.modal || [])] : [];
    const modeSentences = modal.slice(0, MOST_MODES).map(({ name, modes }) => ` ${name} ${modes}.`);
    headline.replaceChildren(
      ...unbroken(best ? sayWhat(data, best) : "Nothing that was measured stays within this error."),
      ...(modeSentences.length ? [make("span", modeSentences.join(""), { className: "modes" })] : []),
    );
    close.textContent = best ? [
      ...beside("Tied within 3 %", candidatesAt(best.tied)),
      ...beside("Too close to call", candidatesAt(best.close)),
      ...beside("Shorter times, but not measured well enough", shorter),
      ...beside("Faster once, but the machine was never quiet", unjudged),
    ].join(" ") : "";
    basis.textContent = [setting.compiled, setting.basis].filter(Boolean).join(" ");
    basis.classList.toggle("warning", setting.synthetic);
    ladder.replaceChildren(...setting.levels.map((each, place) => rung(setting, each, place)));
    rank(setting);
    everywhere(settings);
    return paint(setting);
  }

  select.addEventListener("change", () => { state.setting = Number(select.value); filters.remember(); draw(); });
  return draw;
}
