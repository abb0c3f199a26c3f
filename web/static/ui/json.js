// JSON as it was sent, laid out for people. It is never parsed into numbers, which would lose digits of large ones.

/** The end of the value that begins at a place of a JSON text. */
function end(text, at) {
  if (text[at] === '"') {
    for (let n = at + 1; ; n += 1) {
      if (text[n] === "\\") n += 1;
      else if (text[n] === '"') return n + 1;
    }
  }
  if (text[at] === "{" || text[at] === "[") {
    let depth = 0;
    for (let n = at; n < text.length; n += 1) {
      const character = text[n];
      if (character === '"') n = end(text, n) - 1;
      else if (character === "{" || character === "[") depth += 1;
      else if (character === "}" || character === "]") { depth -= 1; if (!depth) return n + 1; }
    }
  }
  let n = at;
  while (n < text.length && !",]} \n\r\t".includes(text[n])) n += 1;
  return n;
}

const blank = (text, at) => { while (at < text.length && " \n\r\t".includes(text[at])) at += 1; return at; };

/** The text of one value of an object; undefined if there is none of this name. */
export function part(text, name) {
  let at = blank(text, blank(text, 0) + 1);
  while (text[at] === '"') {
    const key = end(text, at);
    const value = blank(text, blank(text, key) + 1);
    const after = end(text, value);
    if (JSON.parse(text.slice(at, key)) === name) return text.slice(value, after);
    at = blank(text, after);
    if (text[at] !== ",") return undefined;
    at = blank(text, at + 1);
  }
  return undefined;
}

/** The same text with its parts on lines of their own. */
export function pretty(text) {
  let depth = 0, told = "";
  const line = () => `\n${"  ".repeat(depth)}`;
  for (let at = blank(text, 0); at < text.length; at = blank(text, at)) {
    const character = text[at];
    if (character === "{" || character === "[") {
      const next = blank(text, at + 1);
      if (text[next] === "}" || text[next] === "]") { told += character + text[next]; at = next + 1; continue; }
      depth += 1;
      told += character + line();
      at += 1;
    } else if (character === "}" || character === "]") {
      depth -= 1;
      told += line() + character;
      at += 1;
    } else if (character === ",") {
      told += `,${line()}`;
      at += 1;
    } else if (character === ":") {
      told += ": ";
      at += 1;
    } else {
      const after = Math.max(end(text, at), at + 1);
      told += text.slice(at, after);
      at = after;
    }
  }
  return told;
}
