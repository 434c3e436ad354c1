// What a ticket is narrowed to, in plain words.

import { exact } from "../format.js";
import { html } from "../html.js";
import { t } from "../language.js";
import { visible } from "../visible.js";

/** One restriction, as the API has it: `only names=… ports=…`, or `until 2026-11-29T12:00:00Z`. One of another form is shown as it is. */
export function Restriction({ text }) {
  const until = /^until (\S+)$/.exec(text);
  if (until && !Number.isNaN(Date.parse(until[1]))) return html`<span>${t("restriction.until", { time: exact(until[1]) })}</span>`;
  const only = /^only(?: names=(\S+))?(?: ports=(\S+))?$/.exec(text);
  if (!only) return html`<code>${visible(text)}</code>`;
  const spaced = (list) => visible(list.replaceAll(",", ", "));
  return html`<span>
    ${only[1] ? t("restriction.names", { names: spaced(only[1]) }) : t("restriction.no_names")}${" · "}${only[2] ? t("restriction.ports", { ports: spaced(only[2]) }) : t("restriction.no_ports")}
  </span>`;
}
