// Numbers, reasons and foreign text in words.

import {t} from "./language.js";

const CONTROL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/g;

// Characters that do not print, or that turn the direction of writing round, as something that prints.
export function visible(text) {
  return text.replace(CONTROL, character => {
    const code = character.charCodeAt(0);
    if (code < 0x20) return String.fromCharCode(0x2400 + code);
    if (code === 0x7f) return "\u2421";
    return `\u27e8U+${code.toString(16).toUpperCase().padStart(4, "0")}\u27e9`;
  });
}

const REASONS = {
  "ended by both sides": "why.both",
  "the visitor reset its connection": "why.visitor_reset",
  "the local service reset its connection": "why.service_reset",
  "answered": "why.answered",
  "answered; the local service has closed its connection": "why.answered_closed",
  "the client stops": "why.stops",
};

// Why a visitor has ended, where it is one of the usual reasons; else in the words of the client's log.
export function reason(why) {
  return Object.hasOwn(REASONS, why) ? t(REASONS[why]) : why;
}

export function amount(bytes) {
  if (bytes < 1000) return `${bytes} B`;
  let value = bytes;
  for (const unit of ["KiB", "MiB", "GiB", "TiB"]) {
    value /= 1024;
    if (value < 1000 || unit === "TiB") return `${value < 10 ? value.toFixed(1) : Math.round(value)} ${unit}`;
  }
  return "";
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 0.001) return `${Math.round(seconds * 1e6)} µs`;
  if (seconds < 1) return `${(seconds * 1000).toFixed(seconds < 0.01 ? 1 : 0)} ms`;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  return `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

export function clock(seconds, withMilliseconds = false) {
  const date = new Date(seconds * 1000);
  const text = [date.getHours(), date.getMinutes(), date.getSeconds()].map(each => String(each).padStart(2, "0")).join(":");
  return withMilliseconds ? `${text}.${String(date.getMilliseconds()).padStart(3, "0")}` : text;
}
