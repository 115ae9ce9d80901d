// Elements and text. Everything that comes from the service goes through here
// as text, never as markup.

const svgNamespace = "http://www.w3.org/2000/svg";

function fill(element, properties, children) {
  for (const [name, value] of Object.entries(properties ?? {})) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "on") {
      for (const [event, handler] of Object.entries(value)) element.addEventListener(event, handler);
    } else if (name === "data") {
      for (const [key, datum] of Object.entries(value)) element.dataset[key] = datum;
    } else {
      element.setAttribute(name, value === true ? "" : value);
    }
  }
  element.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return element;
}

export const h = (name, properties, ...children) => fill(document.createElement(name), properties, children);
export const s = (name, properties, ...children) => fill(document.createElementNS(svgNamespace, name), properties, children);
export const byId = (id) => document.getElementById(id);

// setText leaves a node alone that says so already, so that nothing is read out
// or selected anew.
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    const text = String(value);
    if (element.getAttribute(name) !== text) element.setAttribute(name, text);
  }
}

// bdi keeps a name that is written from right to left from turning around what
// stands beside it.
export const name = (text) => h("bdi", { class: "name" }, text);

// keyed makes the children of a parent those of a list, in its order; an element
// is made once for a key, and updated.
export function keyed(parent, list, keyOf, make, update) {
  parent.keyed ??= new Map();
  const gone = new Set(parent.keyed.keys());
  let place = parent.firstChild;
  for (const item of list) {
    const key = keyOf(item);
    let element = parent.keyed.get(key);
    if (!element) {
      element = make(item);
      parent.keyed.set(key, element);
    }
    gone.delete(key);
    update(element, item);
    if (element === place) place = place.nextSibling;
    else parent.insertBefore(element, place);
  }
  for (const key of gone) {
    parent.keyed.get(key).remove();
    parent.keyed.delete(key);
  }
}
