// What peers call themselves, made safe to look at: characters that change how other text looks, or that a terminal obeys, are
// shown instead of being obeyed. `<bdi>` around it keeps right-to-left names from moving what is beside them.

import { html } from "./html.js";

// C1 controls, direction marks, what has no width and could make two names look the same, line separators, tags, lone surrogates.
// A joiner (U+200C, U+200D) is left alone: scripts and emoji need it.
const HIDDEN =
  /[\u0000-\u001f\u007f-\u009f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\u3164\ufeff\uffa0\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]|\udb40[\udc00-\udc7f]/g;

export function visible(value) {
  return String(value ?? "").replace(HIDDEN, (found) => {
    const code = found.codePointAt(0);
    if (code < 0x20) return String.fromCodePoint(0x2400 + code);
    if (code === 0x7f) return "␡";
    return `⟪U+${code.toString(16).toUpperCase().padStart(4, "0")}⟫`;
  });
}

/** A name or another text of a peer. */
export function Peer({ text }) {
  return html`<bdi>${visible(text)}</bdi>`;
}
