// Both directions of a visitor in the order in which they came, as text or in hexadecimal. What is long is shown as one scrolls.

import {make} from "./dom.js";
import {t} from "./language.js";
import {amount, clock, duration, visible} from "./words.js";

const STEP = 16 * 1024;
export const AT_ONCE = 4;
const HIDDEN = "•";

export class Bytes {
  constructor(visitor, kind) {
    this.visitor = visitor;
    this.kind = kind;
    this.piece = 0;
    this.offset = null;
    this.text = new Map();
    this.sentinel = make("div", {class: "sentinel"});
    this.element = make("div", {class: `bytes ${kind}`}, this.sentinel);
    this.observer = new IntersectionObserver(entries => {
      if (entries.some(entry => entry.isIntersecting)) this.extend(AT_ONCE);
    }, {root: visitor.place, rootMargin: "600px"});
    this.observer.observe(this.sentinel);
  }

  stop() {
    this.observer.disconnect();
  }

  // Show some more of what is there.
  extend(steps) {
    const {pieces} = this.visitor.details;
    for (let step = 0; step < steps; step++) {
      while (this.piece < pieces.length) {
        const [, start, end] = pieces[this.piece];
        if (this.offset === null) {
          this.sentinel.before(this.heading(pieces[this.piece]));
          this.offset = start;
        }
        if (this.offset < end || this.piece === pieces.length - 1) break;
        this.piece++;
        this.offset = null;
      }
      if (this.piece >= pieces.length) break;
      const [direction, , end] = pieces[this.piece];
      if (this.offset >= end) break;
      const until = Math.min(end, this.offset + STEP);
      this.sentinel.before(this.block(direction, this.offset, until));
      this.offset = until;
    }
    // An observer tells of changes only: if it is still in sight, ask again.
    this.observer.unobserve(this.sentinel);
    if (this.rest()) this.observer.observe(this.sentinel);
    this.sentinel.textContent = this.rest() ? t("rest.bytes") : this.visitor.ending();
  }

  rest() {
    const {pieces} = this.visitor.details;
    return this.piece < pieces.length - 1 || (this.piece < pieces.length && this.offset !== pieces[this.piece][2]);
  }

  all() {
    this.extend(Infinity);
  }

  heading([direction, start, end, seconds]) {
    const {row} = this.visitor;
    return make("div", {class: `piece ${direction}`},
      make("span", {class: "direction"}, t(direction === "received" ? "from_visitor" : "from_service")),
      make("time", {}, clock(row.began + seconds, true)),
      make("span", {}, `+${duration(seconds)}`),
      make("span", {}, amount(end - start)));
  }

  block(direction, start, end) {
    const bytes = this.visitor.bytes[direction].subarray(start, end);
    const hidden = this.visitor.revealed ? [] : this.visitor.details.secrets[direction]
      .filter(([from, to]) => from < end && to > start)
      .map(([from, to]) => [Math.max(0, from - start), Math.min(end, to) - start]);
    const text = this.kind === "hex" ? hexadecimal(bytes, start, hidden) : readable(bytes, hidden);
    return make("pre", {class: direction, tabindex: "0"}, text);
  }
}

function readable(bytes, hidden) {
  const decoder = new TextDecoder();
  let text = "", at = 0;
  for (const [from, to] of [...hidden, [bytes.length, bytes.length]]) {
    text += decoder.decode(bytes.subarray(at, from));
    if (to > from) text += HIDDEN.repeat(8);
    at = to;
  }
  return visible(text.replaceAll("\r\n", "\n"));
}

export function hexadecimal(bytes, start, hidden = []) {
  const width = matchMedia("(max-width: 640px)").matches ? 8 : 16;
  const lines = [];
  const isHidden = new Uint8Array(bytes.length);
  for (const [from, to] of hidden) isHidden.fill(1, from, to);
  for (let at = 0; at < bytes.length; at += width) {
    let left = "", right = "";
    for (let index = at; index < at + width; index++) {
      if (index >= bytes.length) {
        left += "   ";
      } else if (isHidden[index]) {
        left += `${HIDDEN}${HIDDEN} `;
        right += HIDDEN;
      } else {
        const byte = bytes[index];
        left += byte.toString(16).padStart(2, "0") + " ";
        right += byte >= 0x20 && byte < 0x7f ? String.fromCharCode(byte) : "·";
      }
      if (index === at + width / 2 - 1 && width === 16) left += " ";
    }
    lines.push(`${(start + at).toString(16).padStart(8, "0")}  ${left} ${right}`);
  }
  return lines.join("\n");
}
