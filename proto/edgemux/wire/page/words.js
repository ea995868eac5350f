// What the words of the server mean, and how each is drawn: colour and pattern, so that neither is needed alone.

const edge = (tint, pattern, means) => ({ route: "edge", tint, pattern, means });
const cloud = (tint, pattern, means) => ({ route: "cloud", tint, pattern, means });

// From below in the charts: the device, the device for want of better, the cloud.
export const REASONS = {
  confident: edge("teal", "solid", "The device's answer was good enough for its price."),
  no_cloud: edge("slate", "solid", "No cloud is configured."),
  device_busy: edge("blue", "rise", "The device could not afford the level that was wanted."),
  budget: edge("amber", "dots", "A budget is spent, or kept for inputs that gain more."),
  link: edge("orange", "level", "The cloud could not have answered in the time left."),
  breaker: edge("red", "rise", "The cloud failed too often to be asked now."),
  cloud_timeout: edge("rose", "level", "The cloud did not answer in time."),
  cloud_unreachable: edge("rose", "fall", "Nobody answered at the cloud's address."),
  cloud_tls: edge("rose", "dots", "No connection that both sides trust."),
  cloud_denied: edge("rose", "upright", "The cloud does not know our token, or does not let us ask."),
  cloud_overloaded: edge("rose", "rise", "The cloud refused: it has too much to do."),
  cloud_bad_answer: edge("rose", "solid", "The cloud's answer made no sense."),
  cloud_incompatible: edge("red", "dots", "The cloud lacks the model, or has another one."),
  offloaded: cloud("violet", "solid", "Sent first: the gain was plain from the input alone."),
  deferred: cloud("orchid", "fall", "The device had answered, and was not sure enough."),
  device_failed: cloud("red", "fall", "The device's own model failed."),
  no_model: cloud("red", "upright", "No model on this device can be trusted."),
};
export const REFUSALS = {
  input: "Not what the model takes.",
  unknown_model: "No such model here.",
  too_large: "Too large, or too many rows.",
  expired: "Its deadline had passed.",
  overloaded: "It would only have waited past its deadline.",
  failed: "Every route failed.",
  cancelled: "Its client went away.",
  no_route: "Every route failed or is too expensive.",
};
const ROUTES = { edge: "device", cloud: "cloud", split: "split" };
export const routeName = (route) => ROUTES[route] || route;
const OTHER = { tint: "slate", pattern: "dots", means: "" };
// What a head makes of the input was sent, not the input.
const SPLIT = {
  offloaded: { tint: "violet", pattern: "upright", means: "Begun here and ended in the cloud: the gain was plain from the input alone." },
  deferred: { tint: "orchid", pattern: "upright", means: "Ended in the cloud from what the device had begun: it was not sure enough." },
};
export const reasonOf = (route, reason) => ({ ...((route === "split" && SPLIT[reason]) || REASONS[reason] || OTHER), route });
const ORDER = Object.keys(REASONS);
export const inOrder = (a, b) => (ORDER.indexOf(a) + 99) % 99 - (ORDER.indexOf(b) + 99) % 99;

// Why a split is left alone.
export const ALONE = {
  off: "left alone: split.use is off",
  loses_too_much: "left alone: it may lose more accuracy than is allowed",
  head_wrong: "left alone: its head does not compute here what it should",
  passes_input_on: "left alone: its head sends the input itself",
  head_failed: "left alone: its head has just failed",
  memory: "left alone: no memory for its head",
  device_busy: "left alone: its level is not loaded",
  cloud_incompatible: "left alone: the cloud lacks its tail, or has another one",
  cloud_denied: "left alone: the cloud does not let us ask for its tail",
  tail_failing: "left alone: its tail fails; it is tried now and then",
};

export const STANDINGS = {
  none: ["none", "", "The bundle has no certificate."],
  unwatched: ["not watched", "warn", "As in the bundle; nobody looks whether it still holds."],
  in_force: ["in force", "edge", ""],
  withdrawn: ["withdrawn", "bad", ""],
  re_certified: ["made anew", "edge", "Withdrawn, and replaced by one made on this device."],
};
export const WITHDRAWALS = {
  audits: "kept answers differ from the cloud's more often than certified",
  score_shift: "the scores of answers are not what they were",
  input_shift: "the inputs are not what they were",
  other_model: "the cloud answers with another model than the bundle's",
  watch_failed: "the watch itself has failed; see the log",
};
export const BREAKERS = {
  closed: ["closed", "edge", "the cloud is asked"],
  half_open: ["half open", "warn", "one call finds out whether the cloud is back"],
  open: ["open", "bad", "the cloud is not asked for now"],
};
export const FALLBACKS = {
  previous_bundle: "the previous bundle is served",
  no_device_model: "only the cloud answers",
};

// Readings of the device: name, how it is written, the sensor that says it, from where on it is much, whether it is a share.
export const READINGS = {
  cpu_others: ["CPU, others", "share", "cpu", 0.85],
  cpu_pressure: ["CPU pressure", "share", "cpu", 0.5],
  cpu_quota: ["CPU quota", "cores", "cpu"],
  cpu_speed: ["CPU clock, of its highest", "share", "heat"],
  memory_available: ["Memory available", "bytes", "memory"],
  memory_pressure: ["Memory pressure", "share", "memory", 0.06],
  io_pressure: ["Storage pressure", "share", "memory", 0.5],
  temperature_c: ["Temperature", "celsius", "heat", 70],
  throttled: ["Throttled", "yes", "heat"],
  battery: ["Battery", "share", "battery"],
  discharging: ["On battery", "yes", "battery"],
};
export const KINDS = { offloads: "Offloads", bytes: "Bytes to the cloud", joules: "Energy", money: "Money" };
export const OUTCOMES = {
  answered: { tint: "teal", pattern: "solid", means: "Answered." },
  refused: { tint: "amber", pattern: "rise", means: "Refused by choice: the queue is full or too long, or the server stops." },
  expired: { tint: "orange", pattern: "level", means: "The deadline passed first." },
  invalid: { tint: "slate", pattern: "dots", means: "It can never be answered as it stands." },
  cancelled: { tint: "blue", pattern: "upright", means: "The client went away." },
  failed: { tint: "red", pattern: "fall", means: "The model or the server failed." },
};
export const REFUSED = {
  full: "The queue is at its bound.",
  wait: "It would have waited past its deadline.",
  expired: "Its deadline had passed when it came.",
  draining: "The server is stopping.",
};
