// The theme, then the data, then what is drawn from it.

function startTheme() {
  const button = document.getElementById("theme");
  const root = document.documentElement;
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const say = () => {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-label", `Switch to ${isDark() ? "light" : "dark"} colours`);
  };
  button.removeAttribute("aria-pressed");
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    say();
  });
  dark.addEventListener("change", say);
  say();
}

startTheme();
readData().then((data) => {
  startRows(data);
  startCharts(data);
}).catch((error) => {
  const said = document.getElementById("count");
  said.textContent = `This browser could not read the data of the page (${error.message}); a current one can.`;
});
