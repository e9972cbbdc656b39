/**
 * Overlay for a broadcast: one poll on a transparent ground, at `/overlay/{poll_id}`.
 *
 * `?theme=dark|light`, `?align=left|right`, `?max=N` (show the N options with most votes). It is on air: it shows nothing
 * until there is a poll, never shows an error, and keeps the last counts through an outage.
 */

import { connect } from "./arenacast.js";
import { byId, el, number, reconcile, setData, setText } from "./dom.js";
import { mergePoll, mostVoted, newPoll, pollRows } from "./model.js";

const STATUS = { open: "Vote now", closed: "Final", pending: "Opens soon", scheduled: "Opens soon" };

const params = new URLSearchParams(location.search);
const pollId = decodeURIComponent(location.pathname.replace(/\/+$/, "").split("/").at(-1));
const max = Number.parseInt(params.get("max"), 10) || Infinity;
const poll = newPoll(pollId);
let scheduled = false;

document.documentElement.dataset.theme = params.get("theme") === "light" ? "light" : "dark";
document.documentElement.dataset.align = params.get("align") === "right" ? "right" : "left";

connect({ topics: [`poll.${pollId}`], onMessage, onStatus });

function onMessage({ data }) {
  mergePoll(poll, data);
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(draw);
}

function onStatus({ state }) {
  setData(byId("card"), "link", state);
}

function draw() {
  scheduled = false;
  const all = pollRows(poll);
  const card = byId("card");
  card.hidden = poll.status === "unknown" || all.length === 0;
  setData(card, "status", poll.status);
  setText(byId("title"), poll.title || poll.id);
  setText(byId("status"), STATUS[poll.status] ?? poll.status);
  const shown = mostVoted(all, max);
  reconcile(byId("rows"), shown, { key: (row) => row.id, create: createRow, update: updateRow });
  setText(byId("total"), number(poll.total));
  setText(byId("total-unit"), Number(poll.total) === 1 ? "vote" : "votes");
  const hidden = all.length - shown.length;
  setText(byId("more"), hidden > 0 ? ` · ${hidden} more ${hidden === 1 ? "option" : "options"}` : "");
}

function createRow() {
  return el("li", {}, el("span.fill", { "aria-hidden": "true" }), el("span.label"), el("span.count"), el("b.share"));
}

function updateRow(node, row) {
  const [fill, label, count, share] = node.children;
  setData(node, "colour", poll.options.findIndex((option) => option.id === row.id) % 8);
  setData(node, "leads", row.leads ? "yes" : null);
  fill.style.setProperty("--share", row.exact / 100);
  setText(label, row.label);
  setText(count, number(row.count));
  setText(share, `${row.share} %`);
}
