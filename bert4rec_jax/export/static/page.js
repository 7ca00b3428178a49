// SPDX-License-Identifier: Apache-2.0
// The page: visitors build a history, and the list next to it follows every change.

const SHOWN = 10;
const LIST_LENGTH = 50;
const MOST_HISTORY = 500; // rows of a longer history would slow the page down
const REASONS = 6;
const $ = (id) => document.getElementById(id);
const model = new Worker("model-worker.js", {type: "module"});
const search = new Worker("search-worker.js", {type: "module"});
const calm = matchMedia("(prefers-reduced-motion: reduce)");

let run = null; // run.json
let catalogue = null; // catalogue.json: arrays by item number - 1
let history = []; // item numbers, oldest first
let best = []; // the recommendations: {item, probability}
let reasons = new Map(); // item -> [{item, change}]
let shown = SHOWN;
let request = 0; // number of the newest request to the model
let clicked = 0; // when the history last changed, to measure the time from click to list
let modelReady = false;
let failed = false; // the page cannot recover
const open = new Set(); // recommendations whose reasons are shown

/** Creates an element. Texts are set as text and never as markup. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child != null));
  return element;
}

const TRAILING = /^([^()]*), (The|A|An|Le|La|Les|L'|El|Los|Las|Il|Lo|Der|Die|Das|Un|Une)( \(.*)?$/;
/** The title with its article in front: `Godfather, The` becomes `The Godfather`. */
const title = (item) => catalogue.title[item - 1].replace(TRAILING, (_, name, article, rest) => {
  const gap = article.endsWith("'") ? "" : " ";
  return `${article}${gap}${name}${rest ?? ""}`;
});
/** The title without the parentheses at its end. */
const short = (item) => title(item).replace(/(.) \(.*$/, "$1");
const year = (item) => catalogue.year[item - 1] || "";
const genres = (item) => catalogue.genres[item - 1].map((number) => catalogue.genre_names[number]);
const label = (item) => (year(item) ? `${title(item)} (${year(item)})` : title(item));
const percent = (p) => (p >= 0.0995 ? `${(100 * p).toFixed(0)} %` : p >= 0.000995 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %");

// ---- the history ----

function change(next, {focus} = {}) {
  history = next.slice(-MOST_HISTORY);
  shown = SHOWN;
  clicked = performance.now();
  const hash = history.length ? `#h=${history.join(",")}` : " ";
  try {
    window.history.replaceState(null, "", history.length ? hash : location.pathname + location.search);
  } catch {
    // Browsers limit the number of changes; the address is then updated later.
  }
  showHistory(focus);
  requestList();
}

function add(item) {
  change([...history.filter((other) => other !== item), item]);
  announce(`${label(item)} added`);
}

function remove(place) {
  const [item] = history.slice(place, place + 1);
  change(history.filter((_, i) => i !== place), {focus: Math.min(place, history.length - 2)});
  announce(`${label(item)} removed`);
}

function move(place, to, focus = true) {
  if (to < 0 || to >= history.length || to === place) return;
  const next = [...history];
  next.splice(to, 0, ...next.splice(place, 1));
  change(next, {focus: focus ? to : undefined});
  announce(`${label(next[to])} is now number ${to + 1} of ${next.length}`);
}

/** Announces a change to screen readers. */
function announce(text) {
  const known = document.getElementById("announcement");
  const line = known ?? document.body.appendChild(make("p", {id: "announcement", class: "unseen", role: "status"}));
  line.textContent = text;
}

function showHistory(focus) {
  const before = positions($("history"));
  const cut = Math.max(0, history.length - run.max_history);
  $("history").replaceChildren(...history.map((item, place) => {
    const name = label(item);
    return make("li", {"data-item": String(item), tabindex: "0", class: place < cut ? "ignored" : "",
      "aria-label": `${place + 1}: ${name}`, onkeydown: (event) => historyKey(event, place)},
    make("span", {class: "grip", "aria-hidden": "true", onpointerdown: (event) => drag(event, place)}, "⠿"),
    make("span", {class: "name"}, make("b", {}, title(item)), " ", make("span", {class: "year"}, String(year(item)))),
    make("button", {type: "button", class: "icon", "aria-label": `Move ${name} up`, disabled: place === 0, onclick: () => move(place, place - 1)}, "↑"),
    make("button", {type: "button", class: "icon", "aria-label": `Move ${name} down`, disabled: place === history.length - 1, onclick: () => move(place, place + 1)}, "↓"),
    make("button", {type: "button", class: "icon", "aria-label": `Remove ${name}`, onclick: () => remove(place)}, "✕"));
  }));
  glide($("history"), before);
  $("empty").hidden = history.length > 0;
  $("clear").hidden = $("share").hidden = history.length === 0;
  $("too-long").hidden = cut === 0;
  $("too-long").textContent = `This model reads ${run.max_history} items and ignores the ${cut === 1 ? "oldest one" : `oldest ${cut}`}.`;
  if (focus !== undefined && focus >= 0) $("history").children[focus]?.focus({preventScroll: false});
}

function historyKey(event, place) {
  if (event.target !== event.currentTarget) return;
  const rows = $("history").children;
  if (event.altKey && event.key === "ArrowUp") move(place, place - 1);
  else if (event.altKey && event.key === "ArrowDown") move(place, place + 1);
  else if (event.key === "ArrowUp") rows[place - 1]?.focus();
  else if (event.key === "ArrowDown") rows[place + 1]?.focus();
  else if (event.key === "Delete" || event.key === "Backspace") remove(place);
  else return;
  event.preventDefault();
}

/** Reorders with a finger or a mouse: the row follows the pointer and is dropped at the place below it. */
function drag(event, place) {
  event.preventDefault();
  const row = $("history").children[place];
  const rows = [...$("history").children];
  const boxes = rows.map((other) => other.getBoundingClientRect());
  const from = event.clientY;
  let to = place;
  row.classList.add("dragged");
  const follow = (moved) => {
    const offset = moved.clientY - from;
    row.style.transform = `translateY(${offset}px)`;
    const middle = boxes[place].top + boxes[place].height / 2 + offset;
    to = boxes.findIndex((box) => middle < box.bottom);
    if (to < 0) to = rows.length - 1;
    rows.forEach((other, i) => {
      if (other === row) return;
      const shift = i > place && i <= to ? -1 : i < place && i >= to ? 1 : 0;
      other.style.transform = shift ? `translateY(${shift * boxes[place].height}px)` : "";
    });
  };
  const drop = () => {
    removeEventListener("pointermove", follow);
    removeEventListener("pointerup", drop);
    removeEventListener("pointercancel", drop);
    for (const other of rows) other.style.transform = "";
    row.classList.remove("dragged");
    move(place, to, false);
  };
  addEventListener("pointermove", follow);
  addEventListener("pointerup", drop);
  addEventListener("pointercancel", drop);
}

// ---- the list ----

function requestList() {
  request++;
  if (!history.length) {
    best = [];
    reasons = new Map();
    showList();
    status(modelReady ? "Waiting for a history" : "Loading the model");
    return;
  }
  const known = modelReady ? null : run.starting_points.find(({items}) => items.join() === history.join());
  if (known) {
    // The page contains this list. The model computes it again after it is loaded.
    best = known.best.map(([item, probability]) => ({item, probability}));
    reasons = new Map();
    showList();
  }
  model.postMessage({kind: "list", id: request, history, k: Math.min(LIST_LENGTH, catalogue.title.length)});
}

model.onmessage = ({data}) => {
  if (data.loaded !== undefined) {
    $("progress").firstElementChild.style.width = `${100 * data.loaded}%`;
  } else if (data.failed) {
    (modelReady ? status : fail)(`The model could not be run: ${data.failed}`);
  } else if (data.ready) {
    modelReady = true;
    $("progress").hidden = true;
    if (!history.length) {
      status("Waiting for a history");
      indexTitles();
    }
  } else if (data.id === request && data.kind === "list") {
    best = data.best;
    reasons = new Map();
    showList();
    const took = performance.now() - clicked;
    const titles = catalogue.title.length.toLocaleString("en");
    status(best.length ? `${titles} titles ranked in ${data.milliseconds.toFixed(0)} ms`
      : "The history contains every title. Remove some to see recommendations.");
    document.body.dataset.clickToList = took.toFixed(1);
    document.body.dataset.answered = String(request);
    requestReasons();
    indexTitles();
  } else if (data.id === request && data.kind === "why") {
    const items = best.slice(0, shown).map(({item}) => item);
    items.forEach((item, i) => data.changes[i] && reasons.set(item, data.leftOut
      .map((other, j) => ({item: other, change: data.changes[i][j]}))
      .sort((a, b) => Math.abs(b.change) - Math.abs(a.change))));
    showReasons();
    document.body.dataset.explained = String(request);
  }
};

// A worker reports neither a missing runtime nor a missing script in any other way.
model.onerror = () => fail("The model could not be started: a file in the folder ort is missing or cannot be run. Export the page again.");
search.onerror = () => ($("search").placeholder = "The search cannot be started");

let indexed = false;

/** Makes the titles searchable, after the first list so as not to delay it. */
function indexTitles() {
  if (indexed) return;
  indexed = true;
  search.postMessage({titles: catalogue.title, years: catalogue.year, weights: catalogue.weight});
}

function requestReasons() {
  if (best.length) model.postMessage({kind: "why", id: request, history: history.slice(-run.max_history), items: best.slice(0, shown).map(({item}) => item)});
}

function status(text) {
  if (!failed) $("status").textContent = text;
}

/** Shows why the page cannot work; later messages do not replace this one. */
function fail(text) {
  status(text);
  failed = true;
  $("progress").hidden = true;
}

let places = new Map(); // item -> its place in the previous list

function showList() {
  const list = $("list");
  const before = positions(list);
  const rows = best.slice(0, shown);
  const most = rows.length ? rows[0].probability : 1;
  const focused = document.activeElement?.closest?.("#list > li")?.dataset.item;
  list.replaceChildren(...rows.map(({item, probability}, place) => {
    const was = places.get(item);
    const step = !places.size ? "" : was === undefined ? "new" : was > place ? `▲ ${was - place}` : was < place ? `▼ ${place - was}` : "";
    const bar = make("span", {class: "bar"}, make("span"));
    bar.firstElementChild.style.width = `${Math.max(1, 100 * probability / most)}%`;
    return make("li", {"data-item": String(item)},
      make("span", {class: "rank"}, String(place + 1)),
      make("div", {class: "what"},
        make("div", {class: "name"}, make("b", {}, title(item)), " ", make("span", {class: "year"}, String(year(item))),
          step ? make("span", {class: `step ${was === undefined ? "new" : was > place ? "up" : "down"}`}, step) : null),
        make("div", {class: "genres"}, genres(item).join(" · ")),
        make("div", {class: "because"})),
      make("div", {class: "how"}, make("span", {class: "percent"}, percent(probability)), bar),
      make("button", {type: "button", class: "icon plus", "aria-label": `Add ${label(item)} to the history`, title: "Add to the history", onclick: () => add(item)}, "+"),
      make("div", {class: "reasons", hidden: true}));
  }));
  places = new Map(best.map(({item}, place) => [item, place]));
  glide(list, before);
  $("more").hidden = !(best.length > shown);
  $("explain").hidden = best.length === 0 || history.length < 2;
  if (focused) list.querySelector(`[data-item="${CSS.escape(focused)}"] .why, [data-item="${CSS.escape(focused)}"] .plus`)?.focus();
}

function showReasons() {
  for (const row of $("list").children) {
    const item = Number(row.dataset.item);
    const why = (reasons.get(item) ?? []).slice(0, REASONS);
    const because = row.querySelector(".because");
    const detail = row.querySelector(".reasons");
    if (!why.length) continue;
    const strongest = why.find(({change}) => change > 0.005);
    const button = make("button", {type: "button", class: "why", "aria-expanded": String(open.has(item)), onclick: () => {
      if (open.has(item)) open.delete(item);
      else open.add(item);
      button.setAttribute("aria-expanded", String(open.has(item)));
      detail.hidden = !open.has(item);
    }}, make("span", {class: "chevron", "aria-hidden": "true"}, "›"), strongest ? "mostly because of " : "no single item stands out",
    strongest ? make("i", {}, short(strongest.item)) : null);
    because.replaceChildren(button);
    const largest = Math.max(...why.map(({change}) => Math.abs(change)), 0.1);
    detail.replaceChildren(make("dl", {}, ...why.flatMap(({item: other, change}) => {
      const bar = make("span", {class: `effect ${change < 0 ? "against" : "for"}`}, make("span"));
      bar.firstElementChild.style.width = `${50 * Math.abs(change) / largest}%`;
      return [make("dt", {title: title(other)}, short(other)), make("dd", {}, bar, make("span", {class: "number"}, `${change < 0 ? "−" : "+"}${Math.abs(change).toFixed(2)}`))];
    })));
    detail.hidden = !open.has(item);
  }
}

/** The current positions of the rows of a list. */
function positions(list) {
  return new Map([...list.children].map((row) => [row.dataset.item, row.getBoundingClientRect().top]));
}

/** Animates rows from their positions before a change to the current ones. */
function glide(list, before) {
  if (calm.matches) return;
  for (const row of list.children) {
    const was = before.get(row.dataset.item);
    const distance = was === undefined ? null : was - row.getBoundingClientRect().top;
    if (distance === null) row.animate([{opacity: 0, transform: "translateY(6px)"}, {opacity: 1, transform: "none"}], {duration: 220, easing: "ease-out"});
    else if (distance) row.animate([{transform: `translateY(${distance}px)`}, {transform: "none"}], {duration: 280, easing: "cubic-bezier(.2,.7,.2,1)"});
  }
}

// ---- the search ----

let query = 0; // number of the newest search
let chosen = -1; // index of the selected title

$("search").addEventListener("input", () => {
  const text = $("search").value;
  if (text.trim()) search.postMessage({id: ++query, text, limit: 8});
  else showFound([]);
});

search.onmessage = ({data}) => {
  if (data.ready) {
    $("search").disabled = false;
    document.body.dataset.searchable = "yes";
  } else if (data.id === query && $("search").value.trim()) {
    showFound(data.found);
  }
};

function showFound(found) {
  const nothing = found.length === 0 && $("search").value.trim() !== "";
  $("found").replaceChildren(...found.map((item, i) => make("li", {role: "option", id: `found-${i}`, "data-item": String(item), "aria-selected": "false",
    onpointerdown: (event) => event.preventDefault(), onclick: () => take(item)},
  make("span", {}, make("b", {}, title(item)), " ", make("span", {class: "year"}, String(year(item)))),
  make("span", {class: "genres"}, genres(item).slice(0, 3).join(" · ")))),
  ...(nothing ? [make("li", {class: "nothing", role: "option", "aria-disabled": "true"}, "No such title in this catalogue")] : []));
  $("found").hidden = found.length === 0 && !nothing;
  $("search").setAttribute("aria-expanded", String(!$("found").hidden));
  choose(found.length ? 0 : -1);
}

function choose(place) {
  const options = [...$("found").querySelectorAll("[data-item]")];
  chosen = options.length ? (place + options.length) % options.length : -1;
  options.forEach((option, i) => option.setAttribute("aria-selected", String(i === chosen)));
  if (chosen >= 0) {
    $("search").setAttribute("aria-activedescendant", `found-${chosen}`);
    options[chosen].scrollIntoView({block: "nearest"});
  } else {
    $("search").removeAttribute("aria-activedescendant");
  }
}

function take(item) {
  $("search").value = "";
  query++;
  showFound([]);
  add(item);
}

$("search").addEventListener("keydown", (event) => {
  const option = $("found").querySelectorAll("[data-item]")[chosen];
  if (event.key === "ArrowDown") choose(chosen + 1);
  else if (event.key === "ArrowUp") choose(chosen - 1);
  else if (event.key === "Enter" && option && !$("found").hidden) take(Number(option.dataset.item));
  else if (event.key === "Escape") {
    $("search").value = "";
    showFound([]);
  } else if (event.key === "Backspace" && !$("search").value && history.length) change(history.slice(0, -1));
  else return;
  event.preventDefault();
});
$("search").addEventListener("blur", () => showFound([]));
$("search").addEventListener("focus", () => $("search").dispatchEvent(new Event("input")));
addEventListener("keydown", (event) => {
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !/^(INPUT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "")) {
    event.preventDefault();
    $("search").focus();
  }
});

// ---- buttons and start ----

$("clear").addEventListener("click", () => {
  change([]);
  $("search").focus();
});
$("share").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText(location.href);
    $("share").textContent = "Link copied";
  } catch {
    $("share").textContent = "Copy it from the address bar";
  }
  setTimeout(() => ($("share").textContent = "Copy link"), 2000);
});
$("more").addEventListener("click", () => {
  shown = Math.min(shown + SHOWN, best.length);
  showList();
  requestReasons();
  $("list").children[shown - SHOWN]?.querySelector("button")?.focus();
});
addEventListener("hashchange", () => change(fromAddress()));

/** The history in the address, without numbers outside the catalogue. */
function fromAddress() {
  const numbers = (/^#h=([\d,]+)$/.exec(location.hash)?.[1] ?? "").split(",").map(Number);
  return [...new Set(numbers)].filter((item) => Number.isInteger(item) && item >= 1 && item <= catalogue.title.length);
}

function showRun() {
  document.title = run.data ? `What comes next · ${run.data}` : "What comes next";
  $("subtitle").textContent = `${run.model}${run.data ? ` on ${run.data}` : ""} · ${catalogue.title.length.toLocaleString("en")} titles, in your browser`;
  const facts = (list, pairs) => list.append(...pairs.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, String(value))]));
  facts($("metrics"), run.metrics);
  facts($("run"), run.facts);
  $("metrics").parentElement.hidden = run.metrics.length === 0;
  $("protocol").textContent = run.protocol;
  $("about").hidden = false;
  $("starts").replaceChildren(...(run.starting_points.length ? [make("span", {class: "hint"}, "Start from")] : []),
    ...run.starting_points.map(({name, items, missing}) => make("button", {type: "button", class: "chip", onclick: () => change(items),
      title: items.map(label).join("\n") + (missing ? `\n(${missing} more are not in this catalogue)` : "")}, name)));
}

async function fetched(name) {
  const response = await fetch(name);
  if (!response.ok) throw new Error(`${name} is missing (${response.status})`);
  return response.json();
}

try {
  if (location.protocol === "file:") throw new Error("browsers cannot load it from a file; serve this folder with: python -m http.server");
  run = await fetched("run.json");
  model.postMessage({load: "model.onnx", bytes: run.model_bytes});
  catalogue = await fetched("catalogue.json");
  showRun();
  const shared = fromAddress();
  change(shared.length ? shared : run.starting_points[0]?.items ?? []);
} catch (error) {
  fail(`This page could not start: ${error.message}`);
}
