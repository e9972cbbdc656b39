/**
 * What the pages know about polls and matches, built from messages and REST items. Pure: no DOM, no network.
 *
 * Everything here may meet data of a newer server: unknown fields are ignored, missing ones leave what was known.
 */

const STATE_KINDS = new Set(["snapshot", "poll", "tally", "state", "prediction"]);

/** True for match events (`round_end`, …), which are never superseded; false for state kinds. */
export function isEvent(message) {
  return !STATE_KINDS.has(message.event);
}

export function newPoll(id) {
  return { id, title: "", status: "unknown", options: [], counts: {}, total: 0, voters: 0, applied: 0, rejected: {} };
}

const POLL_FIELDS = ["title", "status", "voting", "total", "voters", "applied", "replaced", "rejected", "digest"];

/** Takes over a `poll` (its `options` are a list), a `tally` (`options` are counts) or a snapshot (definition inside). */
export function mergePoll(poll, data) {
  for (const key of POLL_FIELDS) if (data[key] !== undefined) poll[key] = data[key];
  const { options } = data.definition ?? data;
  if (Array.isArray(options)) poll.options = options.map(({ id, label }) => ({ id, label: label || id }));
  if (data.options && !Array.isArray(data.options)) poll.counts = data.options;
  const known = new Set(poll.options.map((option) => option.id));
  for (const id of Object.keys(poll.counts)) if (!known.has(id)) poll.options.push({ id, label: id });
  return poll;
}

/**
 * Rows to draw: `{id, label, count, share, leads}`. Shares are whole percents that add up to 100 (largest remainder),
 * because three bars of 33 % look like a counting mistake on a stage.
 */
export function pollRows(poll) {
  const rows = poll.options.map(({ id, label }) => ({ id, label, count: Number(poll.counts[id] ?? 0) }));
  const sum = rows.reduce((total, row) => total + row.count, 0);
  const most = Math.max(0, ...rows.map((row) => row.count));
  for (const row of rows) {
    row.exact = sum ? (100 * row.count) / sum : 0;
    row.share = Math.floor(row.exact);
    row.leads = row.count === most && most > 0;
  }
  const missing = sum ? 100 - rows.reduce((total, row) => total + row.share, 0) : 0;
  const byRemainder = [...rows].sort((a, b) => b.exact - b.share - (a.exact - a.share));
  for (const row of byRemainder.slice(0, missing)) row.share += 1;
  return rows;
}

/** The `limit` rows with most votes, in the order of the poll: rows that overtake each other must not jump about. */
export function mostVoted(rows, limit) {
  if (rows.length <= limit) return rows;
  const kept = new Set([...rows].sort((a, b) => b.count - a.count).slice(0, limit));
  return rows.filter((row) => kept.has(row));
}

export function newMap(topic) {
  const team = { name: "", score: 0 };
  const mapId = topic.split(".")[2];
  return { topic, map_id: mapId, map_name: "", status: "unknown", round_no: 0, team1: team, team2: team, rounds: [] };
}

const MAP_FIELDS = ["map_name", "status", "round_no", "team1", "team2", "rounds", "prediction", "num_maps", "maps"];

/** Takes over a snapshot or `state` (absolute) or a `prediction`. */
export function mergeMap(map, message) {
  const { event, data } = message;
  if (event === "prediction") map.prediction = data;
  else if (event === "state" || event === "snapshot") {
    for (const key of MAP_FIELDS) if (data[key] !== undefined && data[key] !== null) map[key] = data[key];
    map.winner = data.winner ?? null;
  }
  return map;
}

/** The series knows names before its maps do: MatchZy says them with the first round, not when a map goes live. */
export function withSeries(map, series) {
  if (!series) return map;
  const named = (side) => ({ ...map[side], name: map[side].name || series[side].name });
  const picked = (series.maps ?? []).find((pick) => pick.map_id === map.map_id);
  return { ...map, team1: named("team1"), team2: named("team2"), map_name: map.map_name || (picked?.map_name ?? "") };
}

/** The map to show of a match: a live one before any other, the latest of equals. */
export function currentMap(maps) {
  const rank = { live: 3, finished: 2, pending: 1 };
  const order = (map) => [rank[map.status] ?? 0, Number(map.map_id) || 0];
  return [...maps].sort((a, b) => compare(order(b), order(a)))[0] ?? null;
}

const STATUS_RANK = { live: 3, open: 3, pending: 2, scheduled: 2, finished: 1, closed: 1 };

/** Items of a list, the best to show first: running before waiting before over, then the newest. */
export function byInterest(items) {
  const key = (item, index) => [statusRank(item), newestMs(item), -index];
  const keys = new Map(items.map((item, index) => [item, key(item, index)]));
  return [...items].sort((a, b) => compare(keys.get(b), keys.get(a)));
}

/** When an item last heard something; a match says so only in its parts. */
function newestMs(item) {
  const parts = [item, item.series, ...Object.values(item.maps ?? {})];
  return Math.max(...parts.map((part) => part?.received_ms ?? 0));
}

export function statusRank(item) {
  const statuses = [item.status, ...Object.values(item.maps ?? {}).map((map) => map?.status)];
  return Math.max(...statuses.map((status) => STATUS_RANK[status] ?? 0));
}

function compare(a, b) {
  for (let i = 0; i < a.length; i += 1) if (a[i] !== b[i]) return a[i] < b[i] ? -1 : 1;
  return 0;
}

/** Why a round ended, as `{icon, text}`; the icon is drawn by what the word contains, so that new words still show. */
export function roundReason(reason) {
  const word = String(reason ?? "").toLowerCase().replace(/^c?t_/, ""); // The side is told by who won.
  const icons = [
    [/defus/, "defuse"],
    [/explo|bomb/, "bomb"],
    [/time|saved/, "time"],
    [/elim|_win|killed/, "elimination"],
  ];
  const icon = icons.find(([pattern]) => pattern.test(word))?.[1] ?? "other";
  return { icon, text: word ? words(word) : "" };
}

/** `bomb_exploded` → `bomb exploded`. */
export function words(name) {
  return String(name).replace(/^x_/, "").replaceAll("_", " ");
}

const VERDICTS = ["complete", "conflated", "snapshot", "reset"];

/** The least favourable verdict of a welcome, or null without one. */
export function worstVerdict(verdicts) {
  const found = Object.values(verdicts ?? {}).map((verdict) => VERDICTS.indexOf(verdict.resume));
  return found.length ? (VERDICTS[Math.max(...found)] ?? null) : null;
}
