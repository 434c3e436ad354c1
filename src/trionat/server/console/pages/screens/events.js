// What has happened, as it does, and who else is told of it.

import { post } from "../api.js";
import { Copyable } from "../components/copy.js";
import { Dialog } from "../components/dialog.js";
import { More } from "../components/more.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { explain } from "../components/toast.js";
import { useAnswer, usePages } from "../data.js";
import { amount, exact, month, number, span, time } from "../format.js";
import { html, useEffect, useId, useMemo, useRef, useState } from "../html.js";
import { language, t, tOr } from "../language.js";
import { follow, useOpened } from "../live.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";
import { Failed } from "./failed.js";

// By kind, as the filter has them; each with how good it is.
const TYPES = {
  session: { "session.up": "good", "session.lost": "bad", "session.back": "good", "session.ended": "" },
  quota: { "quota.warning": "warn", "quota.reached": "bad" },
  ban: { ban: "warn", "ban.lifted": "" },
  certificate: { "certificate.renewed": "good", "certificate.failing": "bad", "certificate.expiring": "bad" },
  node: { "node.up": "good", "node.gone": "bad" },
  account: { "account.added": "", "account.changed": "", "account.removed": "", "account.expired": "warn" },
  server: { "server.up": "good", "server.stopping": "warn" },
};
const LEFT_OUT = "events.left_out"; // for what there was too much of: nobody can ask for these alone
const KINDS = new Map([...Object.values(TYPES).flatMap(Object.entries), [LEFT_OUT, "warn"]]);
const MOST_NEW = 10_000; // as many as the server keeps
const RELOAD_AFTER = 1000; // what came is fetched anew then, so that it does not grow for ever
const DRAW_EVERY = 250;

export function Events() {
  const [types, setTypes] = useState("");
  const list = useEvents(types);
  const told = useAnswer("events/webhooks", 5);
  const webhooks = told.value?.items;
  const [opened, setOpened] = useState(null);
  const [doing, setDoing] = useState("");
  const close = () => setDoing("");
  const code = useStore(language);
  const columns = useMemo(() => columnsFor(setOpened), [code]);
  const some = webhooks?.length > 0;
  return html`<div class="head">
      <h1>${t("events.title")}</h1>
      <span class="gap"></span>
      ${webhooks && html`<button type="button" onClick=${() => setDoing(some ? "test" : "help")}>${some ? t("events.test") : t("events.help")}</button>`}
    </div>
    ${some && html`<${Webhooks} webhooks=${webhooks} />`}
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
            label=${t("events.title")}
            columns=${columns}
            rows=${list.value ?? []}
            rowKey=${(row) => row.number}
            sort=${{ key: "time", down: true }}
            extra=${html`<${Filter} types=${types} setTypes=${setTypes} />`}
            empty=${list.loading
              ? html`<p class="waiting">${t("loading")}</p>`
              : html`<${Empty} title=${types ? t("table.none") : t("events.none")} text=${types ? "" : t("events.none_text")}>
                  ${types && html`<button type="button" onClick=${() => setTypes("")}>${t("events.all")}</button>`}
                <//>`}
          />
          <${More} list=${list} />`}
    ${opened && html`<${Details} row=${opened} onClose=${() => setOpened(null)} />`}
    ${doing === "test" && html`<${Test} onClose=${close} done=${told.reload} />`}
    ${doing === "help" && html`<${Help} onClose=${close} />`}`;
}

/** The events of some types, the newest first, with those that come. Drawn a few times a second, however many do. */
function useEvents(types) {
  const list = usePages(`events${types ? `?types=${types}` : ""}`);
  const came = useRef([]);
  const [news, setNews] = useState([]);
  const opened = useOpened();
  useEffect(() => {
    let timer = 0;
    const draw = () => {
      timer = 0;
      setNews(came.current);
    };
    came.current = [];
    draw();
    const end = follow("event", (_, row) => {
      if (!isAmong(row.type, types)) return;
      came.current = [row, ...came.current].slice(0, MOST_NEW);
      if (came.current.length % RELOAD_AFTER === 0) list.reload();
      timer ||= setTimeout(draw, DRAW_EVERY);
    });
    return () => {
      clearTimeout(timer);
      end();
    };
  }, [opened, types, list.reload]);
  const newest = list.value?.[0]?.number ?? 0;
  useEffect(() => {
    came.current = came.current.filter((row) => row.number > newest); // the others were fetched meanwhile
  }, [newest]);
  const value = useMemo(() => list.value && [...news.filter((row) => row.number > newest), ...list.value], [list.value, news]);
  return { ...list, value };
}

function isAmong(type, types) {
  return !types || types.split(",").some((each) => each === type || (each.endsWith(".*") && `${type}.`.startsWith(each.slice(0, -1))));
}

function Filter({ types, setTypes }) {
  return html`<select aria-label=${t("events.type")} value=${types} onChange=${(event) => setTypes(event.target.value)}>
    <option value="">${t("events.all")}</option>
    ${Object.entries(TYPES).map(
      ([group, each]) => html`<optgroup label=${t(`types.${group}`)}>
        <option value=${Object.keys(each).join(",")}>${t("events.all_of", { kind: t(`types.${group}`) })}</option>
        ${Object.keys(each).map((type) => html`<option value=${type}>${t(`type.${type}`)}</option>`)}
      </optgroup>`,
    )}
  </select>`;
}

function columnsFor(open) {
  const texts = new WeakMap();
  const textOf = (row) => {
    if (!texts.has(row)) texts.set(row, wordsOf(row).map(({ text }) => text).join(""));
    return texts.get(row);
  };
  return [
    { key: "time", title: t("time"), width: 14, value: (row) => row.time, cell: (row) => html`<span class="nowrap">${exact(row.time)}</span>` },
    {
      key: "type",
      title: t("events.type"),
      width: 11,
      strong: true,
      value: (row) => tOr(`type.${row.type}`, row.type),
      cell: (row) => html`<${State} kind=${KINDS.get(row.type) ?? ""}><button type="button" class="link" onClick=${() => open(row)}>${tOr(`type.${row.type}`, visible(row.type))}</button><//>`,
    },
    { key: "code", title: t("events.code"), unseen: true, value: (row) => row.type },
    { key: "text", title: t("events.text"), width: 35, wrap: true, value: textOf, cell: (row) => html`<${Words} row=${row} />` },
  ];
}

const WRITE = new Map([
  ["points", (points) => points.join(", ")],
  ["seconds", span],
  ["grace", span],
  ["used", amount],
  ["quota", amount],
  ["relayed", amount],
  ["month", month],
  ["expires_at", time],
  ["count", number],
  ["types", (types) => Object.entries(types).map(([type, count]) => `${tOr(`type.${type}`, type)}: ${number(count)}`).join(", ")],
]);

function write(name, value) {
  if (value === null || value === undefined || value === "") return "–";
  try {
    return String((WRITE.get(name) ?? String)(value));
  } catch {
    return String(value); // it is of another form than these pages know
  }
}

/** What an event says, in parts: those that are values stand apart, so that none of them can turn the others around. What these pages do not know is said as the server does. */
function wordsOf(row) {
  const parts = tOr(`event.${row.type}`, "").split(/\{(\w+)\}/);
  const known = parts.every((part, index) => index % 2 === 0 || Object.hasOwn(row.data, part));
  if (parts.length < 2 || !known) return [{ text: row.text, value: true }];
  return parts.map((part, index) => (index % 2 ? { text: write(part, row.data[part]), value: true } : { text: part }));
}

function Words({ row }) {
  return html`<span>${wordsOf(row).map(({ text, value }) => (value ? html`<${Peer} text=${text} />` : text))}</span>`;
}

/** A field as programs get it, and as people read it where that is more. */
function inFull(name, value) {
  const plain = typeof value === "string" ? value : JSON.stringify(value);
  const read = WRITE.has(name) && value !== null ? write(name, value) : plain;
  return read === plain || typeof value !== "number" ? plain : `${plain} (${read})`;
}

function Details({ row, onClose }) {
  return html`<${Dialog} title=${tOr(`type.${row.type}`, visible(row.type))} onClose=${onClose} wide>
    <div class="body steps">
      <p><${Words} row=${row} /></p>
      <dl class="facts">
        <dt>${t("time")}</dt>
        <dd>${exact(row.time)}</dd>
        <dt>${t("events.code")}</dt>
        <dd><code>${visible(row.type)}</code></dd>
        <dt>${t("events.number")}</dt>
        <dd>${row.number}</dd>
        <dt>${t("overview.server")}</dt>
        <dd><${Peer} text=${row.server} /></dd>
        ${Object.entries(row.data).map(
          ([name, value]) => html`<dt><code>${visible(name)}</code></dt>
            <dd><${Peer} text=${inFull(name, value)} /></dd>`,
        )}
      </dl>
    </div>
    <footer><button type="button" class="primary" onClick=${onClose}>${t("close")}</button></footer>
  <//>`;
}

const STATES = { well: "good", failing: "bad", stopped: "bad" };

function Webhooks({ webhooks }) {
  const id = useId();
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "url", title: t("webhooks.url"), strong: true, width: 16, value: (row) => row.url },
      { key: "template", title: t("webhooks.template"), width: 7, value: (row) => row.template },
      { key: "types", title: t("webhooks.types"), width: 14, wrap: true, value: (row) => row.types.join(", ") || t("events.all") },
      {
        key: "state",
        title: t("state"),
        width: 18,
        wrap: true,
        value: (row) => t(`webhooks.${row.state}`),
        cell: (row) => html`<span>
          <${State} kind=${STATES[row.state]}>${tOr(`webhooks.${row.state}`, visible(row.state))}<//>
          ${row.reason && html`<span class="under"><${Peer} text=${row.reason} />${row.failures > 1 && ` (${t("webhooks.failures", { n: number(row.failures) })})`}</span>`}
        </span>`,
      },
      { key: "behind", title: t("webhooks.behind"), width: 7, end: true, value: (row) => row.behind, cell: (row) => number(row.behind) },
      { key: "next_try", title: t("certificates.retry"), width: 10, value: (row) => row.next_try, cell: (row) => (row.next_try ? exact(row.next_try) : "–") },
    ],
    [code],
  );
  return html`<section class="above" aria-labelledby=${id}>
    <h2 id=${id}>${t("webhooks.title")}</h2>
    <${Table} label=${t("webhooks.title")} columns=${columns} rows=${webhooks} rowKey=${(row) => webhooks.indexOf(row)} filter=${false} />
  </section>`;
}

function Test({ onClose, done }) {
  const [outcomes, setOutcomes] = useState(null);
  const [error, setError] = useState(null);
  const begun = useRef(false);
  useEffect(() => {
    if (begun.current) return;
    begun.current = true;
    post("events/test").then(
      (answer) => {
        setOutcomes(answer.items);
        done();
      },
      (problem) => setError(problem),
    );
  }, []);
  return html`<${Dialog} title=${t("events.test")} onClose=${onClose} wide>
    <div class="body steps" role="status">
      ${error
        ? html`<p class="error" role="alert">${visible(explain(error))}</p>`
        : outcomes === null
          ? html`<p>${t("working")}</p>`
          : outcomes.map(
              (each) => html`<div>
                <b><${Peer} text=${each.url} /></b>
                <div>${each.taken ? html`<${State} kind="good">${t("webhooks.taken")}<//>` : html`<${State} kind="bad">${t("webhooks.refused")}<//>`}</div>
                ${each.reason && html`<div><${Peer} text=${each.reason} /></div>`}
              </div>`,
            )}
    </div>
    <footer><button type="button" class="primary" onClick=${onClose}>${t("close")}</button></footer>
  <//>`;
}

function Help({ onClose }) {
  const lines = "Events:\n  - Url: https://hooks.slack.com/services/…\n    Template: slack";
  return html`<${Dialog} title=${t("events.help")} onClose=${onClose}>
    <div class="body steps">
      <p>${t("events.help_text")}</p>
      <textarea class="mono" rows="3" readonly aria-label=${t("events.help_lines")} onFocus=${(event) => event.target.select()}>${lines}</textarea>
      <p>${t("events.help_then")}</p>
      <${Copyable} text="trionat events test --config server.yml" label=${t("command")} />
    </div>
    <footer><button type="button" class="primary" onClick=${onClose}>${t("close")}</button></footer>
  <//>`;
}
