// Legends: the name that is hovered, focused or pressed keeps its marks; all others fade.

// What stands out, what was pressed to go on doing so, and the names of all legends.
const lit = { name: "", pressed: "", names: new Set() };

// The name under which a legend has a datum; nothing where it is of no series.
function nameOf(datum) {
  if (!datum?.series) return "";
  return lit.names.has(datum.series) ? datum.series : datum.format;
}

function fade(figure) {
  for (const element of figure.querySelectorAll(".plot svg :is(path, line, text)")) {
    const { datum } = element.__data__ || {}; // of a line: the first of its points
    const name = nameOf(Array.isArray(datum) ? datum[0] : datum);
    element.classList.toggle("faded", Boolean(lit.name && name && name !== lit.name));
  }
}

function light(name) {
  if (lit.name === name) return;
  lit.name = name;
  for (const figure of document.querySelectorAll("figure.chart")) if (figure.view) fade(figure);
}

// An element whose name stands out while it is hovered, or something in it has the focus.
function lights(element, name) {
  for (const begun of ["mouseenter", "focusin"]) element.addEventListener(begun, () => light(name));
  for (const ended of ["mouseleave", "focusout"]) element.addEventListener(ended, () => light(lit.pressed));
}

const MOVES = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };

function startLegends() {
  const allButtons = [];

  function press(name) {
    lit.pressed = lit.pressed === name ? "" : name;
    for (const button of allButtons) button.setAttribute("aria-pressed", button.dataset.name === lit.pressed);
    light(lit.pressed);
  }

  // One stop of the Tab key a legend; the arrow keys move inside it.
  function move(event, buttons) {
    const place = buttons.indexOf(event.target.closest("button"));
    const ends = { Home: 0, End: buttons.length - 1 };
    const next = event.key in MOVES ? (place + MOVES[event.key] + buttons.length) % buttons.length : ends[event.key];
    if (next === undefined) return;
    event.preventDefault();
    buttons[place].tabIndex = -1;
    buttons[next].tabIndex = 0;
    buttons[next].focus();
  }

  for (const legend of document.querySelectorAll(".legend:not(.shades)")) {
    const buttons = [...legend.children].map((item, place) => {
      const name = item.querySelector("[data-look]").dataset.look;
      const button = make("button", "", { type: "button", className: "key", title: "Press to keep it highlighted in the charts" });
      button.dataset.name = name;
      button.setAttribute("aria-pressed", "false");
      button.tabIndex = place ? -1 : 0;
      button.append(...item.childNodes);
      item.append(button);
      lit.names.add(name);
      lights(button, name);
      button.addEventListener("click", () => press(name));
      return button;
    });
    legend.addEventListener("keydown", (event) => move(event, buttons));
    allButtons.push(...buttons);
  }
  return () => {};
}
