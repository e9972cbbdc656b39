/** Smallest useful helpers for building pages. Text goes in as text nodes only; there is no way to pass markup. */

const SVG = "http://www.w3.org/2000/svg";

/** `el("p.note", {title: "…"}, "text", child)`; null and false children are skipped. */
export function el(spec, attributes = {}, ...children) {
  return build(document.createElement(spec.split(".")[0]), spec, attributes, children);
}

export function svg(spec, attributes = {}, ...children) {
  return build(document.createElementNS(SVG, spec.split(".")[0]), spec, attributes, children);
}

function build(node, spec, attributes, children) {
  const classes = spec.split(".").slice(1);
  if (classes.length) node.setAttribute("class", classes.join(" "));
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [type, handler] of Object.entries(value)) node.addEventListener(type, handler);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

export const byId = (id) => document.getElementById(id);

/** Writes only what changed: an untouched node is not laid out again and not announced again. */
export function setText(node, text) {
  const value = String(text);
  if (node.textContent !== value) node.textContent = value;
}

export function setData(node, name, value) {
  if (value === null || value === undefined || value === false) delete node.dataset[name];
  else if (node.dataset[name] !== String(value)) node.dataset[name] = value;
}

/** Brings the children of `parent` in line with `items`, one node per key, re-using nodes so that they can animate. */
export function reconcile(parent, items, { key, create, update }) {
  const old = new Map([...parent.children].map((node) => [node.dataset.key, node]));
  items.forEach((item, index) => {
    const name = String(key(item, index));
    let node = old.get(name);
    old.delete(name);
    if (!node) {
      node = create(item);
      node.dataset.key = name;
    }
    if (parent.children[index] !== node) parent.insertBefore(node, parent.children[index] ?? null);
    update(node, item, index);
  });
  for (const node of old.values()) node.remove();
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
export const number = (value) => whole.format(Number(value ?? 0));
