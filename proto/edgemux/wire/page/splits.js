// Splits: in which way inputs are sent to the cloud now, and which splits are left alone, and why.

import { Table, badge, bytes, card, el, seconds, text } from "./draw.js";
import { ALONE } from "./words.js";

const WHOLE = "the whole input";

export class Splits {
  constructor() {
    this.node = card("Ways to the cloud");
    this.words = el("p", { class: "muted" });
    this.table = new Table("A split runs the head of a model here and its tail in the cloud", [
      { head: "Way", row: true, wide: true, cell: (row) => ({ key: row.key, build: () => [row.name, row.of ? el("span", { class: "muted small" }, ` ${row.of}`) : null] }) },
      { head: "Now", wide: true, cell: (row) => ({ key: row.state, build: () => [state(row.state)] }) },
      { head: "Sends", num: true, cell: (row) => bytes(row.bytes) },
      { head: "Head takes", num: true, cell: (row) => seconds(row.head_seconds) },
    ], { class: "fold" });
    this.node.append(this.words, this.table.node);
    this.node.hidden = true;
  }

  // applications: [name, what is told of it]; several: whether there are more than one.
  draw(applications, several) {
    const told = applications.filter(([, each]) => each.split);
    this.node.hidden = told.length === 0;
    const rows = told.flatMap(([name, { split }]) => waysOf(split).map((row) => ({ ...row, key: `${name}|${row.name}`, of: several ? name : "" })));
    this.table.update(rows);
    this.table.node.hidden = rows.length === 0;
    const private_ = told.filter(([, { split }]) => split.never_send_raw);
    const alone = private_.some(([, { split }]) => split.answers_alone);
    text(this.words, !private_.length ? "" : alone
      ? "Whole inputs must not leave this device, and no split may be used: it answers alone."
      : "Whole inputs never leave this device.");
    this.words.hidden = !private_.length;
    this.words.className = alone ? "bad" : "muted";
  }
}

function waysOf(split) {
  const alone = split.left_alone || {};
  const routes = split.routes || [];
  const chosen = split.chosen ?? (split.never_send_raw ? null : WHOLE);
  const rows = routes.map((route) => ({ ...route, state: alone[route.name] || (route.name === chosen ? "chosen" : "") }));
  const others = Object.keys(alone).filter((name) => !routes.some((route) => route.name === name));
  rows.push(...others.map((name) => ({ name, state: alone[name], bytes: null, head_seconds: null })));
  if (routes.length && !split.never_send_raw) rows.unshift({ name: WHOLE, state: chosen === WHOLE ? "chosen" : "", bytes: null, head_seconds: null });
  return rows;
}

function state(word) {
  if (word === "chosen") return badge("chosen", "edge");
  return word ? el("span", { class: "warn" }, ALONE[word] || word) : el("span", { class: "muted" }, "could be chosen");
}
