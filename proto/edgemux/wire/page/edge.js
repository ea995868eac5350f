// The agent: what is routed where and why, what it has left to spend, how link, cloud and certificate stand.

import { Chart, SPAN_S, Table, badge, bytes, card, clockTime, el, lasting, meter, millis, num, onAxis, pairs, percent, picture, rate, renewed, score, scrolling, seconds, swatch, text } from "./draw.js";
import { History, sum } from "./history.js";
import { Splits } from "./splits.js";
import { BREAKERS, FALLBACKS, KINDS, READINGS, REFUSALS, STANDINGS, WITHDRAWALS, inOrder, reasonOf, routeName } from "./words.js";

const NOW_S = 10;
const MOST_INPUTS = 12;
const ALL = "";

export class EdgeView {
  constructor(root, say, pick, choice) {
    Object.assign(this, { say, pick, choice, after: 0, history: new History(), inputs: [], before: null, planned: {} });
    this.aside = el("div", { class: "column" });
    const main = el("div", { class: "column" });
    root.append(this.now(), el("div", { class: "columns" }, main, this.aside));
    main.append(this.routes(), this.last(), this.latency());
    this.splits = new Splits();
    this.aside.append(this.clouds(), this.splits.node, this.certificates(), this.levels(), this.budgets(), this.readings());
    choice.onchange = () => this.draw();
  }

  // --- building

  now() {
    const section = card("Right now");
    this.edgeShare = el("p", { class: "big edge num" });
    this.cloudShare = el("p", { class: "big cloud num" });
    this.strip = el("div", { class: "strip", "aria-hidden": "true" });
    this.sentence = el("p");
    this.facts = el("ul", { class: "facts" });
    const side = (number, words) => el("div", {}, number, el("p", { class: "muted small" }, words));
    section.append(
      el("div", { class: "balance" }, side(this.edgeShare, "answered on the device"), side(this.cloudShare, "answered in the cloud")),
      this.strip, this.sentence, this.facts);
    return section;
  }

  routes() {
    const section = card("Where inputs go, and why");
    this.chart = new Chart({ stacked: true, height: 220 });
    this.reasons = new Table(`Answered inputs by reason; “now” is the last ${NOW_S} seconds`, [
      { head: "Reason", row: true, one: true, cell: (row) => ({ key: row.reason, build: () => [row.look ? swatch(row.look) : null, el("code", {}, row.reason)] }) },
      { head: "Answered by", cell: (row) => row.by },
      { head: "What it means", wide: true, bare: true, cell: (row) => row.means },
      { head: "Now, a second", num: true, cell: (row) => rate(row.rate) },
      { head: "Share", num: true, cell: (row) => (row.share === null ? "–" : percent(row.share)) },
      { head: "Since start", num: true, cell: (row) => num(row.total) },
    ], { class: "fold", none: "No input has been answered since the agent started." });
    section.append(this.chart.node, this.reasons.node);
    return section;
  }

  last() {
    const section = card("The last inputs");
    this.inputsNone = "None yet.";
    this.shown = new Table("The newest first. Expected: P(correct) of device / cloud, from the input alone. Score: that of the answer given.", [
      { head: "Input", bare: true, cell: (row) => ({ key: row.number, build: () => (row.picture ? picture(row.picture, `Input answered with ${row.label ?? "nothing"}`) : el("span", { class: "muted" }, "–")) }) },
      { head: "Answer", row: true, cell: (row) => ({ key: row.number, build: () => this.answered(row) }) },
      { head: "Route and reason", bare: true, cell: (row) => ({ key: row.number, build: () => routed(row) }) },
      { head: "Expected", num: true, cell: (row) => `${score(row.device_before)} / ${score(row.cloud_before)}` },
      { head: "Score", num: true, cell: (row) => ({ key: row.number, build: () => [score(row.after), meter(row.after, row.after < 0.5 ? "warn" : "")] }) },
      { head: "Took", num: true, cell: (row) => millis(row.elapsed_ms) },
      { head: "At", num: true, cell: (row) => clockTime(row.time_s) },
    ], { class: "fold inputs", none: "No input has come in since this page was opened, or they are not shown here." });
    section.append(this.shown.node);
    return section;
  }

  answered(row) {
    const parts = [el("span", { class: "label" }, row.label ?? "refused")];
    if (this.several) parts.push(el("span", { class: "muted small" }, ` ${row.model}`));
    if (row.device_label !== null) {
      const words = row.device_label === row.label ? "the device said so too" : `the device said ${row.device_label}`;
      parts.push(el("br"), el("span", { class: "muted small" }, `${words}, ${score(row.device_sure)}`));
    }
    return parts;
  }

  latency() {
    const section = card("How long answers take");
    this.times = new Chart({ write: onAxis, log: true, height: 180 });
    this.timesTable = new Table(`Of the last ${NOW_S} seconds`, [
      { head: "Answered by", row: true, cell: (row) => row.by },
      { head: "Answers", num: true, cell: (row) => num(row.n) },
      { head: "Half within", num: true, cell: (row) => millis(row.p50_ms) },
      { head: "99 % within", num: true, cell: (row) => millis(row.p99_ms) },
    ], { none: `No answers in the last ${NOW_S} seconds.` });
    section.append(this.times.node, this.timesTable.node);
    return section;
  }

  clouds() {
    const section = card("Cloud and link");
    this.cloudBox = el("div");
    section.append(this.cloudBox);
    return section;
  }

  certificates() {
    const section = card("Certificate and drift");
    this.certificateBox = el("div");
    section.append(this.certificateBox);
    return section;
  }

  levels() {
    const section = card("Levels");
    this.levelTable = new Table("The model's level on the device, of each application", [
      { head: "Application", row: true, wide: true, cell: (row) => ({ key: [row.name, row.fallback], build: () => [row.name, row.fallback ? el("span", { class: "bad small" }, ` ${FALLBACKS[row.fallback] || row.fallback}`) : null] }) },
      { head: "Level now", cell: (row) => ({ key: [row.level, row.resident, row.of], build: () => [ladder(row), `${row.level} of ${row.of}`] }) },
      { head: "Planned", num: true, cell: (row) => num(row.planned) },
      { head: "CPU share", num: true, cell: (row) => percent(row.share) },
      { head: "Inputs/s", num: true, cell: (row) => rate(row.inputs_per_second) },
    ], { class: "fold" });
    section.append(this.levelTable.node);
    return section;
  }

  budgets() {
    const section = card("Budgets");
    this.budgetTable = new Table("What is left, and what an offload must gain for it", [
      { head: "Budget", row: true, cell: (row) => row.name },
      { head: "Left", cell: (row) => ({ key: [row.said, row.share.toFixed(2)], build: () => [row.said, meter(row.share, row.share < 0.05 ? "bad" : row.share < 0.2 ? "warn" : "")] }) },
      { head: "Price", num: true, cell: (row) => (row.of === "joules" ? "–" : row.price ? `+${row.price.toFixed(3)}` : "0") },
    ], { none: "No budget is set: offloads, bytes, energy and money are not limited." });
    section.append(this.budgetTable.node);
    return section;
  }

  readings() {
    const section = card("The device");
    this.readingTable = new Table("Readings; what is unknown limits nothing", [
      { head: "Reading", row: true, cell: (row) => row.name },
      { head: "Value", cell: (row) => ({ key: [row.said, row.share === null ? null : row.share.toFixed(2), row.much], build: () => [row.known ? row.said : el("span", { class: "muted" }, "unknown"), row.much ? el("span", { class: "warn small" }, " high") : null, row.share === null ? null : meter(row.share, row.much ? "warn" : "")] }) },
      { head: "Age", num: true, cell: (row) => row.age },
    ]);
    section.append(this.readingTable.node);
    return section;
  }

  // --- what is new

  update(data) {
    this.data = data;
    const totals = {};
    const times = {};
    for (const [name, each] of Object.entries(data.applications)) {
      for (const { route, reason, count } of each.answers) totals[`${name}|${route}|${reason}`] = (totals[`${name}|${route}|${reason}`] || 0) + count;
      for (const [reason, count] of Object.entries(each.refused)) totals[`${name}||${reason}`] = count;
      for (const [route, of] of Object.entries(each.times)) times[`${name}|${route}`] = of;
    }
    this.history.push(data.clock_s, totals, times);
    this.several = Object.keys(data.applications).length > 1;
    this.choose(Object.keys(data.applications));
    for (const input of data.inputs) this.inputs.unshift({ ...input, key: input.number });
    this.inputs.length = Math.min(this.inputs.length, 2 * MOST_INPUTS);
    this.after = this.inputs[0]?.number || 0;
    this.changes(data);
    this.draw();
    this.before = data;
  }

  choose(names) {
    this.pick.hidden = names.length < 2;
    renewed(this.choice, names, () => [el("option", { value: ALL }, "all"), ...names.map((name) => el("option", { value: name }, name))]);
  }

  // Only what somebody must know is said aloud.
  changes(data) {
    const before = this.before;
    if (!before) return;
    const peers = data.device.cloud?.peers || [];
    peers.forEach((peer, at) => {
      const was = before.device.cloud?.peers[at]?.breaker;
      if (was === peer.breaker) return;
      const which = peers.length > 1 ? `Cloud ${at + 1}` : "The cloud";
      // Half open is between two states, and comes and goes every second while a cloud is away.
      if (peer.breaker === "open" && this.told !== `open${at}`) { this.say(`Breaker opened: ${which} fails and is not asked for now.`); this.told = `open${at}`; }
      if (peer.breaker === "closed") { this.say(`Breaker closed: ${which} is asked again.`); this.told = ""; }
    });
    for (const [name, each] of Object.entries(data.applications)) {
      const was = before.applications[name];
      if (!was) continue;
      const { standing, withdrawn_because: why } = each.certificate;
      if (was.certificate.standing !== standing) {
        this.say(`${name}: the certificate is ${STANDINGS[standing]?.[0] || standing}${standing === "withdrawn" && why ? `, because ${WITHDRAWALS[why] || why}` : ""}.`);
      } else if (!was.drift.alarm && each.drift.alarm) this.say(`${name}: drift was found, ${WITHDRAWALS[each.drift.alarm] || each.drift.alarm}.`);
      // A device that is busy is planned anew every second.
      if (was.planned !== each.planned && !(data.clock_s - this.planned[name] < 30)) {
        this.planned[name] = data.clock_s;
        this.say(`${name}: level ${each.planned} is planned instead of ${was.planned}.`, false);
      }
    }
  }

  chosen(totals) {
    const found = {};
    for (const [key, count] of Object.entries(totals)) {
      const [name, route, reason] = key.split("|");
      if (this.choice.value === ALL || this.choice.value === name) found[`${route}|${reason}`] = (found[`${route}|${reason}`] || 0) + count;
    }
    return found;
  }

  draw() {
    if (!this.data) return;
    const pick = (totals) => this.chosen(totals);
    const { counts, over_s } = this.history.lately(NOW_S, pick);
    this.drawNow(counts, over_s);
    this.drawRoutes(counts, over_s, pick);
    this.shown.update(this.inputs.filter((row) => this.choice.value === ALL || row.model === this.choice.value).slice(0, MOST_INPUTS));
    this.drawTimes();
    this.drawClouds();
    this.splits.draw(Object.entries(this.data.applications), this.several);
    this.drawCertificates();
    const names = Object.entries(this.data.applications);
    this.levelTable.update(names.map(([name, each]) => ({ ...each, key: name, name, of: each.levels.length })));
    this.drawBudgets();
    this.drawReadings();
  }

  drawNow(counts, over_s) {
    const answered = sum(counts, (key) => !key.startsWith("|"));
    const there = sum(counts, (key) => key.startsWith("cloud|") || key.startsWith("split|"));
    text(this.edgeShare, answered ? percent((answered - there) / answered) : "–");
    text(this.cloudShare, answered ? percent(there / answered) : "–");
    const reasons = Object.entries(counts).filter(([key, count]) => count && !key.startsWith("|")).sort(([a], [b]) => inOrder(a.split("|")[1], b.split("|")[1]));
    const segments = new Map([...this.strip.children].map((segment) => [segment.dataset.key, segment]));
    for (const [key, count] of reasons) {
      const segment = segments.get(key) || el("span", { "data-key": key });
      const look = reasonOf(...key.split("|"));
      segment.className = `p-${look.pattern}`;
      segment.style.setProperty("--tint", `var(--c-${look.tint})`);
      segment.style.flex = `${count} 1 0`;
      segments.delete(key);
      this.strip.append(segment);
    }
    for (const segment of segments.values()) segment.remove();
    const names = reasons.sort((a, b) => b[1] - a[1]).slice(0, 2).map(([key, count]) => `${key.split("|")[1]} ${percent(count / answered)}`);
    text(this.sentence, answered
      ? `${rate(answered / over_s)} inputs a second over the last ${Math.round(over_s)} seconds. Mostly: ${names.join(", ")}.`
      : over_s ? `No input was answered in the last ${Math.round(over_s)} seconds.` : "Counting.");
    this.drawFacts();
  }

  drawFacts() {
    const { device, applications } = this.data;
    const items = [];
    const add = (mood, name, said) => items.push([mood, name, said]);
    if (device.cloud === null) add("", "Cloud", "none configured");
    else {
      const [word, mood] = BREAKERS[device.cloud.breaker] || [device.cloud.breaker, ""];
      add(mood, "Breaker", word);
      add("", "Link", device.cloud.rtt_seconds === null ? "not measured lately" : `${seconds(device.cloud.rtt_seconds)} there and back`);
    }
    for (const [name, each] of Object.entries(applications)) {
      const prefix = this.several ? `${name}: ` : "";
      const [word, mood] = STANDINGS[each.certificate.standing] || [each.certificate.standing, ""];
      add(mood, `${prefix}certificate`, word);
      add("", `${prefix}level`, `${each.level} of ${each.levels.length}`);
      if (each.drift.alarm) add("bad", `${prefix}drift`, "found");
      if (each.fallback) add("bad", `${prefix}bundle`, FALLBACKS[each.fallback] || each.fallback);
    }
    renewed(this.facts, items, () => items.map(([mood, name, said]) => el("li", {},
      el("i", { class: mood, "aria-hidden": "true" }, { edge: "✓", warn: "!", bad: "✕" }[mood] || "·"), `${name} `, el("b", { class: mood }, said))));
  }

  drawRoutes(counts, over_s, pick) {
    const totals = pick(this.history.samples.at(-1).totals);
    const answered = sum(counts, (key) => !key.startsWith("|"));
    const rows = Object.keys(totals).filter((key) => totals[key]).map((key) => {
      const [route, reason] = key.split("|");
      const look = route ? reasonOf(route, reason) : null;
      const per_s = over_s ? (counts[key] || 0) / over_s : 0;
      return { key, reason, look, by: route ? routeName(route) : "nobody, refused", means: look ? look.means : REFUSALS[reason] || "", rate: per_s, share: route && answered ? (counts[key] || 0) / answered : null, total: totals[key] };
    });
    rows.sort((a, b) => Number(!a.look) - Number(!b.look) || inOrder(a.reason, b.reason));
    this.reasons.update(rows);
    const keys = rows.filter((row) => row.look).map((row) => ({ key: row.key, name: `${row.reason} (${row.by})`, ...row.look }));
    const points = this.history.rates(pick);
    const most = points.reduce((top, { values }) => Math.max(top, values ? sum(values, (key) => !key.startsWith("|")) : 0), 0);
    this.chart.update(keys, points, this.data.clock_s, `Inputs answered a second, by reason, for up to ${SPAN_S / 60} minutes: at most ${rate(most)}. The table below has the numbers.`);
  }

  drawTimes() {
    const merged = (times) => {
      const found = {};
      for (const [key, of] of Object.entries(times)) {
        const [name, route] = key.split("|");
        if (this.choice.value !== ALL && this.choice.value !== name) continue;
        // Of several applications the slowest: their quantiles do not add up.
        const mine = found[route] || { n: 0, p50_ms: 0, p99_ms: 0 };
        found[route] = { n: mine.n + of.n, p50_ms: Math.max(mine.p50_ms, of.p50_ms), p99_ms: Math.max(mine.p99_ms, of.p99_ms) };
      }
      return found;
    };
    const last = merged(this.history.samples.at(-1).more);
    const all = this.choice.value === ALL && this.several;
    this.timesTable.update(["edge", "cloud", "split"].filter((route) => last[route]).map((route) => ({ key: route, by: routeName(route) + (all ? ", the slowest application" : ""), ...last[route] })));
    const keys = [];
    for (const [route, tint] of [["edge", "teal"], ["cloud", "violet"], ...(last.split ? [["split", "blue"]] : [])]) {
      keys.push({ key: `${route}50`, name: `${routeName(route)}, half`, tint }, { key: `${route}99`, name: `${routeName(route)}, 99 %`, tint, dash: [6, 4] });
    }
    const points = this.history.values((more) => {
      const found = {};
      for (const [route, of] of Object.entries(merged(more))) Object.assign(found, { [`${route}50`]: of.p50_ms, [`${route}99`]: of.p99_ms });
      return found;
    });
    const said = Object.entries(last).map(([route, of]) => `${routeName(route)} ${millis(of.p50_ms)} and ${millis(of.p99_ms)}`);
    this.times.update(keys, points, this.data.clock_s, `Time from arrival to answer, within which half and 99 % of the last ${NOW_S} seconds were answered${said.length ? `: ${said.join("; ")}` : ""}.`);
  }

  drawClouds() {
    const cloud = this.data.device.cloud;
    if (cloud === null) {
      renewed(this.cloudBox, "none", () => el("p", { class: "muted" }, "No cloud is configured: the device answers everything."));
      return;
    }
    const rows = [
      ["Breaker", (peer) => badge(...(BREAKERS[peer.breaker] || [peer.breaker, ""]).slice(0, 2))],
      ["Round trip", (peer) => seconds(peer.rtt_seconds)],
      ["Bandwidth", (peer) => (peer.bytes_per_second === null ? "unknown" : `${bytes(peer.bytes_per_second)}/s`)],
      ["Lost calls", (peer) => percent(peer.lost_share)],
      ["Queue there", (peer) => seconds(peer.queue_seconds)],
      ["Time there", (peer) => seconds(peer.server_seconds)],
      ["Inputs are sent as", (peer) => peer.payload],
      ["Encryption", (peer) => (peer.security.tls ? "TLS" : "none") + (peer.security.token ? ", with a token" : "")],
      ["Not asked because", (peer) => peer.unserved || (peer.refuses_for_seconds > 0 ? `it has refused, for ${millis(peer.refuses_for_seconds * 1e3)}` : peer.breaker === "open" ? "the breaker is open" : "–")],
    ];
    const said = cloud.peers.map((peer) => rows.map(([, cell]) => { const value = cell(peer); return value instanceof Node ? value.textContent : value; }));
    renewed(this.cloudBox, said, () => {
      const heads = cloud.peers.map((_, at) => el("th", { scope: "col" }, cloud.peers.length > 1 ? `Cloud ${at + 1}` : "Now"));
      const body = rows.map(([name, cell]) => el("tr", {}, el("th", { scope: "row" }, name), ...cloud.peers.map((peer) => el("td", {}, cell(peer)))));
      const table = el("table", {}, el("caption", { class: "hidden" }, "The clouds and the links to them"), el("thead", { class: cloud.peers.length > 1 ? "" : "hidden" }, el("tr", {}, el("th", { scope: "col" }, "Measure"), ...heads)), el("tbody", {}, ...body));
      return cloud.peers.length > 2 ? scrolling(table, "Clouds") : table;
    });
  }

  drawCertificates() {
    const each = Object.entries(this.data.applications).map(([name, { certificate, drift }]) => ({ name, certificate, drift }));
    renewed(this.certificateBox, each, () => each.flatMap(({ name, certificate, drift }) => [
      this.several ? el("h3", {}, name) : null, ...certified(certificate), ...drifted(drift)]).filter(Boolean));
  }

  drawBudgets() {
    const write = { offloads: (value) => num(value), bytes, joules: (value) => `${num(value)} J`, money: (value) => num(value) };
    this.budgetTable.update(this.data.device.held.map(({ of, per, left, holds, price }) => ({
      key: `${of}|${per}`, of, price, name: per === "rate" ? `${KINDS[of]}, rate` : `${KINDS[of]}, ${per === "hour" ? "an" : "a"} ${per}`,
      share: holds > 0 ? left / holds : 0, said: `${write[of](left)} of ${write[of](holds)}`,
    })));
  }

  drawReadings() {
    const { readings, reading_ages_seconds: ages, loop_lag_seconds: lag } = this.data.device;
    const write = { share: percent, cores: (value) => `${num(value)} cores`, bytes, celsius: (value) => `${value.toFixed(1)} °C`, yes: (value) => (value ? "yes" : "no") };
    const rows = Object.entries(READINGS).map(([key, [name, how, sensor, much]]) => {
      const value = readings[key];
      const known = value !== null && value !== undefined;
      const share = !known ? null : how === "share" ? value : how === "celsius" ? value / 100 : null;
      return { key, name, known, said: known ? write[how](value) : "", share, much: known && much !== undefined && value >= much, age: ages[sensor] === null || ages[sensor] === undefined ? "never" : `${ages[sensor].toFixed(1)} s` };
    });
    rows.unshift({ key: "cores", name: "CPU cores", known: readings.cpu_count !== null, said: num(readings.cpu_count), share: null, age: "" });
    rows.push({ key: "lag", name: "Event loop, late by", known: true, said: seconds(lag), share: null, much: lag > 0.1, age: "" });
    this.readingTable.update(rows);
  }

  retint() {
    this.chart.begin();
    this.times.begin();
  }
}

function routed(row) {
  if (!row.route) return [badge("refused", "bad"), el("br"), el("code", {}, row.reason)];
  const look = reasonOf(row.route, row.reason);
  const variant = row.variant === routeName(row.route) ? "" : ` ${row.variant}`;
  const where = el("span", { class: "one" }, swatch(look), el("b", { class: row.route }, routeName(row.route)), variant);
  return [where, el("br"), el("code", {}, row.reason), row.degraded ? el("span", { class: "warn small" }, " second best") : null];
}

function ladder({ level, resident, of }) {
  const steps = Array.from({ length: of }, (_, at) => {
    const step = el("span", { class: at < level ? "on" : at < resident ? "" : "off" });
    step.style.height = `${0.45 + (0.65 * (at + 1)) / of}rem`;
    return step;
  });
  return el("span", { class: "ladder", "aria-hidden": "true" }, ...steps);
}

const day = (date) => (date ? new Date(date).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: date.length > 10 ? "short" : undefined }) : "unknown");

function certified(certificate) {
  const [word, mood, words] = STANDINGS[certificate.standing] || [certificate.standing, "", ""];
  if (certificate.standing === "none") return [el("p", { class: "muted" }, words)];
  const alpha = Math.max(...certificate.alpha);
  const { audits } = certificate;
  const because = certificate.withdrawn_because;
  const made = Object.entries(certificate.made_here);
  return [
    el("p", {}, badge(word, mood), ` At most ${percent(alpha)} of inputs are kept on the device and differ from the cloud's answer, with ${percent(1 - certificate.delta)} confidence.`),
    because ? el("p", { class: "bad" }, `Withdrawn ${day(certificate.withdrawn_at)}: ${WITHDRAWALS[because] || because}.`) : null,
    words ? el("p", { class: "muted" }, words) : null,
    pairs([
      ["Bound now", percent(certificate.disagreement_upper_bound)],
      ["Made", `${day(certificate.date)}, from ${num(certificate.n)} inputs`],
      ["Audits", `${num(audits.drawn)} drawn, ${num(audits.kept_and_differ)} kept and different`],
      ["Share different", audits.drawn ? `${percent(audits.risk_interval[0])} to ${percent(audits.risk_interval[1])}` : "nothing is known yet"],
      ...made.map(([level, anew]) => [`Anew, ${level}`, `${percent(anew.alpha)}, from ${num(anew.n)} inputs, ${day(anew.made_at)}`]),
    ]),
  ].filter(Boolean);
}

function drifted(drift) {
  if (!drift.watched) return [el("p", { class: "muted" }, "Nobody watches for drift.")];
  const evidence = Math.min(1, drift.evidence);
  const words = drift.alarm ? `Drift since ${day(drift.alarm_at)}: ${WITHDRAWALS[drift.alarm] || drift.alarm}.` : drift.learning_what_is_usual ? "No drift; what is usual is still being learned." : "No drift.";
  return [
    el("p", { class: drift.alarm ? "bad" : "" }, words, ` Evidence ${percent(evidence)} of an alarm.`, meter(evidence, evidence > 0.5 ? "warn" : "")),
    pairs([["Decides", drift.scores === "learned_gates" ? "the learned gates" : "calibrated confidence"], ["Usual is from", drift.reference], ["False alarms", `one in ${num(drift.inputs_to_a_false_alarm)} inputs or fewer`]]),
  ];
}
