// listen.mjs eventsource|ws|slow-ws URL: what the client hears, as JSON lines on standard output, until it is killed.

import { EventSource } from "eventsource";
import WebSocket from "ws";

const [kind, url] = process.argv.slice(2);
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

if (kind === "eventsource") {
  const source = new EventSource(url);
  const hear = (message) => say({ event: message.type, id: message.lastEventId, data: JSON.parse(message.data) });
  for (const name of ["welcome", "snapshot", "tally", "state", "prediction", "round_end", "going_live", "heartbeat", "bye", "message"]) {
    source.addEventListener(name, hear);
  }
  source.addEventListener("error", () => say({ event: "lost", state: source.readyState }));
} else {
  const socket = new WebSocket(url, "arenacast.v1");
  socket.on("open", () => {
    say({ event: "open", protocol: socket.protocol, extensions: socket.extensions });
    if (kind === "slow-ws") {
      socket.pause();
      setTimeout(() => socket.resume(), 3000);
    }
  });
  socket.on("message", (data, isBinary) => {
    const lines = isBinary ? ["binary"] : data.toString().split("\n");
    for (const line of lines) say({ ...JSON.parse(line), together: lines.length });
  });
  socket.on("close", (code, reason) => say({ event: "closed", code, reason: reason.toString() }));
  socket.on("error", (error) => say({ event: "failed", reason: error.message }));
}
