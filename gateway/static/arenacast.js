/**
 * Arenacast browser client: live polls and matches over Server-Sent Events or WebSocket, resumed by cursor.
 *
 *     import { connect } from "/static/arenacast.js";
 *
 *     const live = connect({
 *       topics: ["poll.p1", "match.m1.*"],
 *       onMessage: ({ event, topic, id, data }) => console.log(event, topic, data),
 *       onStatus: ({ state, verdicts }) => console.log(state, verdicts),
 *     });
 *     // later: live.close()
 *
 * Promises
 * - `onMessage` gets every message that belongs to a topic, in order: `snapshot`, `poll`, `tally`, `state`, `prediction`
 *   and the match events (`round_end`, …). `welcome`, `heartbeat` and `bye` concern the connection and stop here.
 * - The cursor names the last message handed over. It survives every kind of disconnection and a change of transport,
 *   so that no event is missed or repeated; how well that went is the server's verdict per topic, see `Status`.
 * - Reconnection is jittered and backs off, obeys the server's `retry:`, `bye` and close codes, and never runs twice.
 * - No dependency and no polling; two timers at most.
 */

const PROTOCOL = "arenacast.v1";
const WELCOME_TIMEOUT_MS = 8_000;
const SILENCE_MS = 40_000;
const WATCHES_PER_SILENCE = 8;
const STEADY_MS = 10_000; // A connection shorter than this does not reset the back-off.
const MUTE_LIMIT = 2; // Attempts in a row without a welcome before `auto` tries the other transport.
const BACKOFF_CAP_MS = 30_000;

/** First delay in ms before reconnecting, by WebSocket close code (contract §4.2); it doubles with every failure. */
const CLOSE_DELAY_MS = { 1012: 250, 4008: 500, 1001: 1_000, 1013: 5_000 };
const DEFAULT_DELAY_MS = 500;
/** Close codes that repeating the same request cannot cure. */
const FATAL_CLOSE = { 4000: "bad request", 4001: "unauthorised", 4003: "forbidden" };

/**
 * @typedef {{event: string, topic: string, id: string, data: any}} Message
 * @typedef {{resume: "snapshot"|"complete"|"conflated"|"reset", lost_from?: string, lost_to?: string}} Verdict
 *
 * @typedef {object} Status
 * @property {"connecting"|"live"|"waiting"|"paused"|"failed"|"closed"} state
 *   `live` starts with the server's welcome; `waiting` lasts until the next attempt; `failed` is final.
 * @property {"sse"|"ws"} transport
 * @property {Object<string, Verdict>|null} verdicts  What the last welcome said about the cursor, per topic.
 * @property {string|null} cursor
 * @property {number|null} retryMs  Delay until the next attempt, when it is ours to decide.
 * @property {string|null} reason  Why the last connection ended, in words.
 *
 * @typedef {object} Options
 * @property {string[]} topics  Up to 64, such as `poll.p1`, `match.m1.2`, `match.m1.*`.
 * @property {string} [base]  Origin (and path prefix) of the gateway; default: the page's own origin.
 * @property {string|null} [cursor]  Continue after this position; default: start with a snapshot.
 * @property {string[]} [types]  Match event types to receive; default: all.
 * @property {"auto"|"sse"|"ws"} [transport]  `auto` (default) starts with SSE and falls back to WebSocket.
 * @property {number} [welcomeTimeoutMs]  How long a connection may stay mute at its start, default 8 s. A proxy that
 *   buffers the stream looks like this: connected, and nothing ever comes.
 * @property {number} [silenceMs]  How long it may be silent later, default 40 s: the server speaks at least every 15 s,
 *   so two missed heartbeats mean a dead connection.
 * @property {(message: Message) => void} [onMessage]
 * @property {(status: Status) => void} [onStatus]
 */

/**
 * Connects, and stays connected until `close()`.
 * @param {Options} options
 * @returns {Connection}
 */
export function connect(options) {
  const connection = new Connection(options);
  connection.resume();
  return connection;
}

class Connection {
  #options;
  #cursor;
  #transport;
  #link = null; // The current transport object; callbacks of any other one are stale and ignored.
  #timer = 0;
  #watch = 0;
  #failures = 0;
  #mute = 0;
  #openedAt = 0;
  #seenAt = 0;
  #welcomed = false;
  #problem = null;
  #status;

  constructor(options) {
    if (!options.topics?.length) throw new TypeError("connect() needs at least one topic");
    this.#options = {
      base: globalThis.location?.origin,
      transport: "auto",
      welcomeTimeoutMs: WELCOME_TIMEOUT_MS,
      silenceMs: SILENCE_MS,
      ...options,
    };
    this.#cursor = options.cursor ?? null;
    this.#transport = this.#options.transport === "ws" || !globalThis.EventSource ? "ws" : "sse";
    this.#status = { state: "paused", verdicts: null, retryMs: null, reason: null };
    globalThis.addEventListener?.("online", this.#wake);
  }

  /** Position of the last message handed over; give it to `connect` to continue elsewhere or later. */
  get cursor() {
    return this.#cursor;
  }

  /** @returns {Status} */
  get status() {
    return { ...this.#status, transport: this.#transport, cursor: this.#cursor };
  }

  /** Drops the connection without a word to the server and keeps the cursor. */
  pause() {
    if (this.#isFinal()) return;
    this.#unlink();
    this.#report({ state: "paused", retryMs: null, reason: null });
  }

  /** Connects again, from the cursor; does nothing while connected. */
  resume() {
    if (this.#isFinal() || this.#link) return;
    this.#open();
  }

  /** Ends the connection for good. */
  close() {
    if (this.#status.state === "closed") return;
    this.#unlink();
    globalThis.removeEventListener?.("online", this.#wake);
    this.#report({ state: "closed", retryMs: null, reason: null });
  }

  #isFinal() {
    return this.#status.state === "closed" || this.#status.state === "failed";
  }

  #wake = () => {
    if (this.#status.state === "waiting") this.#open();
  };

  #open() {
    this.#unlink();
    this.#openedAt = this.#seenAt = Date.now();
    this.#welcomed = false;
    this.#problem = null;
    this.#watch = setInterval(() => this.#checkHealth(), this.#options.silenceMs / WATCHES_PER_SILENCE);
    this.#expectWelcome(); // Anew when the transport is open: a browser that reconnects by itself comes past that alone.
    const open = this.#transport === "ws" ? openWebSocket : openEventSource;
    let link = null;
    const guard = (handler) => (...args) => void (link && link === this.#link && handler(...args));
    link = open(this.#url(), {
      opened: guard(() => this.#expectWelcome()),
      text: guard((text) => this.#receive(text)),
      ended: guard((end) => this.#ended(end)),
      // The browser reconnects an EventSource by itself, after the server's `retry:`, which scripts cannot read. It
      // sends the last id it saw, so leaving it alone is right exactly as long as that is our cursor.
      retrying: guard((lastId) => this.#browserRetries(lastId)),
    });
    this.#link = link;
    this.#report({ state: "connecting", retryMs: null }); // Last: the handler may close what it hears of.
  }

  #url() {
    const { base, topics, types } = this.#options;
    const url = new URL(`${base.replace(/\/$/, "")}/api/v1/${this.#transport === "ws" ? "ws" : "stream"}`);
    url.searchParams.set("topics", topics.join(","));
    if (types?.length) url.searchParams.set("types", types.join(","));
    if (this.#cursor) url.searchParams.set("cursor", this.#cursor);
    if (this.#transport === "ws") url.protocol = url.protocol.replace("http", "ws");
    else url.searchParams.set("envelope", "1");
    return url;
  }

  #receive(text) {
    this.#seenAt = Date.now();
    const link = this.#link;
    for (const line of text.split("\n")) {
      if (!line) continue;
      let message;
      try {
        message = JSON.parse(line);
      } catch {
        this.#ended({ reason: "unreadable message" });
        return;
      }
      this.#dispatch(message);
      if (this.#link !== link) return; // A handler closed or paused: what follows stays behind the cursor.
    }
  }

  #dispatch(message) {
    if (message.id) this.#cursor = message.id;
    switch (message.event) {
      case "welcome":
        clearTimeout(this.#timer);
        this.#welcomed = true;
        this.#mute = 0;
        this.#report({ state: "live", verdicts: message.data.topics ?? {}, retryMs: null, reason: null });
        return;
      case "heartbeat":
        return;
      case "bye":
        this.#retry(message.data?.retry_ms ?? jittered(1_000), "server drains");
        return;
      case "error":
        this.#problem = message.data?.detail ?? message.data?.title ?? null;
        return;
      default:
        call(this.#options.onMessage, message);
    }
  }

  #browserRetries(lastId) {
    const link = this.#link;
    if (!link.opened) return this.#ended({ reason: "no connection" });
    if ((lastId || link.cursorOfUrl) !== this.#cursor) return this.#ended({ reason: "stream ended" });
    link.opened = this.#welcomed = false;
    this.#openedAt = this.#seenAt = Date.now();
    clearTimeout(this.#timer); // How long it waits is the server's `retry:`; the watch below bounds it.
    this.#report({ state: "waiting", retryMs: null, reason: "stream ended" });
  }

  #ended({ code, reason, refused = false }) {
    this.#failures += 1;
    if (!this.#welcomed) this.#mute += 1;
    if (code in FATAL_CLOSE) return this.#fail(this.#problem ?? FATAL_CLOSE[code]);
    if (this.#options.transport === "auto" && this.#mute >= MUTE_LIMIT) {
      this.#transport = this.#transport === "ws" ? "sse" : "ws";
      this.#mute = 0;
    }
    const delay = (CLOSE_DELAY_MS[code] ?? DEFAULT_DELAY_MS) * 2 ** (this.#failures - 1);
    this.#retry(jittered(Math.min(delay, BACKOFF_CAP_MS)), this.#problem ?? reason);
    if (refused) this.#askWhy();
  }

  #retry(delayMs, reason) {
    this.#unlink();
    this.#timer = setTimeout(() => this.#open(), delayMs);
    this.#report({ state: "waiting", retryMs: Math.round(delayMs), reason });
  }

  #fail(reason) {
    this.#unlink();
    globalThis.removeEventListener?.("online", this.#wake);
    this.#report({ state: "failed", retryMs: null, reason });
  }

  /** EventSource hides why it was refused; the long-poll of the same topics tells whether asking again is of use. */
  async #askWhy() {
    const url = this.#url();
    url.pathname = url.pathname.replace(/(stream|ws)$/, "updates");
    url.protocol = url.protocol.replace("ws", "http");
    url.searchParams.set("wait", "0");
    try {
      const answer = await fetch(url, { signal: AbortSignal.timeout(this.#options.welcomeTimeoutMs) });
      if (answer.status < 400 || answer.status >= 500 || answer.status === 429 || this.#isFinal()) return;
      const problem = await answer.json();
      this.#fail(problem.detail ?? problem.title ?? `refused with ${answer.status}`);
    } catch {
      // No answer either: the retry under way is the right thing.
    }
  }

  #expectWelcome() {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#ended({ reason: "no welcome" }), this.#options.welcomeTimeoutMs);
  }

  #checkHealth() {
    const now = Date.now();
    if (this.#welcomed && now - this.#openedAt > STEADY_MS) this.#failures = 0;
    if (now - this.#seenAt > this.#options.silenceMs) this.#ended({ reason: "silence" });
  }

  #unlink() {
    clearTimeout(this.#timer);
    clearInterval(this.#watch);
    const link = this.#link;
    this.#link = null;
    link?.close();
  }

  #report(change) {
    this.#status = { ...this.#status, ...change };
    call(this.#options.onStatus, this.status);
  }
}

function openEventSource(url, on) {
  const source = new EventSource(url);
  let lastId = "";
  const link = { opened: false, cursorOfUrl: url.searchParams.get("cursor"), close: () => source.close() };
  source.onopen = () => {
    link.opened = true;
    on.opened();
  };
  source.onmessage = (event) => {
    lastId = event.lastEventId;
    on.text(event.data);
  };
  source.onerror = () => {
    if (source.readyState === EventSource.CLOSED) on.ended({ reason: "stream refused", refused: true });
    else on.retrying(lastId);
  };
  return link;
}

function openWebSocket(url, on) {
  const socket = new WebSocket(url, PROTOCOL);
  socket.onmessage = (event) => on.text(event.data);
  socket.onclose = (event) => on.ended({ code: event.code, reason: event.reason || `closed with ${event.code}` });
  return { close: () => socket.close() };
}

/** Between half and all of `ms`, so that a thousand clients dropped together do not come back together. */
function jittered(ms) {
  return ms * (0.5 + Math.random() / 2);
}

/** A handler that throws must neither stop the stream nor hide: the error surfaces as uncaught. */
function call(handler, argument) {
  try {
    handler?.(argument);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
