/** Draws polls as cards: animated bars, totals, what was applied and rejected, digest. */

import { el, number, reconcile, setData, setText } from "./dom.js";
import { mostVoted, pollRows, words } from "./model.js";

const PACE_MS = 3_000;
const ROWS_MAX = 8; // A poll may have a hundred options; a card shows those that matter.
const STATUS = { open: "Voting open", closed: "Closed", pending: "Opens soon", scheduled: "Opens soon" };

/** Draws `polls` (see model.js) into `parent`, one card each. */
export function drawPolls(parent, polls, nowMs) {
  reconcile(parent, polls, {
    key: (poll) => poll.id,
    create: () => card(),
    update: (node, poll) => update(node, poll, nowMs),
  });
}

function card() {
  const fact = (name) => el("div", {}, el("dt", {}, name), el("dd", { "data-f": name.toLowerCase() }));
  return el(
    "article.panel.poll",
    {},
    el("header", {}, el("h2", { "data-f": "title" }), el("span.badge", { "data-f": "status" })),
    el("ol.bars", { "data-f": "bars" }),
    el("dl.facts", {}, ...["Votes", "Per second", "Voters", "Applied", "Rejected"].map(fact)),
    el(
      "p.fine",
      {},
      el("span.digest.mono", { "data-f": "digest", title: "Sum of the hashes of all applied votes: any reader can check it" }),
      el("span", { "data-f": "reasons" }),
    ),
  );
}

function update(node, poll, nowMs) {
  const field = (name) => node.querySelector(`[data-f="${name}"]`);
  setData(node, "status", poll.status);
  setText(field("title"), poll.title || poll.id);
  setText(field("status"), STATUS[poll.status] ?? "Waiting");
  const all = pollRows(poll);
  const rows = mostVoted(all, ROWS_MAX);
  const isDuel = rows.length <= 2;
  setData(field("bars"), "duel", isDuel ? "yes" : null);
  // The first two colours are the teams' and mean them; a longer list is not about two sides.
  const colour = (index) => (isDuel ? index : 2 + (index % 6));
  reconcile(field("bars"), rows, {
    key: (row) => row.id,
    create: bar,
    update: (bar, row, index) => updateBar(bar, row, colour(index)),
  });
  setText(field("votes"), number(poll.total));
  setText(field("per second"), number(pace(poll, nowMs)));
  setText(field("voters"), number(poll.voters));
  setText(field("applied"), number(poll.applied));
  const rejected = Object.entries(poll.rejected ?? {}).filter(([, count]) => Number(count) > 0);
  setText(field("rejected"), number(rejected.reduce((sum, [, count]) => sum + Number(count), 0)));
  const notes = rejected.map(([reason, count]) => `${words(reason)} ${number(count)}`);
  if (poll.replaced) notes.push(`replaced ${number(poll.replaced)}`);
  if (all.length > rows.length) notes.unshift(`${all.length - rows.length} more options`);
  setText(field("reasons"), notes.join(" · "));
  setText(field("digest"), poll.digest ? `digest ${poll.digest}` : "");
}

function bar() {
  return el(
    "li",
    {},
    el("span.bar-label"),
    el("b.bar-share"),
    el("span.bar-count"),
    el("span.bar-track", { "aria-hidden": "true" }, el("span.bar-fill")),
  );
}

function updateBar(node, row, colour) {
  const [label, share, count, track] = node.children;
  setData(node, "colour", colour);
  setData(node, "leads", row.leads ? "yes" : null);
  setText(label, row.label);
  setText(share, `${row.share} %`);
  setText(count, number(row.count));
  track.firstChild.style.setProperty("--share", row.exact / 100);
}

/** Votes applied per second over the last few seconds, from the totals seen at earlier drawings. */
function pace(poll, nowMs) {
  const marks = (poll.marks ??= []);
  marks.push([nowMs, Number(poll.applied ?? 0)]);
  while (marks.length > 2 && nowMs - marks[1][0] > PACE_MS) marks.shift();
  const [atMs, applied] = marks[0];
  return nowMs - atMs > 500 ? ((Number(poll.applied ?? 0) - applied) * 1000) / (nowMs - atMs) : 0;
}
