/** Draws one map of a match: score, status, win probability and the strip of rounds. */

import { byId, el, reconcile, setData, setText, svg } from "./dom.js";
import { roundReason, words } from "./model.js";

const REGULATION = 24; // MR12: twelve rounds a half.
const HALF = 12;
const OVERTIME_HALF = 3;
const LONG_NAME = 18; // Characters; a longer name is set smaller.

/** 16×16 outlines, drawn for this page. */
const ICONS = {
  elimination: "M4 4l8 8M12 4l-8 8",
  bomb: "M8 6a4.200 4.200 0 1 1 0 8.400A4.200 4.200 0 0 1 8 6zM8 6V3.500C8 2 9.500 1.500 11 2.200",
  defuse: "M3 8.500l3.500 3.500L13 5",
  time: "M8 2.500a5.500 5.500 0 1 1 0 11 5.500 5.500 0 0 1 0-11zM8 5v3l2 1.800",
  other: "M5 8h6",
};

const STATUS = { live: "Live", finished: "Final", pending: "Up next", unknown: "Waiting" };

/** Shows `map`, or the waiting state for null; `series` tells how many maps there are and who won them. */
export function drawMatch(map, series) {
  const board = byId("board");
  setData(board, "status", map?.status ?? "none");
  byId("board-empty").hidden = Boolean(map);
  setText(byId("map-status"), STATUS[map?.status] ?? STATUS.unknown);
  setText(byId("map-name"), map ? prettyMap(map) : "");
  setText(byId("round-now"), map ? roundNow(map) : "");
  setText(byId("series"), seriesScore(map, series));
  drawTeam(1, map);
  drawTeam(2, map);
  drawPrediction(map);
  byId("rounds").hidden = !map || map === series;
  if (map && map !== series) drawRounds(map);
}

/** Buttons to switch maps; nothing to choose between means nothing to show. */
export function drawMaps(maps, shown, onPick) {
  const items = maps.length > 1 ? maps : [];
  reconcile(byId("maps"), items, {
    key: (map) => map.topic,
    create: (map) => el("button.chip", { type: "button", on: { click: () => onPick(map.topic) } }),
    update: (node, map) => {
      setText(node, `${prettyMap(map)} ${map.team1.score}–${map.team2.score}`);
      node.setAttribute("aria-pressed", String(map === shown));
    },
  });
}

/** One sentence for the live region, so that a screen reader hears the score and not every message. */
export function spokenScore(map) {
  const ended = map.status === "finished" ? "Final score" : `After round ${map.round_no}`;
  return `${ended}: ${map.team1.name} ${map.team1.score}, ${map.team2.name} ${map.team2.score}`;
}

function seriesScore(map, series) {
  if (!series || map === series || !(series.num_maps > 1)) return "";
  return `Best of ${series.num_maps} · maps ${series.team1.score}–${series.team2.score}`;
}

function prettyMap(map) {
  if (map.map_id === "series") return "Series";
  const name = words(map.map_name || "").replace(/^(de|cs) /, "");
  return name ? name[0].toUpperCase() + name.slice(1) : `Map ${map.map_id}`;
}

function roundNow(map) {
  if (map.map_id === "series") return "maps won";
  if (map.status === "live") return `Round ${map.round_no + 1}`;
  return map.round_no ? `${map.round_no} rounds` : "";
}

function drawTeam(side, map) {
  const team = map?.[`team${side}`];
  const name = byId(`name${side}`);
  setText(name, team?.name || (map ? `Team ${side}` : "–"));
  setData(name, "long", name.textContent.length > LONG_NAME ? "yes" : null);
  const score = byId(`score${side}`);
  const before = score.textContent;
  setText(score, team ? team.score : "–");
  if (before !== score.textContent && before !== "–") bump(score);
  byId(`won${side}`).hidden = map?.winner !== `team${side}`;
}

function bump(node) {
  node.classList.remove("bump");
  void node.offsetWidth; // Forces a layout, without which the animation would not start again.
  node.classList.add("bump");
}

function drawPrediction(map) {
  const prediction = map?.prediction;
  const shown = Number.isFinite(prediction?.p_team1) && map.status !== "finished";
  byId("prediction").hidden = !shown;
  if (!shown) return;
  const percent = Math.round(prediction.p_team1 * 100);
  setText(byId("p1"), `${percent} %`);
  setText(byId("p2"), `${100 - percent} %`);
  setText(byId("model"), prediction.model ?? "");
  byId("split").style.setProperty("--share", prediction.p_team1);
}

function drawRounds(map) {
  const played = map.rounds ?? [];
  const overtimes = Math.max(0, Math.ceil((Math.max(map.round_no, ...played.map((r) => r.round_no)) - REGULATION) / 6));
  const total = REGULATION + overtimes * 2 * OVERTIME_HALF;
  const byNumber = new Map(played.map((round) => [round.round_no, round]));
  const cells = Array.from({ length: total }, (_, index) => byNumber.get(index + 1) ?? { round_no: index + 1, ahead: true });
  const list = byId("rounds");
  reconcile(list, cells, {
    key: (round) => `${map.topic} ${round.round_no}`,
    create: () => el("li"),
    update: (node, round) => drawRound(node, round, map),
  });
}

function drawRound(node, round, map) {
  const no = round.round_no;
  setData(node, "half", endsHalf(no) ? "end" : null);
  setData(node, "next", map.status === "live" && no === map.round_no + 1 ? "yes" : null);
  const drawn = `${round.ahead} ${round.winner} ${round.reason} ${map.team1.name} ${map.team2.name}`;
  if (node.dataset.drawn === drawn) return;
  node.dataset.drawn = drawn;
  setData(node, "winner", round.ahead ? null : (round.winner ?? "unknown"));
  if (round.ahead) {
    node.removeAttribute("title");
    node.replaceChildren(el("span.no", { "aria-hidden": "true" }, String(no)));
    return;
  }
  const { icon, text } = roundReason(round.reason);
  const name = map[round.winner]?.name || (round.winner ? words(round.winner) : "winner unknown");
  const label = `Round ${no}: ${name}${text ? `, ${text}` : ""}`;
  node.title = label;
  node.replaceChildren(
    svg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, svg("path", { d: ICONS[icon] })),
    el("span.no", { "aria-hidden": "true" }, String(no)),
    el("span.vh", {}, label),
  );
}

function endsHalf(no) {
  return no <= REGULATION ? no % HALF === 0 : (no - REGULATION) % OVERTIME_HALF === 0;
}
