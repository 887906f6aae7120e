// A model's text, laid out: code, headings, lists, paragraphs. Markup in it stays text: elements
// are made by name and filled with text nodes, and there is no element here that runs or loads.

import { copies, element } from "./dom.js";

const FENCE = /^ {0,3}```\s*([\w+#.-]*)[^`]*$/;
const HEADING = /^#{1,4} +(.+)$/;
const ITEM = /^(\s*)([-*•]|\d{1,3}[.)]) +(.*)$/;
const INLINE = /(`[^`\n]+`|\*\*[^*\n]+\*\*)/;

/** Text as a list of `{kind, text, mark}`. A fence that is still open runs to the end. */
export function blocksOf(text) {
  const blocks = [];
  let open = null;
  const begin = (kind, line, mark = "") => blocks.push((open = { kind, text: line, mark }));
  for (const line of text.split("\n")) {
    const fence = FENCE.exec(line);
    if (open?.kind === "code") {
      if (fence && !fence[1]) open = null;
      else open.text += (open.empty ? "" : "\n") + line;
      if (open) open.empty = false;
    } else if (fence) {
      begin("code", "", fence[1]);
      open.empty = true;
    } else if (!line.trim()) {
      open = null;
    } else if (HEADING.test(line)) {
      begin("heading", HEADING.exec(line)[1]);
      open = null;
    } else if (ITEM.test(line)) {
      const [, , mark, rest] = ITEM.exec(line);
      begin("item", rest, /\d/.test(mark) ? mark : "•");
    } else if (line.startsWith("|")) {
      if (open?.kind === "table") open.text += "\n" + line;
      else begin("table", line);
    } else if (open && open.kind !== "table") {
      open.text += "\n" + line;
    } else {
      begin("paragraph", line);
    }
  }
  return blocks;
}

function inline(parent, text) {
  for (const part of text.split(INLINE)) {
    if (part.length > 2 && part.startsWith("`")) {
      parent.append(element("code", "", part.slice(1, -1)));
    } else if (part.length > 4 && part.startsWith("**")) {
      parent.append(element("strong", "", part.slice(2, -2)));
    } else if (part) {
      parent.append(part);
    }
  }
  return parent;
}

function elementOf({ kind, text, mark }) {
  if (kind === "code") {
    const copy = copies(element("button", "copy", "Copy"), () => text);
    copy.type = "button";
    const head = element("figcaption", "", element("span", "", mark || "code"), copy);
    return element("figure", "code", head, element("pre", "", element("code", "", text)));
  }
  if (kind === "table") return element("pre", "table", text);
  if (kind === "heading") return inline(element("p", "heading"), text);
  if (kind === "item") {
    return element("div", "item", element("span", "mark", mark), inline(element("div"), text));
  }
  return inline(element("p"), text);
}

/** Keeps an element showing a text that grows: only the blocks that changed are made anew. */
export class GrowingText {
  #parent;
  #shown = [];

  constructor(parent) {
    this.#parent = parent;
  }

  show(text) {
    const blocks = blocksOf(text);
    const keys = blocks.map((block) => JSON.stringify(block));
    let same = 0;
    while (same < keys.length && keys[same] === this.#shown[same]) same += 1;
    while (this.#parent.childElementCount > same) this.#parent.lastElementChild.remove();
    this.#parent.append(...blocks.slice(same).map(elementOf));
    this.#shown = keys;
  }
}
