// Asks for status.json and metrics each second and shows them. What comes from the gateway is set
// as text, never as markup.

import { between, parse, reading } from "./metrics.js";

const EVERY_MS = 1000;
const KEPT = 120; // points of a line
const WINDOW = 10; // readings that a figure looks back over
const GOOD = new Set(["ready", "serving", "closed", "idle"]);
const WARN = new Set(["draining", "loading", "starting", "stopping", "half_open", "waiting"]);

const NOTHING = { done: null, failed: null, p50: null, p99: null, batch: null };

const byId = (id) => document.getElementById(id);
const readings = new Map(); // model -> its newest readings
const lines = new Map(); // model -> tile -> points

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const tone = (word) => (GOOD.has(word) ? "good" : WARN.has(word) ? "warn" : "bad");
const pill = (word) => make("span", { class: `pill ${tone(word)}` }, word);

function duration(seconds) {
  const days = Math.floor(seconds / 86400);
  const hours = Math.floor(seconds / 3600) % 24;
  const minutes = Math.floor(seconds / 60) % 60;
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${Math.floor(seconds)} s`;
}

function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value >= 1e6) return `${(value / 1e6).toFixed(1)} M`;
  if (value >= 1e4) return `${(value / 1e3).toFixed(1)} k`;
  return value >= 100 || Number.isInteger(value) ? value.toFixed(0) : value.toPrecision(value < 1 ? 2 : 3);
}

// ---------------------------------------------------------------------------------------- tiles

function spark(points) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("viewBox", `0 0 ${KEPT - 1} 30`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const top = Math.max(...points.map((point) => point ?? 0), 1e-9);
  if (!points.length) return svg;
  const start = KEPT - points.length;
  const places = points.map((point, i) => `${start + i},${(28 - (26 * (point ?? 0)) / top).toFixed(1)}`);
  for (const [tag, all] of [
    ["polygon", [`${start},30`, ...places, `${KEPT - 1},30`]],
    ["polyline", places],
  ]) {
    const shape = document.createElementNS(space, tag);
    shape.setAttribute("points", all.join(" "));
    svg.append(shape);
  }
  return svg;
}

function tile(model, name, value, unit, { alarm = false, title = "" } = {}) {
  const ofModel = lines.get(model) ?? lines.set(model, new Map()).get(model);
  const before = ofModel.get(name) ?? [];
  // A line begins with the first figure.
  const points = value === null && !before.length ? [] : [...before, value].slice(-KEPT);
  ofModel.set(name, points);
  return make(
    "div",
    { class: alarm ? "tile alarm" : "tile", title },
    make("div", { class: "name" }, name),
    make("div", { class: "value" }, short(value), make("span", { class: "unit" }, unit)),
    spark(points),
  );
}

function tiles(model, samples, at) {
  const kept = readings.get(model.name) ?? [];
  const now = reading(samples, model.name, at);
  readings.set(model.name, [...kept, now].slice(-WINDOW - 1));
  const figures = kept.length ? between(kept[0], now) : NOTHING;
  const ms = (seconds) => (seconds === null ? null : seconds * 1e3);
  const late = model.slo_ms !== null && figures.p99 !== null && ms(figures.p99) > model.slo_ms;
  const counters = model.counters;
  const live = `${counters.live ?? 0} live`;
  const aim = model.slo_ms === null || model.slo_ms === undefined ? "" : `aim: ${model.slo_ms} ms`;
  return make(
    "div",
    { class: "tiles" },
    tile(model.name, "answers", figures.done, "/s", { title: `${counters.done ?? 0} in all` }),
    tile(model.name, "failures", figures.failed, "/s", {
      alarm: figures.failed > 0,
      title: `${counters.failed ?? 0} in all`,
    }),
    tile(model.name, "median latency", ms(figures.p50), "ms", { title: aim }),
    tile(model.name, "p99 latency", ms(figures.p99), "ms", { alarm: late, title: aim }),
    ...(model.kind === "llm" ? tokenTiles(model, figures) : []),
    ...(model.kind === "tensor" ? [tile(model.name, "mean batch", figures.batch, "rows")] : []),
    tile(model.name, "waiting", model.waiting, "requests", { title: live }),
  );
}

function tokenTiles(model, figures) {
  const first = figures.first === null ? null : figures.first * 1e3;
  const cached = figures.cached === null ? null : figures.cached * 100;
  return [
    tile(model.name, "tokens", figures.tokens, "/s", { title: "generated" }),
    tile(model.name, "first token", first, "ms", { title: "median, of streams" }),
    tile(model.name, "cached", cached, "%", { title: "of the prompts' tokens" }),
  ];
}

// --------------------------------------------------------------------------------------- tables

function table(columns, rows) {
  const head = make("tr", {}, ...columns.map((column) => make("th", { scope: "col" }, column)));
  const cell = (content) => (content?.tagName === "TD" ? content : make("td", {}, content));
  const body = rows.map((contents) => make("tr", {}, ...contents.map(cell)));
  return [make("thead", {}, head), make("tbody", {}, ...body)];
}

function replicaRow(replica) {
  const reload = replica.reload_to ? `${replica.reload} → ${replica.reload_to}` : replica.reload;
  const busy = make("td", {});
  if (replica.slots) {
    busy.append(make("meter", { min: 0, max: replica.slots, value: replica.in_flight }));
  }
  busy.append(`${replica.in_flight} of ${replica.slots}`);
  return [
    replica.name,
    pill(replica.state),
    make("code", {}, replica.version || "–"),
    make("span", { class: replica.reload === "idle" ? "dim" : "warn" }, reload),
    busy,
    `${short(replica.work)} ${replica.unit ?? ""}`,
    `${replica.weight}${replica.drained ? ", drained" : ""}`,
    make("span", { class: tone(replica.breaker) }, replica.breaker.replace("_", " ")),
    String(replica.pid || "–"),
    String(replica.process?.restarts ?? "–"),
    make("td", { class: "reason" }, replica.reason ?? ""),
  ];
}

const REPLICA = "replica,state,version,reload,in flight,work,weight,breaker,process,restarts,";

function modelCard(model, samples, at) {
  const replicas = make("table", {});
  replicas.append(...table(REPLICA.split(","), model.replicas.map(replicaRow)));
  return make(
    "section",
    { class: "card" },
    make(
      "div",
      { class: "title" },
      make("h2", {}, model.name),
      pill(model.ready ? "ready" : "not ready"),
      make("span", { class: "dim" }, model.kind),
    ),
    tiles(model, samples, at),
    make("div", { class: "scroll" }, replicas),
  );
}

function workerRow(worker) {
  const memory = worker.rss_mb === null ? "–" : `${worker.rss_mb.toFixed(0)} MB`;
  return [worker.name, pill(worker.state), String(worker.pid || "–"), String(worker.restarts), memory];
}

function eventLine(event) {
  const at = new Date(event.at * 1000);
  const bad = /died/.test(event.kind) || /^(failed|refused):|→ (failed|unreachable)/.test(event.text);
  return make(
    "li",
    {},
    make("time", { datetime: at.toISOString() }, at.toLocaleTimeString([], { hour12: false })),
    make("b", {}, event.name),
    make("span", { class: bad ? "bad" : "" }, event.text),
  );
}

// --------------------------------------------------------------------------------------- course

function show(status, samples) {
  const at = performance.now() / 1000;
  const state = byId("state");
  state.textContent = status.state;
  state.className = `pill ${tone(status.state)}`;
  byId("about").textContent =
    `version ${status.version} · up ${duration(status.uptime_s)} · ${status.listen}`;
  byId("models").replaceChildren(...status.models.map((model) => modelCard(model, samples, at)));
  byId("workers").replaceChildren(
    ...table(["worker", "state", "process", "restarts", "memory"], status.workers.map(workerRow)),
  );
  const events = [...status.events].reverse().map(eventLine);
  const none = make("li", { class: "dim" }, "none yet");
  byId("events").replaceChildren(...(events.length ? events : [none]));
}

// Where the gateway has keys, one is asked for once and kept as long as the tab.
let key = sessionStorage.getItem("key");
let declined = false;

async function ask(path) {
  const headers = key ? { authorization: `Bearer ${key}` } : {};
  const options = { cache: "no-store", headers, signal: AbortSignal.timeout(5000) };
  const answer = await fetch(path, options);
  if (answer.status === 401 && !declined) {
    const given = window.prompt("This gateway wants a key:");
    declined = !given;
    if (given) sessionStorage.setItem("key", (key = given.trim()));
  }
  if (!answer.ok) throw new Error(`${path}: status ${answer.status}`);
  return answer;
}

async function refresh() {
  const trouble = byId("trouble");
  try {
    const [status, metrics] = await Promise.all([ask("status.json"), ask("metrics")]);
    show(await status.json(), parse(await metrics.text()));
    trouble.hidden = true;
  } catch (error) {
    trouble.textContent = `The gateway does not answer (${error.message}); what is shown is old.`;
    trouble.hidden = false;
  }
}

async function run() {
  for (;;) {
    // A page that nobody sees asks nobody.
    if (!document.hidden) await refresh();
    await new Promise((resolve) => setTimeout(resolve, EVERY_MS));
  }
}

run();
