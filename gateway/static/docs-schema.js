/** Loads an API description and draws its JSON Schemas. Knows `$ref`, and is safe against schemas that contain themselves. */

import { el } from "./dom.js";

const DEPTH_MAX = 12;
const FILES_MAX = 64;

/** One description with the files it refers to, so that drawing needs no waiting. */
export class Description {
  #files = new Map();

  /** @returns {Promise<Description>}; throws when the root cannot be read, tolerates a missing part */
  static async load(path) {
    const description = new Description();
    description.url = new URL(path, location.origin).href;
    description.root = await description.#fetch(description.url);
    return description;
  }

  async #fetch(url) {
    const answer = await fetch(url);
    if (!answer.ok) throw new Error(`${new URL(url).pathname}: ${answer.status}`);
    const root = await answer.json();
    this.#files.set(url, root);
    const parts = [...references(root)].map((ref) => new URL(ref, url)).filter((part) => part.origin === location.origin);
    for (const part of parts) {
      const file = part.href.split("#")[0];
      if (this.#files.has(file) || this.#files.size >= FILES_MAX) continue;
      this.#files.set(file, null);
      await this.#fetch(file).catch(() => this.#files.delete(file));
    }
    return root;
  }

  /** Follows `$ref` until something else: `{value, name, base}`, `name` being the last part of the last reference. */
  resolve(value, base = this.url) {
    let name = null;
    for (let hop = 0; hop < DEPTH_MAX && value?.$ref; hop += 1) {
      const target = new URL(value.$ref, base);
      const [file, pointer] = target.href.split("#");
      name = decodeURIComponent((pointer || file).split("/").at(-1)).replace(/\.json$/, "");
      value = follow(this.#files.get(file), decodeURIComponent(pointer ?? ""));
      base = file;
    }
    return { value: value ?? {}, name, base };
  }
}

function* references(value) {
  if (!value || typeof value !== "object") return;
  for (const [key, inner] of Object.entries(value)) {
    if (key === "$ref" && typeof inner === "string") yield inner;
    else yield* references(inner);
  }
}

function follow(root, pointer) {
  const keys = pointer.split("/").slice(1).map((key) => key.replaceAll("~1", "/").replaceAll("~0", "~"));
  return keys.reduce((value, key) => value?.[key], root);
}

/** A schema as a list of its properties, nested ones folded. */
export function drawSchema(description, schema, base, trail = []) {
  const { value, name, base: here } = description.resolve(schema, base);
  if (trail.length > DEPTH_MAX || trail.includes(value)) return el("p.note", {}, `again ${name ?? "as above"}`);
  const inside = [...trail, value];
  const draw = (part) => drawSchema(description, part, here, inside);
  const node = el("div.schema");
  if (value.description && trail.length === 0) node.append(prose(value.description));
  const required = new Set(value.required ?? []);
  const properties = Object.entries(value.properties ?? {});
  if (properties.length) {
    node.append(el("ul.fields", {}, ...properties.map(([key, part]) => drawField(description, key, part, here, required.has(key), inside))));
  }
  const any = value.additionalProperties;
  if (any && typeof any === "object") node.append(labelled("any key", typeName(description, any, here), draw(any)));
  if (value.items) node.append(labelled("each item", typeName(description, value.items, here), draw(value.items)));
  for (const [key, title] of [["allOf", "all of"], ["oneOf", "one of"], ["anyOf", "any of"]]) {
    const parts = (value[key] ?? []).filter((part) => part.type !== "null");
    if (parts.length === 1) node.append(draw(parts[0]));
    else parts.forEach((part, index) => node.append(labelled(index ? "or" : title, typeName(description, part, here), draw(part))));
  }
  return node;
}

function drawField(description, key, part, base, isRequired, trail) {
  const { value, base: here } = description.resolve(part, base);
  const head = [
    el("code.key", {}, key),
    el("span.type", {}, typeName(description, part, base)),
    isRequired ? el("span.required", {}, "required") : null,
  ];
  const note = limits(value);
  const text = [note && el("span.limits", {}, note), value.description && prose(value.description)];
  const nested = hasInside(description, value, here) ? drawSchema(description, part, base, trail) : null;
  if (!nested) return el("li", {}, ...head, ...text);
  return el("li", {}, el("details", {}, el("summary", {}, ...head), nested), ...text);
}

function labelled(label, type, node) {
  if (!node.hasChildNodes()) return el("p.note", {}, `${label}: ${type}`);
  return el("div.variant", {}, el("p.note", {}, `${label}: ${type}`), node);
}

function hasInside(description, value, base, depth = 0) {
  if (value.properties || value.oneOf || value.anyOf || value.allOf) return !isPlainChoice(value);
  const inner = value.items ?? (typeof value.additionalProperties === "object" ? value.additionalProperties : null);
  if (!inner || depth > DEPTH_MAX) return false;
  const resolved = description.resolve(inner, base);
  return hasInside(description, resolved.value, resolved.base, depth + 1);
}

/** `anyOf: [string, null]` says no more than its type name does. */
function isPlainChoice(value) {
  const parts = value.anyOf ?? value.oneOf;
  return Boolean(parts) && !value.properties && parts.every((part) => part.type && !part.properties && !part.items);
}

/** A type in few words, such as `array of Option` or `string or null`. */
export function typeName(description, schema, base) {
  const { value, name, base: here } = description.resolve(schema, base);
  if (name) return name;
  if (value.const !== undefined) return JSON.stringify(value.const);
  if (value.enum) return value.enum.map((choice) => JSON.stringify(choice)).join(" | ");
  const choices = value.anyOf ?? value.oneOf;
  if (choices) return choices.map((part) => typeName(description, part, here)).join(" or ");
  if (value.items) return `array of ${typeName(description, value.items, here)}`;
  if (value.additionalProperties?.$ref || value.additionalProperties?.type) {
    return `map to ${typeName(description, value.additionalProperties, here)}`;
  }
  const type = Array.isArray(value.type) ? value.type.join(" or ") : value.type;
  return type ?? (value.properties || value.allOf ? "object" : "any");
}

function limits(value) {
  const names = ["format", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems", "maxItems", "default"];
  const found = names.filter((name) => value[name] !== undefined && value[name] !== null);
  return found.map((name) => `${name} ${typeof value[name] === "string" ? value[name] : JSON.stringify(value[name])}`).join(" · ");
}

/** Text of a description: paragraphs, and `code` between backticks; anything else stays as it is written. */
export function prose(text) {
  const paragraphs = String(text).trim().split(/\n\s*\n/);
  const inline = (paragraph) => paragraph.split(/`([^`]+)`/).map((part, index) => (index % 2 ? el("code", {}, part) : part));
  return el("div.prose", {}, ...paragraphs.map((paragraph) => el("p", {}, ...inline(paragraph))));
}
