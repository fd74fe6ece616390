// The theme, then the data, then what is drawn from it.

function startTheme() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const say = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `${button.textContent}: switch colours`);
  };
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    say();
  });
  dark.addEventListener("change", say);
  say();
}

// The summary is the answer alone; everything has all sections. A page without an answer has no switch.
function startView(filters) {
  const buttons = [...document.querySelectorAll("button[data-view]")];
  for (const button of buttons) {
    button.addEventListener("click", () => {
      filters.state.view = button.dataset.view === EVERYTHING ? EVERYTHING : "";
      filters.apply();
    });
  }
  return () => {
    const view = buttons.length ? filters.state.view || "summary" : EVERYTHING;
    document.documentElement.dataset.view = view;
    for (const button of buttons) button.setAttribute("aria-pressed", button.dataset.view === view);
  };
}

// A table that goes on beyond an edge of its box has a shadow there.
function startShadows() {
  const mark = (box) => {
    const left = box.scrollWidth - box.clientWidth - box.scrollLeft;
    box.classList.toggle("further", left > 1);
    box.classList.toggle("begun", box.scrollLeft > 1);
  };
  const watch = new ResizeObserver((entries) => entries.forEach(({ target }) => mark(target.closest(".scroll"))));
  for (const box of document.querySelectorAll(".scroll")) {
    box.addEventListener("scroll", () => mark(box), { passive: true });
    watch.observe(box);
    watch.observe(box.firstElementChild); // the table, which filters make wider or narrower
  }
}

// Whether an element is in the window or just beyond its edges.
function inView(element) {
  const { top, bottom } = element.getBoundingClientRect();
  return bottom > -200 && top < window.innerHeight + 200 && element.checkVisibility();
}

// A table of thousands of cells takes longer than all that is in view: out of view it is drawn after that.
function drawnInTurn(data, id, draw) {
  const table = document.getElementById(id);
  if (!table) return () => {};
  return () => {
    data.late.delete(draw);
    if (inView(table)) draw();
    else data.late.add(draw);
  };
}

// Answers about groups of which no row passes are set aside.
function startAnswers(filters, data) {
  const items = [...document.querySelectorAll("[data-group]")];
  const numbers = data.column("group_number");
  return () => {
    const live = new Set();
    for (let row = 0; row < data.count; row += 1) if (filters.passes[row]) live.add(numbers[row]);
    for (const note of document.querySelectorAll("[data-all]")) note.hidden = !filters.active();
    for (const item of items) item.hidden = !item.dataset.group.split(" ").some((number) => live.has(Number(number)));
  };
}

// The contents stand open at the side where there is room, else folded above; where one is, is marked.
function startContents() {
  const box = document.getElementById("contents");
  const wide = window.matchMedia("(min-width: 1200px)");
  const fold = () => { box.open = wide.matches; };
  wide.addEventListener("change", fold);
  fold();
  const links = new Map([...box.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
  box.addEventListener("click", ({ target }) => { if (target.closest("a")) fold(); });
  const inView = new Set();
  const watch = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) inView.add(target.id);
      else inView.delete(target.id);
    }
    const first = [...links.keys()].find((id) => inView.has(id));
    for (const [id, link] of links) {
      if (id === first) link.setAttribute("aria-current", "true");
      else link.removeAttribute("aria-current");
    }
  }, { rootMargin: "-70px 0px -40% 0px" });
  for (const id of links.keys()) watch.observe(document.getElementById(id));
}

startTheme();
startContents();
startShadows();
readData().then((data) => {
  const updates = [];
  data.reach = new Map(); // of what passes the filters
  data.late = new Set(); // what draws the tables that wait
  const draw = () => {
    document.body.dataset.drawn = "no"; // until all charts are, those out of view too
    return updates.map((update) => update());
  };
  const filters = startFilters(data, (begun) => {
    data.reach.clear();
    Promise.all(draw()).then(() => { document.body.dataset.milliseconds = performance.now() - begun; });
  });
  const links = startLinks(data, filters);
  const rows = startRows(data, filters);
  updates.push(startView(filters), startLegends(), links.choose, rows.count);
  updates.push(drawnInTurn(data, "table", rows.draw), drawnInTurn(data, "heat", startHeat(data, filters)), drawnInTurn(data, "compare", startRatios(data, filters)));
  updates.push(startAnswers(filters, data), startCase(data, filters), startKeeping(data));
  updates.push(startDecision(data, filters), startCharts(data, filters), links.show);
  draw();
}).catch((error) => {
  const count = document.getElementById("count");
  count.textContent = `This browser could not read the data of the page (${error.message}); a current one can.`;
});
