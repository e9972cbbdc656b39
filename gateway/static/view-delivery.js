/** Draws what concerns the connection: state, latency figures and sparkline, the last verdict, the log of events. */

import { byId, el, number, reconcile, setData, setText, svg } from "./dom.js";
import { roundReason, words, worstVerdict } from "./model.js";

const WIDTH = 240;
const HEIGHT = 56;
const SLOTS = 120;
const SCALES_MS = [10, 20, 50, 100, 200, 300, 500, 1_000, 2_000, 5_000, 10_000, 60_000];
const TRANSPORTS = { sse: "SSE", ws: "WebSocket" };
const STATES = {
  idle: "Waiting",
  connecting: "Connecting",
  waiting: "Reconnecting",
  paused: "Unplugged",
  failed: "Refused",
  closed: "Closed",
};
const MEANINGS = {
  complete: "Every event since the cursor followed, in order: nothing missed, nothing repeated.",
  conflated: "Every event followed, in order; counts that had been overtaken were skipped.",
  snapshot: "A first visit: the full state, then everything live.",
  reset: "The server could not place the cursor: the full state, then everything live.",
};

/** Connection pill; returns the sentence to announce. `idle`: there is nothing to connect to yet. */
export function drawLink(status) {
  setData(byId("link"), "state", status.state);
  const transport = TRANSPORTS[status.transport];
  const text = status.state === "live" ? `Live · ${transport}` : (STATES[status.state] ?? status.state);
  setText(byId("link-text"), text);
  byId("link").title = status.reason ?? "";
  return status.state === "failed" && status.reason ? `${text}: ${status.reason}` : text;
}

/** The verdict of the last welcome; `tookMs` is how long the resumption took, or null after a first connection. */
export function drawVerdict(verdicts, tookMs) {
  const worst = worstVerdict(verdicts);
  if (!worst) return;
  setData(byId("resume"), "verdict", worst);
  setText(byId("verdict"), tookMs === null ? worst : `${worst} · back in ${number(tookMs)} ms`);
  const lost = Object.entries(verdicts).filter(([, verdict]) => verdict.lost_from || verdict.lost_to);
  const gaps = lost.map(([topic, { lost_from, lost_to }]) => ` Lost on ${topic}: ${lost_from ?? "?"} to ${lost_to ?? "?"}.`);
  setText(byId("verdict-why"), MEANINGS[worst] + gaps.join(""));
}

/** @param reading  what `LatencyWindow.read` gives */
export function drawLatency(reading) {
  const ms = (value) => (value === null || reading.skewed ? "–" : number(value));
  setText(byId("p50"), ms(reading.p50));
  setText(byId("p95"), ms(reading.p95));
  setData(byId("p95").parentNode, "level", reading.skewed || reading.p95 === null ? null : level(reading.p95));
  setText(byId("rate"), number(reading.rate));
  const note = reading.skewed
    ? "this device's clock is behind the server's: no latency"
    : reading.p50 === null ? "no send times yet: message rate only" : "server receives → this browser has it";
  setText(byId("spark-note"), note);
  const highest = Math.max(0, ...reading.line.map((slot) => slot?.max ?? 0));
  const top = SCALES_MS.find((scale) => highest <= scale) ?? SCALES_MS.at(-1);
  setText(byId("spark-top"), reading.p50 === null ? "" : `${number(top)} ms`);
  drawSpark(reading.skewed ? [] : reading.line, top);
}

/** Against the objectives of the service: 300 ms and 500 ms. */
function level(ms) {
  return ms < 300 ? "good" : ms < 500 ? "warn" : "bad";
}

function drawSpark(line, top) {
  const spark = byId("spark");
  if (!spark.firstChild) {
    spark.append(svg("path.spark-grid", { d: `M0 ${HEIGHT / 2}H${WIDTH}` }), svg("path.spark-max"), svg("path.spark-p50"));
  }
  const x = (index) => ((index + SLOTS - line.length + 0.5) * WIDTH) / SLOTS;
  const y = (value) => HEIGHT - 1 - (Math.max(0, value) / top) * (HEIGHT - 4);
  let bars = "";
  let curve = "";
  let drawing = false;
  line.forEach((slot, index) => {
    if (slot) {
      bars += `M${x(index)} ${HEIGHT}V${y(slot.max).toFixed(1)}`;
      curve += `${drawing ? "L" : "M"}${x(index)} ${y(slot.p50).toFixed(1)}`;
    }
    drawing = Boolean(slot);
  });
  spark.children[1].setAttribute("d", bars);
  spark.children[2].setAttribute("d", curve);
}

/** @param entries  newest first: `{key, at, message}`, and for the end of a round `round` and `winner` once known */
export function drawLog(entries, total) {
  byId("log-empty").hidden = entries.length > 0;
  setText(byId("log-count"), total ? `${number(total)} received` : "");
  reconcile(byId("log"), entries, {
    key: (entry) => entry.key,
    create: ({ at, message }) =>
      el(
        "li",
        {},
        el("time", { datetime: at.toISOString() }, at.toLocaleTimeString("en-GB")),
        el("b", {}, words(message.event)),
        el("span"),
      ),
    update: (node, entry) => setText(node.lastChild, describe(entry)),
  });
}

/** A few words about an event, from what is commonly inside; empty when nothing is known about its kind. */
function describe({ message: { data }, round, winner }) {
  const payload = data.data ?? {};
  const parts = data.round_no ? [`round ${data.round_no}`] : [];
  if (round) parts.push(winner, roundReason(round.reason).text);
  const scores = [payload.team1?.score, payload.team2?.score];
  if (scores.every(Number.isFinite)) parts.push(scores.join("\u2060–\u2060")); // Word joiners keep it on one line.
  for (const name of [payload.player?.name, payload.map_name]) if (typeof name === "string") parts.push(name);
  return parts.filter(Boolean).join(" · ");
}
