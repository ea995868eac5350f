// Counters that only grow, remembered for some minutes: what happened each second, and over the last few.

const SPAN_S = 190;
// A page that was not looked at does not know what happened meanwhile, only how much.
const GAP_S = 5;
// Inputs that come by chance make a curve of single seconds that nobody can read.
const SMOOTH = 3;

export class History {
  constructor() { this.samples = []; }

  // t: seconds of the server's clock; totals: {key: count}; more: values of that moment, {key: number}.
  push(t, totals, more = {}) {
    const last = this.samples.at(-1);
    if (last && t <= last.t) return;
    this.samples.push({ t, totals, more, gap: !last || t - last.t > GAP_S });
    while (this.samples[0].t < t - SPAN_S) this.samples.shift();
  }

  // Per second, over SMOOTH seconds each, as {t, values: {key: number}}; null for values where nothing is known.
  rates(pick = (totals) => totals) {
    const picked = this.samples.map((sample) => pick(sample.totals));
    return this.samples.map((sample, at) => {
      if (sample.gap) return { t: sample.t, values: null };
      let from = at - 1;
      while (from > at - SMOOTH && !this.samples[from].gap) from -= 1;
      return { t: sample.t, values: grown(picked[from], picked[at], sample.t - this.samples[from].t) };
    });
  }

  values(pick) {
    return this.samples.map((sample) => ({ t: sample.t, values: sample.gap ? null : pick(sample.more) }));
  }

  // Growth over the last so many seconds: {counts: {key: number}, over_s}.
  lately(span_s, pick = (totals) => totals) {
    const last = this.samples.at(-1);
    if (!last) return { counts: {}, over_s: 0 };
    let first = this.samples.length - 1;
    while (first > 0 && !this.samples[first].gap && this.samples[first].t > last.t - span_s) first -= 1;
    const over_s = last.t - this.samples[first].t;
    return { counts: grown(pick(this.samples[first].totals), pick(last.totals), 1), over_s };
  }
}

function grown(before, after, over) {
  const found = {};
  for (const [key, count] of Object.entries(after)) found[key] = Math.max(0, count - (before[key] || 0)) / over;
  return found;
}

export const sum = (counts, wanted = () => true) =>
  Object.entries(counts).reduce((total, [key, count]) => total + (wanted(key) ? count : 0), 0);
