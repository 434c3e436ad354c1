// A QR code of a text, dark on light whatever the theme, as cameras want it.

import { html, useMemo } from "../html.js";
import { generate } from "../vendor/lean-qr.js";

const QUIET = 4;

export function QrCode({ text, label }) {
  const [size, path] = useMemo(() => draw(text), [text]);
  if (!size) return null;
  return html`<svg class="qr" role="img" aria-label=${label} viewBox="0 0 ${size} ${size}" shape-rendering="crispEdges">
    <rect width=${size} height=${size} fill="#fff" />
    <path d=${path} fill="#000" />
  </svg>`;
}

function draw(text) {
  let code;
  try {
    code = generate(text);
  } catch {
    return [0, ""]; // longer than any code can hold
  }
  let path = "";
  for (let y = 0; y < code.size; y += 1) {
    for (let x = 0; x < code.size; x += 1) {
      if (!code.get(x, y)) continue;
      let end = x + 1;
      while (code.get(end, y)) end += 1;
      path += `M${x + QUIET} ${y + QUIET}h${end - x}v1h-${end - x}z`;
      x = end;
    }
  }
  return [code.size + 2 * QUIET, path];
}
