// Asks the server once a second, and shows what it says. The token stays in this tab.

import { $, clockTime, el, lasting, text } from "./draw.js";
import { EdgeView } from "./edge.js";
import { CloudView } from "./cloud.js";

const EVERY_MS = 1000;
const PATIENCE_MS = 5000;
const TOKEN = "edgemux-token";
const THEME = "edgemux-theme";
// Of several processes behind a port each has its own numbers: so often we ask for the one that we began with.
const TRIES = 12;
const MOST_EVENTS = 60;

let token = sessionStorage.getItem(TOKEN);
let view = null;
let life = null;
let paused = false;
let lost = false;
let latest = null;
let timer = 0;
const events = el("ol", { class: "events" });

// --- what has happened

function say(message, aloud = true) {
  events.prepend(el("li", {}, el("span", { class: "muted num" }, `${new Date().toLocaleTimeString("en-GB")}  `), message));
  while (events.children.length > MOST_EVENTS) events.lastChild.remove();
  $("none-yet").hidden = true;
  if (aloud) text($("announcer"), message);
}

function beat(word, how) {
  text($("beat"), word);
  $("dot").className = `dot ${how}`;
}

function banner(words, calm = false) {
  $("banner").hidden = !words;
  $("banner").classList.toggle("calm", calm);
  text($("banner"), words || "");
}

// --- asking

async function fetched(after) {
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  const asked = { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) };
  return fetch(`live.json?after=${after}`, asked);
}

async function ask() {
  let answer = null;
  for (let tries = 0; tries < TRIES; tries++) {
    answer = await fetched(view?.after || 0);
    if (!answer.ok) return { answer };
    const data = await answer.json();
    if (life === null || data.life === life || !(data.processes > 1)) return { answer, data };
  }
  return { answer, data: null };
}

async function poll() {
  clearTimeout(timer);
  timer = 0;
  if (paused || document.hidden) return;
  const began = performance.now();
  try {
    const { answer, data } = await ask();
    if (answer.status === 401) return askToken();
    if (answer.status === 421) {
      beat("Refused", "lost");
      return banner((await answer.json()).error);
    }
    if (!answer.ok) throw new Error("no answer");
    if (data !== null) show(data);
    else missed();
  } catch {
    missed();
  }
  if (!paused) timer = setTimeout(poll, Math.max(100, EVERY_MS - (performance.now() - began)));
}

function missed() {
  if (!lost) {
    lost = true;
    beat("No answer", "lost");
    $("view").classList.add("stale");
    if (latest) say(`The ${latest.kind === "edge" ? "agent" : "cloud server"} does not answer any more.`);
    else text($("announcer"), "The server does not answer.");
  }
  const what = latest ? `What you see is from ${clockTime(latest.time_s)}.` : "";
  banner(`Nobody answers. ${what} Trying again every second.`);
  // Another process of a cloud server may have taken the place of the one that we began with.
  if (latest?.processes > 1) life = null;
}

function show(data) {
  if (lost) {
    lost = false;
    $("view").classList.remove("stale");
    if (latest) say("The connection is back.");
  }
  if (life !== data.life) {
    if (life !== null) say("The server was started anew: its counts begin at zero.");
    begin(data);
  }
  if (latest?.ready && !data.ready) say("The server is stopping: it takes no new inputs.");
  latest = data;
  beat("Live", "live");
  text($("clock"), clockTime(data.time_s));
  const several = data.processes > 1 ? `This is one of ${data.processes} processes behind the same port (number ${data.process}). Its numbers are its own; their sum is in the metrics.` : "";
  banner(data.ready ? several : "The server is stopping.", true);
  text($("about"), about(data));
  view.update(data);
}

function about(data) {
  const { tls, token: asks } = data.security;
  return `edgemux ${data.release} on ${data.host} (${data.machine}), process ${data.process}, up for ${lasting(data.up_s)}; ${tls ? "TLS" : "plaintext"}, ${asks ? "tokens" : "no tokens"}.`;
}

function begin(data) {
  life = data.life;
  const root = $("view");
  root.replaceChildren();
  root.hidden = false;
  $("ask").hidden = true;
  $("forget").hidden = !token;
  view = data.kind === "edge" ? new EdgeView(root, say, $("pick"), $("application")) : new CloudView(root, say);
  const kind = data.kind === "edge" ? "agent" : "cloud";
  text($("role"), kind);
  document.title = `${data.host} – edgemux ${kind}`;
  text($("where"), data.host);
  view.aside.append(happened());
}

function happened() {
  const section = el("section", { class: "card", "aria-labelledby": "happened" }, el("h2", { id: "happened" }, "What has happened"));
  section.append(el("p", { class: "muted small", id: "none-yet", hidden: events.children.length > 0 }, "Nothing since this page was opened."));
  section.append(el("div", { tabindex: "0", role: "region", "aria-label": "Events", class: "scroll" }, events));
  return section;
}

// --- the token

function askToken() {
  view = life = latest = null;
  $("view").hidden = true;
  $("ask").hidden = false;
  $("forget").hidden = true;
  banner("");
  beat("Waiting for a token", "");
  text($("wrong"), token ? "The server does not know this token." : "");
  token = null;
  sessionStorage.removeItem(TOKEN);
  $("token").value = "";
  $("token").focus();
}

$("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem(TOKEN, token);
  poll();
});

$("forget").addEventListener("click", () => {
  token = null;
  clearTimeout(timer);
  askToken();
});

// --- pause and theme

$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", paused);
  if (paused) beat("Paused", "");
  else beat("Connecting", "");
  if (!paused) poll();
});

document.addEventListener("visibilitychange", () => { if (!document.hidden && !timer && $("ask").hidden) poll(); });

const dark = matchMedia("(prefers-color-scheme: dark)");
function isDark() {
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : dark.matches;
}
function retint() {
  text($("theme"), isDark() ? "Light" : "Dark");
  $("theme").setAttribute("aria-label", isDark() ? "Light colours" : "Dark colours");
  view?.retint();
}
$("theme").addEventListener("click", () => {
  const next = isDark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  localStorage.setItem(THEME, next);
  retint();
});
dark.addEventListener("change", retint);
const kept = localStorage.getItem(THEME);
if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
retint();
poll();
