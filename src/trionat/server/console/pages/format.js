// Amounts, rates, times and spans, as people read them; amounts as `trionat status` writes them.

import { locale, t } from "./language.js";

const UNITS = ["B", "kB", "MB", "GB", "TB"];

export function amount(bytes) {
  let value = Number(bytes) || 0;
  let unit = 0;
  while (value >= 999.95 && unit < UNITS.length - 1) {
    value /= 1000;
    unit += 1;
  }
  const digits = unit === 0 ? 0 : 1;
  return `${number(value, digits)} ${UNITS[unit]}`;
}

export function rate(bytes) {
  return `${amount(Math.round(bytes))}/s`;
}

// As logs and the command line have it, in all languages.
const HOURS = { hourCycle: "h23" };

const formats = new Map();

function format(kind, options) {
  const key = kind.name + locale() + JSON.stringify(options);
  if (!formats.has(key)) formats.set(key, new kind(locale(), options));
  return formats.get(key);
}

export function number(value, digits = 0) {
  return format(Intl.NumberFormat, { minimumFractionDigits: digits, maximumFractionDigits: digits }).format(value);
}

/** A span in its two largest units. */
export function span(seconds) {
  let left = Math.max(0, Math.round(seconds));
  const parts = [];
  for (const [unit, size] of [["d", 86400], ["h", 3600], ["m", 60], ["s", 1]]) {
    const count = Math.floor(left / size);
    left -= count * size;
    if (count || (unit === "s" && !parts.length)) parts.push(t(`span.${unit}`, { n: count }));
    else if (parts.length) break;
    if (parts.length === 2) break;
  }
  return parts.join(" ");
}

export function since(moment) {
  return span((Date.now() - Date.parse(moment)) / 1000);
}

export function time(moment) {
  return moment ? format(Intl.DateTimeFormat, { dateStyle: "medium", timeStyle: "short", ...HOURS }).format(new Date(moment)) : "";
}

/** To the second. */
export function exact(moment) {
  return moment ? format(Intl.DateTimeFormat, { dateStyle: "medium", timeStyle: "medium", ...HOURS }).format(new Date(moment)) : "";
}

export function date(moment) {
  return moment ? format(Intl.DateTimeFormat, { dateStyle: "medium" }).format(new Date(moment)) : "";
}

export function clock(moment) {
  return moment ? format(Intl.DateTimeFormat, { hour: "2-digit", minute: "2-digit", second: "2-digit", ...HOURS }).format(new Date(moment)) : "";
}

export function day(moment) {
  return format(Intl.DateTimeFormat, { month: "short", day: "numeric", timeZone: "UTC" }).format(new Date(moment));
}

export function month(text) {
  return format(Intl.DateTimeFormat, { month: "long", year: "numeric", timeZone: "UTC" }).format(new Date(`${text}-01T00:00:00Z`));
}

export function milliseconds(seconds) {
  return seconds === null || seconds === undefined ? "–" : `${number(seconds * 1000, seconds < 0.01 ? 1 : 0)} ms`;
}

const SIZES = { "": 1, k: 1e3, M: 1e6, G: 1e9, T: 1e12, Ki: 2 ** 10, Mi: 2 ** 20, Gi: 2 ** 30, Ti: 2 ** 40 };

/** Read an amount as the command line takes it (10M, 1.5Gi); null is none, NaN is wrong. */
export function readAmount(text) {
  const trimmed = text.trim().replace(/B$/, "").replace(/\s+/g, "");
  if (!trimmed) return null;
  const found = /^(\d{1,15}(?:\.\d{1,12})?)([kKMGT]|[KMGT]i)?$/.exec(trimmed);
  if (!found) return NaN;
  const unit = found[2] === "K" ? "k" : (found[2] ?? "");
  return Math.floor(Number(found[1]) * SIZES[unit]) || NaN;
}

/** Write an amount exactly, in the largest unit that divides it. */
export function writeAmount(bytes) {
  if (bytes === null || bytes === undefined) return "";
  let best = "";
  for (const [unit, size] of Object.entries(SIZES)) if (bytes % size === 0 && size > SIZES[best]) best = unit;
  return `${bytes / SIZES[best]}${best}`;
}

/** Ports as people write them: 60000-60009,60020. */
export function writePorts(ports) {
  const runs = [];
  for (const port of ports ?? []) {
    const last = runs.at(-1);
    if (last && last[1] === port - 1) last[1] = port;
    else runs.push([port, port]);
  }
  return runs.map(([first, last]) => (first === last ? `${first}` : `${first}-${last}`)).join(",");
}

/** Read ports and ranges; null is none, undefined is wrong. */
export function readPorts(text) {
  const ports = new Set();
  for (const part of words(text)) {
    const found = /^(\d{1,5})(?:-(\d{1,5}))?$/.exec(part);
    if (!found) return undefined;
    const first = Number(found[1]);
    const last = Number(found[2] ?? found[1]);
    if (first < 1 || last > 65535 || last < first || last - first > 1023) return undefined;
    for (let port = first; port <= last; port += 1) ports.add(port);
  }
  return ports.size ? [...ports].sort((one, other) => one - other) : null;
}

/** What stands between commas or spaces. */
export function words(text) {
  return text.split(/[\s,，]+/).filter(Boolean);
}
