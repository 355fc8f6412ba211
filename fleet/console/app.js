// The console: reads the API and shows it. Texts of devices and people become text nodes, never markup.
"use strict";

const REFRESH_MS = 10000;
const PAGE = 100;
const main = document.getElementById("main");
const fault = document.getElementById("fault");
let token = sessionStorage.getItem("token");
let drawn = 0;

// --- elements and words ----------------------------------------------------------------------------------------------

function h(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return made;
}

const word = (text) => (text ? h("span", { class: `word ${/^[A-Za-z-]+$/.test(text) ? text : ""}` }, text) : "");
const link = (path, text) => h("a", { href: `#/${path}` }, text);
const deviceLink = (id) => link(`device/${encodeURIComponent(id)}`, id);
const time = (at) => (at ? `${at.slice(0, 10)} ${at.slice(11, 19)}` : "");

function span(seconds) {
  if (seconds === null || seconds === undefined) return "";
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= size) return `${Math.round(seconds / size)} ${unit}`;
  }
  return `${Math.round(seconds)} s`;
}

const ago = (age) => (age.age_s === null ? "never" : `${span(age.age_s)} ago`);
// A figure that is stale says how old it is, and does not look like one that is not.
const aged = (text, age) => (text === "" ? "" : age.stale ? h("span", { class: "stale" }, `${text}, ${ago(age)}`) : text);
const figure = (value, unit) => (value === null || value === undefined ? "" : `${value.toFixed(1)}${unit}`);
const release = (target) => { const parts = target.split("/"); return parts.length > 3 ? `${parts[2]} ${parts[3]}` : target; };

function table(columns, rows, empty) {
  if (!rows.length) return h("p", { class: "dim" }, empty || "none");
  const plain = columns.map((name) => name.replace("#", ""));
  const cell = (value, i) => h("td", { "data-of": plain[i], class: columns[i][0] === "#" ? "n" : null }, value);
  const head = h("thead", null, h("tr", null, plain.map((name, i) => h("th", { scope: "col", class: columns[i][0] === "#" ? "n" : null }, name))));
  const body = h("tbody", null, rows.map((row) => h("tr", null, row.map(cell))));
  return h("div", { class: "scroll" }, h("table", { class: "wide" }, head, body));
}

const list = (pairs) => h("dl", null, pairs.filter(([, value]) => value !== "").flatMap(([name, value]) => [h("dt", null, name), h("dd", null, value)]));
const card = (number, text, path, kind) => h(path ? "a" : "div", { class: "card", href: path ? `#/${path}` : null }, h("b", { class: kind || null }, String(number)), h("span", null, text));

// --- the API ---------------------------------------------------------------------------------------------------------

async function api(path, options) {
  const headers = { ...(token ? { Authorization: `Bearer ${token}` } : {}), ...((options || {}).headers || {}) };
  const answer = await fetch(`/api/v1/${path}`, { cache: "no-store", ...options, headers });
  const value = answer.status === 204 ? null : await answer.json();
  if (answer.status === 401 && token) leave();
  if (!answer.ok) throw new Error(value.error.message);
  return value;
}

function leave() {
  token = null;
  sessionStorage.clear();
}

// --- pages -----------------------------------------------------------------------------------------------------------

async function fleetPage() {
  const [status, alerts, rollouts] = await Promise.all([api("status"), api("alerts"), api("rollouts")]);
  const words = ["online", "late", "offline", "unknown"];
  const others = Object.entries(status.devices).filter(([name, n]) => n && !words.includes(name));
  const newest = status.telemetry.newest;
  return [
    h("h1", null, "Fleet"),
    h("div", { class: "cards" },
      words.map((name) => card(status.devices[name], name, `devices?where=${name}`, name)),
      others.map(([name, n]) => card(n, name, `devices?where=state%3D${name}`)),
      card(alerts.alerts.length, "open alerts", "alerts", alerts.alerts.length ? "page" : "online")),
    list([
      ["Broker", word(status.broker.state)],
      ["Telemetry", newest.at ? aged(`${status.telemetry.records} records`, newest) : "none yet"],
      ["Security", status.security.events ? `${status.security.events} events of ${status.security.devices} devices in 24 hours` : "nothing was refused in 24 hours"],
      ["Releases", String(status.releases)],
      ["Version", `${status.version}, up since ${time(status.started)} UTC`],
    ]),
    h("h2", null, "Rollouts under way"), rolloutTable(rollouts.filter((r) => !["done", "aborted", "rolled-back"].includes(r.state))),
    h("h2", null, "Alerts"), alertTable(alerts.alerts.slice(0, 10)),
  ];
}

async function devicesPage(_, query) {
  const where = query.get("where") || "", after = query.get("after") || "";
  const asked = new URLSearchParams({ limit: PAGE, ...(where ? { where } : {}), ...(after ? { after } : {}) });
  const devices = await api(`devices?${asked}`);
  const go = (event) => {
    event.preventDefault();
    location.hash = `#/devices?${new URLSearchParams({ where: new FormData(event.target).get("where") })}`;
  };
  const rows = devices.map((d) => [
    deviceLink(d.device), word(d.status), d.profile, d.group, d.tags.join(" "),
    d.slots.filter((s) => s.slot === "active").map((s) => release(s.target)).join(", "),
    String(d.stats.requests), aged(figure(d.stats.latency_p50_ms, " ms"), d.ages.stats), ago(d.ages.seen),
  ]);
  const more = new URLSearchParams({ ...(where ? { where } : {}), after: devices.length ? devices[devices.length - 1].device : "" });
  return [
    h("h1", null, "Devices"),
    h("form", { onsubmit: go },
      h("label", null, "Query, such as profile=raspberry-pi-4 and tag:kitchen and not online", h("input", { name: "where", value: where, autocomplete: "off" })),
      h("button", null, "Find")),
    table(["Device", "Status", "Profile", "Group", "Tags", "Runs", "#Requests", "#p50", "#Seen"], rows, "no device"),
    devices.length === PAGE ? h("p", null, link(`devices?${more}`, "More")) : "",
  ];
}

async function devicePage(id) {
  const path = `devices/${encodeURIComponent(id)}`;
  const [d, past] = await Promise.all([api(path), api(`${path}/history?limit=100`)]);
  const health = d.health || {}, stats = d.stats, ages = d.ages;
  const share = stats.feedback_total ? `${(100 * stats.feedback_correct / stats.feedback_total).toFixed(1)} % of ${stats.feedback_total}` : "";
  const of = (used, total) => (total ? `${(100 * used / total).toFixed(0)} %` : "");
  return [
    h("h1", null, d.device, " ", word(d.status)),
    list([
      ["Seen", ago(ages.seen)], ["Gone since", d.gone ? `${time(d.gone)} UTC` : ""], ["Profile", d.profile + (d.emulated ? " (emulated)" : "")],
      ["Hardware", d.hardware || ""], ["Agent", d.agent || ""], ["Group", d.group], ["Tags", d.tags.join(" ")], ["Note", d.note],
      ["Requests", aged(String(stats.requests), ages.stats)], ["Errors", aged(String(stats.errors), ages.stats)],
      ["p50, p99", stats.latency_p50_ms === null ? "" : aged(`${figure(stats.latency_p50_ms, "")}, ${figure(stats.latency_p99_ms, " ms")}`, ages.stats)],
      ["Right answers", aged(share, ages.stats)],
      ["Temperature", aged(figure(health.temperature_c, " °C"), ages.health)],
      ["Memory, disk", health.memory_total ? aged(`${of(health.memory_used, health.memory_total)}, ${of(health.disk_total - health.disk_free, health.disk_total)}`, ages.health) : ""],
    ]),
    h("h2", null, "What runs"),
    table(["Slot", "Release", "Digest"], d.slots.map((s) => [s.slot, aged(s.target, ages.slots), s.digest.slice(0, 19)]), "nothing yet"),
    table(["Update", "Phase", "Why"], d.updates.map((u) => [release(u.target), word(u.phase), u.reason]), "no update yet"),
    h("h2", null, "What ran"),
    table(["Release", "Since", "Until", "Why"], past.models.map((m) => [m.target, time(m.since), time(m.until) || "now", m.why]), "nothing yet"),
    h("h2", null, "What happened"),
    table(["At (UTC)", "What", "How", "Who"], past.entries.map((e) => [time(e.at), e.what, e.text, e.who]), "nothing yet"),
  ];
}

function rolloutTable(rollouts) {
  const rows = rollouts.map((r) => [
    link(`rollout/${encodeURIComponent(r.rollout)}`, `${r.name} ${r.version}`), word(r.state), word(r.verdict), `${r.wave + 1} of ${r.waves.length}`,
    Object.entries(r.counts || {}).map(([state, n]) => `${n} ${state}`).join(", "), r.reasons.slice(0, 2).join("; "),
  ]);
  return table(["Rollout", "State", "Verdict", "#Wave", "Devices", "Why"], rows, "none");
}

async function rolloutsPage() {
  return [h("h1", null, "Rollouts"), rolloutTable(await api("rollouts"))];
}

async function rolloutPage(id) {
  const r = await api(`rollouts/${encodeURIComponent(id)}`);
  const share = (wave) => (typeof wave === "number" ? `${wave} %` : String(wave));
  return [
    h("h1", null, `${r.name} ${r.version} `, word(r.state)),
    list([
      ["Verdict", word(r.verdict)], ["Why", r.reasons.join("\n")], ["Target", r.target || "all"], ["Group", r.group || ""],
      ["Waves", r.waves.map((w, i) => (i === r.wave ? `[${share(w)}]` : share(w))).join(", ")],
      ["Reached", r.eligible ? `${r.devices.length} of ${r.eligible}` : String(r.devices.length)],
      ["Started", `${time(r.started)} UTC${r.created_by ? ` by ${r.created_by}` : ""}`], ["Approved by", r.approved_by || ""],
    ]),
    h("h2", null, "Profiles"),
    table(["Profile", "State", "Verdict", "Why"], (r.profiles || []).map((p) => [p.profile, word(p.state), word(p.verdict), p.reasons.join("\n")])),
    h("h2", null, "Devices"),
    table(["Device", "#Wave", "State", "Why"], r.devices.slice(0, 500).map((d) => [deviceLink(d.device), String(d.wave + 1), word(d.state), d.reason])),
    r.devices.length > 500 ? h("p", { class: "dim" }, `and ${r.devices.length - 500} more`) : "",
    h("h2", null, "What happened"),
    table(["At (UTC)", "What", "How", "Who"], (r.history || []).map((e) => [time(e.at), e.profile ? `${e.what} ${e.profile}` : e.what, e.reason, e.who])),
  ];
}

function alertTable(alerts) {
  const rows = alerts.map((a) => [word(a.severity), a.rule, a.subject, a.text, time(a.began), a.acknowledged]);
  return table(["Severity", "Rule", "Subject", "What", "Since (UTC)", "Known to"], rows, "nothing is wrong that a rule knows of");
}

async function alertsPage() {
  const value = await api("alerts");
  return [
    h("h1", null, "Alerts"), value.fault ? h("p", { class: "page" }, `The rules of before hold: ${value.fault}`) : "", alertTable(value.alerts),
    h("h2", null, "Silences"),
    table(["Rule", "Subject", "Until (UTC)", "Who", "Why"], value.silences.map((s) => [s.rule || "every", s.subject || "every", time(s.until), s.who, s.reason])),
    h("h2", null, "Channels"),
    table(["Channel", "Kind", "#Sent", "#Waiting", "#Given up"], value.channels.map((c) => [c.name, c.kind, String(c.sent), String(c.waiting), String(c.failed)]), "none in alerts.toml"),
  ];
}

function loginPage() {
  const send = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target), name = form.get("name").trim(), secret = form.get("secret").trim();
    try {
      const body = JSON.stringify({ name, password: secret });
      token = name ? (await api("sessions", { method: "POST", headers: { "Content-Type": "application/json" }, body })).token : secret;
      await api("me");
      sessionStorage.setItem("token", token);
      sessionStorage.setItem("named", name);
      draw();
    } catch (error) {
      leave();
      show(error.message);
    }
  };
  return [h("form", { class: "login", onsubmit: send },
    h("h1", null, "Log in"),
    h("label", null, "Name (leave empty to use a token)", h("input", { name: "name", autocomplete: "username", autofocus: "" })),
    h("label", null, "Password or token", h("input", { name: "secret", type: "password", autocomplete: "current-password", required: "" })),
    h("button", null, "Log in"))];
}

// --- drawing ---------------------------------------------------------------------------------------------------------

const PAGES = { "": fleetPage, devices: devicesPage, device: devicePage, rollouts: rolloutsPage, rollout: rolloutPage, alerts: alertsPage };

function show(text) {
  fault.textContent = text;
  fault.hidden = !text;
}

async function draw() {
  const turn = ++drawn;
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [name, id] = path.split("/");
  document.getElementById("nav").hidden = document.getElementById("out").hidden = !token;
  for (const a of document.querySelectorAll("nav a")) a.className = a.hash === `#/${name}` || a.hash === `#/${name}s` ? "here" : "";
  try {
    const page = token ? PAGES[name] || fleetPage : loginPage;
    const made = await page(id ? decodeURIComponent(id) : "", new URLSearchParams(query || ""));
    const me = token ? await api("me") : null;
    if (turn !== drawn) return; // another page was asked for meanwhile
    document.getElementById("who").textContent = me ? me.name : "";
    main.replaceChildren(...made.filter(Boolean));
    show("");
  } catch (error) {
    if (turn !== drawn) return;
    if (!token) {
      await draw();
      show(error.message);
    } else show(`${error.message}: what is below is not up to date`);
  }
}

const isTyping = () => ["INPUT", "TEXTAREA"].includes((document.activeElement || {}).tagName);
document.getElementById("out").addEventListener("click", async () => {
  // A token that was made elsewhere goes on; a login ends.
  if (sessionStorage.getItem("named")) await api("sessions/current", { method: "DELETE" }).catch(() => null);
  leave();
  draw();
});
window.addEventListener("hashchange", draw);
setInterval(() => { if (token && !document.hidden && !isTyping()) draw(); }, REFRESH_MS);
draw();
