// Addresses: of a chart, of what the answer shows, of a case, and what is unfolded; they open it again.

const NOTICE_MILLISECONDS = 8000; // that a notice stands over the page

function startLinks(data, filters) {
  const { state } = filters;
  const folded = [...document.querySelectorAll("main details:not(.alone)")];
  const notice = document.getElementById("notice");
  let ending = 0;

  // It stays a live region: only its words go away, and come anew with the next link.
  async function copyLink(status) {
    clearTimeout(ending);
    notice.textContent = "";
    await copyText(window.location.href, status, "Link copied.");
    ending = setTimeout(() => { notice.textContent = ""; }, NOTICE_MILLISECONDS);
  }

  // The picture of the answer, or the place of a figure in its section.
  function name(element) {
    if (element.id === "picture") return element.id;
    const { section } = element.closest(".figures").dataset;
    return `${section}.${data.figures[section].indexOf(element.figure)}`;
  }

  const charts = () => [...document.querySelectorAll("main figure.chart")].filter(({ figure }) => figure);

  document.addEventListener("click", ({ target }) => {
    const button = target.closest("[data-link]");
    if (!button) return;
    const element = button.closest("main figure.chart");
    state.figure = element ? name(element) : "";
    state.section = "";
    filters.remember();
    copyLink(button.closest("dialog")?.querySelector("[data-part=status]") || notice);
  });

  // Before the charts are drawn: some figures are chosen from a list, and drawn where that stands.
  function choose() {
    if (!state.fresh) return;
    const [section, number] = state.figure.split(".");
    if (Object.hasOwn(data.figures, section) && data.figures[section][Number(number)]) state.more[section] = Number(number);
    const numbers = new Set(state.open.split(".").filter(Boolean).map(Number));
    folded.forEach((box, place) => { box.open = numbers.has(place); });
  }

  // Toggles come after what caused them, and do not bubble.
  document.addEventListener("toggle", ({ target }) => {
    if (!folded.includes(target)) return;
    state.open = folded.flatMap((box, place) => (box.open ? [place] : [])).join(".");
    filters.remember();
  }, true);

  // After they have their places.
  function show() {
    const element = state.fresh && state.figure && charts().find((each) => name(each) === state.figure);
    state.fresh = false;
    if (!element) return;
    filters.reveal(element);
    for (const each of document.querySelectorAll(".linked")) each.classList.remove("linked");
    element.classList.add("linked");
    element.tabIndex = -1;
    element.scrollIntoView({ block: "center" });
    element.focus({ preventScroll: true });
  }

  return { choose, show };
}
