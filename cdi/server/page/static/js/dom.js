// Elements, whose text is text: nothing that comes from outside is ever parsed as markup.

export const $ = (id) => document.getElementById(id);

/** An element with properties (class, text, title, hidden …) and children. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") made.className = value;
    else if (name === "text") made.textContent = value;
    else if (name === "on") for (const [event, call] of Object.entries(value)) made.addEventListener(event, call);
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Set text only where it changed: what is selected stays so, and screen readers are left alone. */
export function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show a message, or hide its place where there is none. */
export function note(node, text) {
  write(node, text || "");
  node.hidden = !text;
}

let turn = 0;

/** Say it to who listens rather than looks. */
export function say(text) {
  turn += 1;
  // The same sentence again is said only if something differs.
  write($("said"), turn % 2 ? text : `${text}\u00a0`);
}
