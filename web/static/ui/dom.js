// Builds and updates elements. Whatever comes from the server becomes text nodes and attributes, never markup.

const SVG = "http://www.w3.org/2000/svg";
const HANDLERS = ["onclick", "onchange", "oninput", "onsubmit"];

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on") || name === "key") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  for (const child of children.flat(Infinity)) {
    if (child === undefined || child === null || child === false) continue;
    element.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return element;
}

/** An element: h("a", {href: "#/"}, "text", otherElement). */
export const h = (tag, attributes, ...children) => fill(document.createElement(tag), attributes, children);

/** The same of a drawing. */
export const svg = (tag, attributes, ...children) => fill(document.createElementNS(SVG, tag), attributes, children);

function isAlike(old, fresh) {
  return old.nodeType === fresh.nodeType && old.nodeName === fresh.nodeName && old.key === fresh.key;
}

function update(old, fresh) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== fresh.data) old.data = fresh.data;
    return;
  }
  for (const { name } of [...old.attributes]) {
    // What the reader has opened stays open.
    if (!fresh.hasAttribute(name) && name !== "open") old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  for (const name of HANDLERS) old[name] = fresh[name];
  // Outside of forms, which are their reader's, a box is ticked if the page says so.
  if (old.type === "checkbox" && !old.form) old.checked = fresh.checked;
  patch(old, [...fresh.childNodes]);
}

/** Makes an element's children what these are, and keeps those that are there: focus, selection and input stay. */
export function patch(parent, fresh) {
  const keyed = new Map();
  for (const child of parent.childNodes) if (child.key !== undefined) keyed.set(child.key, child);
  let old = parent.firstChild;
  for (const node of fresh.flat(Infinity)) {
    if (!(node instanceof Node)) continue; // what is left out is null or false
    const known = node.key === undefined ? undefined : keyed.get(node.key);
    if (known && known !== old && isAlike(known, node)) {
      parent.insertBefore(known, old);
      old = known;
    }
    if (old && isAlike(old, node)) {
      update(old, node);
      old = old.nextSibling;
    } else {
      parent.insertBefore(node, old);
    }
  }
  while (old) {
    const next = old.nextSibling;
    old.remove();
    old = next;
  }
}

/** Tells those who listen rather than look. */
export function say(text) {
  document.getElementById("said").textContent = text;
}
