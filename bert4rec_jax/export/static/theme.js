// SPDX-License-Identifier: Apache-2.0
// The colour theme: light, dark or the setting of the system. Stored if the browser allows it.

const names = ["auto", "light", "dark"];
const labels = {auto: "◐ System", light: "○ Light", dark: "● Dark"};

function remembered() {
  try {
    return names.includes(localStorage.theme) ? localStorage.theme : "auto";
  } catch {
    return "auto";
  }
}

function show(name) {
  if (name === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = name;
  const button = document.getElementById("theme");
  button.textContent = labels[name];
  button.setAttribute("aria-label", `Colours: ${name === "auto" ? "system setting" : name}`);
}

let current = remembered();
show(current);
document.getElementById("theme").addEventListener("click", () => {
  current = names[(names.indexOf(current) + 1) % names.length];
  show(current);
  try {
    localStorage.theme = current;
  } catch {
    // Private windows may refuse; the choice then lasts as long as the page.
  }
});
