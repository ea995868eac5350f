// The cloud server: its models, what they have to do, how full batches are, what is refused and why.

import { Chart, SPAN_S, Table, card, el, num, onAxis, percent, rate, renewed, seconds, swatch, text } from "./draw.js";
import { History, sum } from "./history.js";
import { OUTCOMES, REFUSED } from "./words.js";

const NOW_S = 10;

export class CloudView {
  constructor(root, say) {
    Object.assign(this, { say, after: 0, history: new History(), before: null });
    this.aside = el("div", { class: "column" });
    const main = el("div", { class: "column" });
    root.append(this.now(), el("div", { class: "columns" }, main, this.aside));
    main.append(this.requests(), this.models(), this.times());
    this.aside.append(this.sizes(), this.refusals());
  }

  now() {
    const section = card("Right now");
    this.big = el("p", { class: "big cloud num" });
    this.full = el("p", { class: "big num" });
    this.sentence = el("p");
    this.facts = el("ul", { class: "facts" });
    const side = (number, words) => el("div", {}, number, el("p", { class: "muted small" }, words));
    section.append(el("div", { class: "balance" }, side(this.big, "requests answered a second"), side(this.full, "inputs in a batch, on average")), this.sentence, this.facts);
    return section;
  }

  requests() {
    const section = card("Requests");
    this.chart = new Chart({ stacked: true, height: 220 });
    this.outcomes = new Table(`By outcome; “now” is the last ${NOW_S} seconds`, [
      { head: "Outcome", row: true, cell: (row) => ({ key: row.key, build: () => [swatch(OUTCOMES[row.key]), el("code", {}, row.key)] }) },
      { head: "What it means", wide: true, bare: true, cell: (row) => OUTCOMES[row.key].means },
      { head: "Now, a second", num: true, cell: (row) => rate(row.rate) },
      { head: "Since start", num: true, cell: (row) => num(row.total) },
    ], { class: "fold" });
    section.append(this.chart.node, this.outcomes.node);
    return section;
  }

  models() {
    const section = card("Models");
    this.modelTable = new Table(`Each version that is served; times are of the last ${NOW_S} seconds, within which half and 99 % were done`, [
      { head: "Model", row: true, wide: true, cell: (row) => ({ key: [row.name, row.version, row.away], build: () => [`${row.name} `, el("span", { class: "muted" }, `version ${row.version}`), row.away ? el("span", { class: "bad" }, ` away: ${row.away}`) : null] }) },
      { head: "Requests/s", num: true, cell: (row) => rate(row.asked) },
      { head: "Inputs/s", num: true, cell: (row) => rate(row.rows_s) },
      { head: "In a batch", num: true, cell: (row) => here(num, row.mean) },
      { head: "Inside", num: true, cell: (row) => num(row.inflight) },
      { head: "Queue, half", num: true, cell: (row) => here(seconds, row.queue50) },
      { head: "Queue, 99 %", num: true, cell: (row) => here(seconds, row.queue99) },
      { head: "Model, half", num: true, cell: (row) => here(seconds, row.compute50) },
      { head: "Model, 99 %", num: true, cell: (row) => here(seconds, row.compute99) },
      { head: "Runs in", cell: (row) => row.worker || "–" },
    ], { class: "fold", none: "No model is served." });
    this.absent = el("div");
    section.append(this.modelTable.node, this.absent);
    return section;
  }

  times() {
    const section = card("Queue and model time");
    this.timeChart = new Chart({ write: onAxis, log: true, height: 180 });
    section.append(this.timeChart.node);
    return section;
  }

  sizes() {
    const section = card("Batch sizes");
    this.sizeTable = new Table(`Batches of the last ${NOW_S} seconds by inputs`, [
      { head: "Inputs", row: true, cell: (row) => row.name },
      { head: "Share of batches", cell: (row) => ({ key: row.share.toFixed(3), build: () => [percent(row.share), bar(row.share)] }) },
      { head: "Batches", num: true, cell: (row) => num(Math.round(row.count)) },
    ], { none: `No batch has run in the last ${NOW_S} seconds.` });
    section.append(this.sizeTable.node);
    return section;
  }

  refusals() {
    const section = card("Refusals");
    this.refusedTable = new Table("Requests refused by choice, by reason", [
      { head: "Reason", row: true, cell: (row) => ({ key: row.key, build: () => [el("code", {}, row.key), el("br"), el("span", { class: "muted small" }, REFUSED[row.key] || "")] }) },
      { head: "Now, a second", num: true, cell: (row) => rate(row.rate) },
      { head: "Since start", num: true, cell: (row) => num(row.total) },
    ]);
    section.append(this.refusedTable.node);
    return section;
  }

  update(data) {
    this.data = data;
    const totals = {};
    const put = (key, value) => { totals[key] = (totals[key] || 0) + value; };
    data.models.forEach((model) => {
      const which = `${model.name}/${model.version}`;
      for (const [outcome, count] of Object.entries(model.requests)) { put(`request|${outcome}`, count); put(`${which}|asked`, count); }
      for (const [reason, count] of Object.entries(model.refused)) put(`refused|${reason}`, count);
      put(`${which}|rows`, model.rows);
      put(`${which}|batches`, model.batches);
      for (const kind of ["batch_rows", "queue_seconds", "compute_seconds"]) {
        model[kind].counts.forEach((count, at) => { put(`${kind}|${at}`, count); put(`${which}|${kind}|${at}`, count); });
      }
    });
    this.history.push(data.clock_s, totals);
    const { counts } = this.history.lately(NOW_S);
    const sample = this.history.samples.at(-1);
    for (const kind of ["queue_seconds", "compute_seconds"]) {
      for (const share of [50, 99]) sample.more[`${kind}${share}`] = this.quantile(kind, `${kind}|`, share / 100, counts) * 1e3 || null;
    }
    this.changes(data);
    this.draw();
    this.before = data;
  }

  changes(data) {
    if (!this.before) return;
    const listed = (from) => from.models.map((model) => `${model.name} version ${model.version}${model.away ? ", away" : ""}`);
    const [was, is] = [listed(this.before), listed(data)];
    for (const name of is.filter((each) => !was.includes(each))) this.say(`Now served: ${name}.`);
    for (const name of was.filter((each) => !is.includes(each))) this.say(`Not served any more: ${name}.`);
  }

  // The value within which a share of what was counted lately lies; NaN where there was nothing.
  quantile(kind, prefix, share, counts) {
    const bounds = this.data.models[0]?.[kind].bounds || [];
    const all = [...bounds, Infinity].map((_, at) => counts[`${prefix}${at}`] || 0);
    const total = all.reduce((a, b) => a + b, 0);
    if (!total) return NaN;
    let below = 0;
    for (let at = 0; at < all.length; at++) {
      if (below + all[at] >= share * total && all[at]) {
        const low = at ? bounds[at - 1] : 0;
        const high = at < bounds.length ? bounds[at] : bounds.at(-1);
        return low + ((share * total - below) / all[at]) * (high - low);
      }
      below += all[at];
    }
    return bounds.at(-1);
  }

  draw() {
    const { data } = this;
    if (!data) return;
    const { counts, over_s } = this.history.lately(NOW_S);
    const per_s = (key) => (over_s ? (counts[key] || 0) / over_s : 0);
    const totals = this.history.samples.at(-1).totals;
    const batches = sum(counts, (key) => key.endsWith("|batches"));
    const rows = sum(counts, (key) => key.endsWith("|rows"));
    text(this.big, rate(per_s("request|answered")));
    text(this.full, batches ? num(rows / batches) : "–");
    this.drawFacts(per_s);
    const seen = Object.keys(OUTCOMES).filter((outcome) => outcome === "answered" || totals[`request|${outcome}`]);
    this.outcomes.update(seen.map((key) => ({ key, rate: per_s(`request|${key}`), total: totals[`request|${key}`] || 0 })));
    const points = this.history.rates();
    const most = points.reduce((top, { values }) => Math.max(top, values ? sum(values, (key) => key.startsWith("request|")) : 0), 0);
    this.chart.update(seen.map((key) => ({ key: `request|${key}`, name: key, ...OUTCOMES[key] })), points, data.clock_s, `Requests a second, by outcome, for up to ${SPAN_S / 60} minutes: at most ${rate(most)}. The table below has the numbers.`);
    this.drawModels(counts, per_s);
    this.drawTimes();
    const bounds = data.models[0]?.batch_rows.bounds || [];
    const sizes = [...bounds, null].map((bound, at) => ({ key: String(at), name: named(bounds, at), count: counts[`batch_rows|${at}`] || 0 }));
    this.sizeTable.update(sizes.filter((row) => row.count).map((row) => ({ ...row, share: row.count / batches })));
    this.refusedTable.update(Object.keys(REFUSED).map((key) => ({ key, rate: per_s(`refused|${key}`), total: totals[`refused|${key}`] || 0 })));
  }

  drawFacts(per_s) {
    const { models, absent } = this.data;
    const inside = models.reduce((all, model) => all + model.inflight, 0);
    const refused = per_s("request|refused") + per_s("request|expired");
    text(this.sentence, refused ? `${rate(refused)} a second are refused or come too late.` : "Nothing is refused.");
    const items = [["", "Models", `${models.length} served`], ["", "Inside", num(inside)]];
    const waiting = models.reduce((all, model) => all + (model.queue?.rows || 0), 0);
    items.push(["", "Waiting", `${num(waiting)} inputs`]);
    if (absent.length) items.push(["bad", "Not served", num(absent.length)]);
    renewed(this.facts, items, () => items.map(([mood, name, said]) => el("li", {}, `${name} `, el("b", { class: mood }, said))));
    renewed(this.absent, absent, () => absent.map(({ name, version, why }) => el("p", { class: "bad" }, `✕ ${name} version ${version} is not served: ${why}`)));
  }

  drawModels(counts, per_s) {
    this.modelTable.update(this.data.models.map((model) => {
      const which = `${model.name}/${model.version}`;
      const batches = counts[`${which}|batches`] || 0;
      const at = (kind, share) => this.quantile(kind, `${which}|${kind}|`, share, counts);
      return {
        ...model, key: which, asked: per_s(`${which}|asked`), rows_s: per_s(`${which}|rows`), mean: batches ? counts[`${which}|rows`] / batches : NaN,
        queue50: at("queue_seconds", 0.5), queue99: at("queue_seconds", 0.99), compute50: at("compute_seconds", 0.5), compute99: at("compute_seconds", 0.99),
      };
    }));
  }

  drawTimes() {
    const keys = [
      { key: "queue_seconds50", name: "queue, half", tint: "amber" }, { key: "queue_seconds99", name: "queue, 99 %", tint: "amber", dash: [6, 4] },
      { key: "compute_seconds50", name: "model, half", tint: "violet" }, { key: "compute_seconds99", name: "model, 99 %", tint: "violet", dash: [6, 4] },
    ];
    const { more } = this.history.samples.at(-1);
    const said = more.compute_seconds99 ? ` Now: the queue ${seconds(more.queue_seconds99 / 1e3)}, the model ${seconds(more.compute_seconds99 / 1e3)} for 99 %.` : "";
    this.timeChart.update(keys, this.history.values((values) => values), this.data.clock_s, `Wait in the queue and time of a batch in the model, from a histogram: within which half and 99 % of the last ${NOW_S} seconds lie.${said}`);
  }

  retint() {
    this.chart.begin();
    this.timeChart.begin();
  }
}

// Where nothing has run lately there is nothing to say.
const here = (write, value) => (Number.isFinite(value) ? write(value) : "–");

const named = (bounds, at) => {
  if (at === bounds.length) return `more than ${bounds.at(-1)}`;
  const low = at ? bounds[at - 1] + 1 : 1;
  return low === bounds[at] ? String(low) : `${low} to ${bounds[at]}`;
};

function bar(share) {
  const inner = el("span");
  inner.style.width = `${share * 100}%`;
  return el("span", { class: "meter", "aria-hidden": "true" }, inner);
}
