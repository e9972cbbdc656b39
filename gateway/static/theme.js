/**
 * Dark unless asked otherwise: a stage is dark. `?theme=light|dark` wins over the viewer's last choice.
 * A classic script in the head, not a module: it runs before the first paint, so that light never flashes dark.
 */
"use strict";

const KEY = "arenacast.theme";
const root = document.documentElement;

function stored() {
  try {
    return localStorage.getItem(KEY);
  } catch {
    return null; // Storage may be forbidden; the choice then lasts as long as the page.
  }
}

function apply(theme) {
  root.dataset.theme = theme === "light" ? "light" : "dark";
}

apply(new URLSearchParams(location.search).get("theme") ?? stored());

document.addEventListener("DOMContentLoaded", () => {
  document.getElementById("theme")?.addEventListener("click", () => {
    const theme = root.dataset.theme === "light" ? "dark" : "light";
    apply(theme);
    try {
      localStorage.setItem(KEY, theme);
    } catch {
      // As above.
    }
  });
});
