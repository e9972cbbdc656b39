/** The documentation page: draws `/openapi.json` and `/asyncapi.json` as they are served, so that it cannot drift. */

import { byId, el } from "./dom.js";
import { Description, drawSchema, prose, typeName } from "./docs-schema.js";

const METHODS = ["get", "put", "post", "delete", "patch", "head", "options"];
const CHOSEN_STATUS = /^2|default/;

function section(id, title, ...children) {
  byId("toc").append(el("a", { href: `#${id}` }, title));
  return el("section", { id }, el("h1", {}, title), ...children);
}

function slug(...parts) {
  return parts.join("-").replace(/[^A-Za-z0-9]+/g, "-").toLowerCase();
}

// --- HTTP ------------------------------------------------------------------------------------------------------------

function drawHttp(description) {
  const { info = {}, paths = {}, components = {} } = description.root;
  nameIngest(paths["/api/v1/votes"]?.post?.servers?.[0]?.url);
  const groups = new Map();
  for (const [path, item] of Object.entries(paths)) {
    for (const method of METHODS.filter((name) => item[name])) {
      const group = item[method].tags?.[0] ?? "HTTP";
      groups.set(group, [...(groups.get(group) ?? []), drawOperation(description, method, path, item)]);
    }
  }
  const sections = [...groups].map(([group, operations]) => section(slug("http", group), title(group), ...operations));
  if (info.description) sections[0]?.querySelector("h1").after(prose(info.description));
  return [...sections, drawSchemas(description, components.schemas ?? {}, "schemas", "Schemas")];
}

/** The write side listens elsewhere, and only the description says where. */
function nameIngest(url) {
  if (url) for (const node of document.querySelectorAll(".ingest")) node.textContent = url;
}

function title(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function drawOperation(description, method, path, item) {
  const operation = item[method];
  const parameters = [...(item.parameters ?? []), ...(operation.parameters ?? [])].map((part) => description.resolve(part).value);
  const body = operation.requestBody && description.resolve(operation.requestBody).value;
  const responses = Object.entries(operation.responses ?? {});
  return el(
    "details.operation",
    { id: slug(method, path), "data-method": method },
    el("summary", {}, el("b.method", {}, method.toUpperCase()), el("code", {}, path), el("span", {}, operation.summary ?? "")),
    operation.description && prose(operation.description),
    parameters.length > 0 && drawParameters(description, parameters),
    body && el("h3", {}, "Body"),
    body?.description && prose(body.description),
    ...(body ? drawContent(description, body.content) : []),
    responses.length > 0 && el("h3", {}, "Answers"),
    ...responses.map(([status, part]) => drawResponse(description, status, description.resolve(part).value)),
  );
}

function drawParameters(description, parameters) {
  const row = (part) =>
    el(
      "tr",
      {},
      el("td", {}, el("code", {}, part.name), part.required && el("span.required", {}, "required")),
      el("td", {}, part.in),
      el("td", {}, typeName(description, part.schema ?? {})),
      el("td", {}, part.description ? prose(part.description) : ""),
    );
  const head = ["Parameter", "In", "Type", "Meaning"].map((name) => el("th", {}, name));
  return el("div.scroll", {}, el("table", {}, el("thead", {}, el("tr", {}, ...head)), el("tbody", {}, ...parameters.map(row))));
}

function drawResponse(description, status, response) {
  const content = drawContent(description, response.content);
  const head = [el("code", {}, status), " ", response.description ?? ""];
  if (!content.length) return el("p.answer", {}, ...head);
  return el("details.answer", { open: CHOSEN_STATUS.test(status) && content.length === 1 }, el("summary", {}, ...head), ...content);
}

function drawContent(description, content = {}) {
  return Object.entries(content).map(([type, part]) => {
    const shape = part.schema ? [el("span.type", {}, typeName(description, part.schema)), drawSchema(description, part.schema)] : [];
    const examples = Object.values(part.examples ?? {}).map((example) => description.resolve(example).value.value);
    return el("div.content", {}, el("code", {}, type), ...shape, ...[part.example, ...examples].map(drawExample));
  });
}

function drawExample(value) {
  if (value === undefined) return null;
  return el("pre", {}, el("code", {}, typeof value === "string" ? value : JSON.stringify(value, null, 2)));
}

function drawSchemas(description, schemas, id, heading) {
  const entries = Object.entries(schemas);
  if (!entries.length) return null;
  const one = ([name, schema]) =>
    el("details.operation", { id: slug(id, name) }, el("summary", {}, el("code", {}, name)), drawSchema(description, schema));
  return section(id, heading, ...entries.map(one));
}

// --- Streams ---------------------------------------------------------------------------------------------------------

/** AsyncAPI 3: channels hold messages, operations say who sends them. */
function drawStreams(description) {
  const { info = {}, channels = {}, operations = {}, components = {} } = description.root;
  const drawn = Object.entries(channels).map(([name, part]) => {
    const channel = description.resolve(part).value;
    const uses = Object.entries(operations).filter(([, operation]) => description.resolve(operation.channel).value === channel);
    const messages = Object.entries(channel.messages ?? {}).map(([key, message]) => drawMessage(description, key, message));
    return el(
      "div.channel",
      { id: slug("channel", name) },
      el("h2", {}, channel.title ?? name),
      channel.address && el("p", {}, el("code", {}, channel.address)),
      (channel.description ?? channel.summary) && prose(channel.description ?? channel.summary),
      ...uses.map(([key, { action, summary, description: text }]) =>
        el("p.note", {}, `${action === "send" ? "The server sends" : "The server receives"}: ${summary ?? text ?? key}`),
      ),
      ...messages,
    );
  });
  const intro = info.description ? [prose(info.description)] : [];
  return [section("stream", "Streams", ...intro, ...drawn), drawSchemas(description, components.schemas ?? {}, "stream-schemas", "Stream schemas")];
}

function drawMessage(description, key, part) {
  const { value: message, base } = description.resolve(part);
  const payload = message.payload?.schema ?? message.payload;
  const examples = (message.examples ?? []).map((example) => drawExample(example.payload));
  return el(
    "details.operation",
    { "data-method": "message" },
    el("summary", {}, el("code", {}, message.name ?? key), el("span", {}, message.summary ?? message.title ?? "")),
    message.description && prose(message.description),
    payload && drawSchema(description, payload, base),
    ...examples,
  );
}

// --- Page ------------------------------------------------------------------------------------------------------------

async function fill(id, path, draw) {
  const place = byId(id);
  try {
    place.replaceChildren(...draw(await Description.load(path)).filter(Boolean));
    place.classList.remove("loading");
  } catch (error) {
    place.textContent = `${path} could not be shown: ${error.message}`;
  }
}

/** Opens what the address points at, also when it was drawn only now. */
function reveal() {
  const target = location.hash.length > 1 ? byId(decodeURIComponent(location.hash.slice(1))) : null;
  if (target?.tagName === "DETAILS") target.open = true;
  target?.scrollIntoView();
}

for (const node of document.querySelectorAll(".origin")) node.textContent = location.origin;
await fill("http", "/openapi.json", drawHttp);
await fill("streams", "/asyncapi.json", drawStreams);
addEventListener("hashchange", reveal);
reveal();
