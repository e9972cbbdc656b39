/**
 * The live page: finds matches and polls through REST, follows the chosen ones over one connection, draws once a frame.
 *
 * Choice: `?match=…` and `?poll=a,b`, or else whatever is live and newest. Messages only change the model and mark it
 * as changed; drawing is bound to the display, so that a thousand messages a second cost as much as sixty.
 */

import { connect } from "./arenacast.js";
import { byId, el, reconcile } from "./dom.js";
import { LatencyWindow } from "./latency.js";
import { byInterest, currentMap, isEvent, mergeMap, mergePoll, newMap, newPoll, statusRank, withSeries } from "./model.js";
import { drawLatency, drawLink, drawLog, drawVerdict } from "./view-delivery.js";
import { drawMaps, drawMatch, spokenScore } from "./view-match.js";
import { drawPolls } from "./view-poll.js";

const DISCOVER_MS = 5_000;
const UNPLUGGED_MS = 4_000;
const LOG_ROWS = 50;
const LIST_PAGES = 5;
const AUTO_POLLS = 2;
const REQUEST_TIMEOUT_MS = 10_000;

const params = new URLSearchParams(location.search);
const wanted = { match: params.get("match"), poll: params.get("poll") };

const model = { matches: [], polls: [], maps: new Map(), poll: new Map(), log: [], events: 0, pinnedMap: null };
const latency = new LatencyWindow();
let chosen = { match: null, polls: [] };
let live = null;
let dropped = null; // While the plug is out, and until the verdict: when the way back began.
let liveSinceMs = 0;
let hasReceivedMs = false;
let changed = true;

// --- Discovery -------------------------------------------------------------------------------------------------------

async function list(kind) {
  const items = [];
  let next = null;
  for (let page = 0; page < LIST_PAGES; page += 1) {
    const url = new URL(`/api/v1/${kind}`, location.origin);
    if (next) url.searchParams.set("after", next);
    const answer = await fetch(url, { signal: AbortSignal.timeout(REQUEST_TIMEOUT_MS) });
    if (!answer.ok) throw new Error(`${kind}: ${answer.status}`);
    const body = await answer.json();
    items.push(...(Array.isArray(body) ? body : (body[kind] ?? [])));
    next = Array.isArray(body) ? null : body.next;
    if (!next) break;
  }
  return items;
}

async function discover() {
  const [matches, polls] = await Promise.allSettled([list("matches"), list("polls")]);
  if (matches.status === "fulfilled") model.matches = matches.value;
  if (polls.status === "fulfilled") model.polls = polls.value;
  fillPickers();
  choose();
  setTimeout(discover, DISCOVER_MS);
}

/** Keeps what is shown while nothing better runs: a page on a stage must not jump between equals. */
function choose() {
  const best = byInterest(model.matches)[0];
  const shown = model.matches.find((item) => item.match_id === chosen.match);
  const keep = shown && statusRank(shown) >= statusRank(best);
  const match = wanted.match ?? (keep ? shown : best)?.match_id ?? null;
  let polls = wanted.poll?.split(",").filter(Boolean) ?? null;
  if (!polls) {
    const ranked = byInterest(model.polls);
    const own = ranked.filter((poll) => poll.match_id && poll.match_id === match);
    const candidates = [...own, ...ranked.filter((poll) => !own.includes(poll))];
    const open = candidates.filter((poll) => poll.status === "open");
    const stay = open.filter((poll) => chosen.polls.includes(poll.poll_id));
    const picked = [...new Set([...stay, ...open])].slice(0, AUTO_POLLS);
    polls = (picked.length ? picked : candidates.slice(0, 1)).map((poll) => poll.poll_id);
  }
  if (match !== chosen.match || polls.join() !== chosen.polls.join()) follow({ match, polls });
}

function fillPickers() {
  const options = (items, id, text) => [{ value: "", text: "Automatic" }, ...items.map((i) => ({ value: i[id], text: text(i) }))];
  const fill = (select, items, value) => {
    reconcile(select, items, {
      key: (item) => item.value,
      create: (item) => el("option", { value: item.value }, item.text),
      update: (node, item) => void (node.textContent === item.text || (node.textContent = item.text)),
    });
    select.value = value ?? "";
  };
  fill(byId("pick-match"), options(byInterest(model.matches), "match_id", (i) => i.match_id), wanted.match);
  fill(byId("pick-poll"), options(byInterest(model.polls), "poll_id", (i) => i.title || i.poll_id), wanted.poll);
}

function pick(kind, value) {
  wanted[kind] = value || null;
  const url = new URL(location.href);
  if (value) url.searchParams.set(kind, value);
  else url.searchParams.delete(kind);
  history.replaceState(null, "", url);
  choose();
}

// --- Following -------------------------------------------------------------------------------------------------------

/** A cursor belongs to its set of topics, so another choice is another connection, from a snapshot. */
function follow(choice) {
  if (choice.match !== chosen.match) Object.assign(model, { maps: new Map(), log: [], events: 0, pinnedMap: null });
  chosen = choice;
  model.poll = new Map(choice.polls.map((id) => [id, model.poll.get(id) ?? newPoll(id)]));
  live?.close();
  dropped = null;
  changed = true;
  byId("overlay-link").href = choice.polls.length ? `/overlay/${encodeURIComponent(choice.polls[0])}` : "/docs#overlay";
  const topics = choice.polls.map((id) => `poll.${id}`);
  if (choice.match) topics.unshift(`match.${choice.match}.*`);
  const transport = params.get("transport") ?? "auto";
  live = topics.length ? connect({ topics, transport, onMessage, onStatus }) : null;
  if (!live) onStatus({ state: "idle" });
}

function onMessage(message) {
  const now = Date.now();
  const { event, topic, data } = message;
  const [kind, id] = topic.split(".");
  // What was caught up after an outage is late by the outage, not by the delivery.
  const isBacklog = event === "snapshot" || data.received_ms < liveSinceMs;
  hasReceivedMs ||= Number.isFinite(data.received_ms);
  // The sender's own time includes the way to us: better than nothing, and only where there is nothing better.
  latency.add(now, isBacklog ? undefined : (data.received_ms ?? (hasReceivedMs ? undefined : Date.parse(data.ts))));
  if (kind === "poll") {
    if (model.poll.has(id)) mergePoll(model.poll.get(id), data);
  } else if (isEvent(message)) {
    model.events += 1;
    const key = `${model.events}`;
    model.log = [{ key, at: new Date(now), message }, ...model.log].slice(0, LOG_ROWS);
  } else {
    const map = model.maps.get(topic) ?? newMap(topic);
    const before = map.round_no;
    model.maps.set(topic, mergeMap(map, message));
    if (event === "state") settleRounds(topic, map);
    if (map.round_no !== before && event === "state") byId("announce").textContent = spokenScore(map);
  }
  changed = true;
}

/** The state after a `round_end` says who won it: the event itself may not know, or name the leader instead. */
function settleRounds(topic, map) {
  for (const entry of model.log) {
    const { event, topic: origin, data } = entry.message;
    if (entry.round || event !== "round_end" || origin !== topic) continue;
    entry.round = map.rounds.find((round) => round.round_no === data.round_no);
    entry.winner = map[entry.round?.winner]?.name;
  }
}

function onStatus(status) {
  const text = drawLink(status);
  byId("plug").disabled = status.state !== "live";
  if (status.state === "live") {
    liveSinceMs = Date.now();
    drawVerdict(status.verdicts, dropped === null ? null : Math.max(1, performance.now() - dropped));
    dropped = null;
  } else if (status.state === "waiting" || status.state === "failed") {
    dropped ??= performance.now();
    byId("announce").textContent = text;
  }
}

/** Cuts the connection as a train in a tunnel would, and comes back with the cursor. */
function pullThePlug() {
  const button = byId("plug");
  const connection = live;
  const endsAt = Date.now() + UNPLUGGED_MS;
  connection.pause();
  const tick = () => {
    const left = Math.ceil((endsAt - Date.now()) / 1000);
    if (left > 0 && connection.status.state === "paused") {
      button.textContent = `Back in ${left} s`;
      setTimeout(tick, 200);
      return;
    }
    button.textContent = "Pull the plug";
    if (connection !== live) return;
    dropped = performance.now();
    connection.resume();
  };
  tick();
}

// --- Drawing ---------------------------------------------------------------------------------------------------------

let drawnAtMs = 0;

function draw() {
  requestAnimationFrame(draw);
  const now = Date.now();
  // Rates and sparkline move on without messages, but twice a second is enough for them.
  const isDue = now - drawnAtMs > 500;
  if (!changed && !isDue) return;
  changed = false;
  if (isDue) {
    drawnAtMs = now;
    drawLatency(latency.read(now));
  }
  const series = model.maps.get(`match.${chosen.match}.series`);
  const maps = [...model.maps.values()].filter((map) => map !== series).map((map) => withSeries(map, series));
  const map = maps.find(({ topic }) => topic === model.pinnedMap) ?? currentMap(maps) ?? series ?? null;
  drawMatch(map, series);
  drawMaps(maps, map, (topic) => {
    model.pinnedMap = topic;
    changed = true;
  });
  byId("polls-empty").hidden = model.poll.size > 0;
  drawPolls(byId("poll-list"), [...model.poll.values()], now);
  drawLog(model.log, model.events);
  byId("cursor-note").textContent = live?.cursor ? `cursor ${live.cursor}` : "";
}

byId("plug").addEventListener("click", pullThePlug);
byId("pick-match").addEventListener("change", (event) => pick("match", event.target.value));
byId("pick-poll").addEventListener("change", (event) => pick("poll", event.target.value));
discover();
draw();
