// Clients that wait for a place, and what is kept for those that were lost: parts of the screen of names and ports.

import { Since } from "../components/since.js";
import { Empty } from "../components/state.js";
import { Table } from "../components/table.js";
import { useList } from "../data.js";
import { number, span, writePorts } from "../format.js";
import { html, useId, useMemo } from "../html.js";
import { language, t } from "../language.js";
import { useStore } from "../store.js";
import { Failed } from "./failed.js";

const EVERY = 5;

export function Queue() {
  const list = useList("queue", EVERY);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "position", title: t("queue.position"), width: 6, value: (row) => row.position, cell: (row) => number(row.position) },
      { key: "client", title: t("client"), width: 14, strong: true, value: (row) => row.client },
      { key: "user", title: t("user"), width: 10, value: (row) => row.user },
      { key: "address", title: t("address"), width: 12, value: (row) => row.address },
      { key: "since", title: t("since"), width: 8, end: true, value: (row) => row.since, cell: (row) => html`<${Since} moment=${row.since} />` },
    ],
    [code],
  );
  return html`<${Part} name="queue" list=${list}>
    <${Table}
      label=${t("queue.title")}
      columns=${columns}
      rows=${list.value ?? []}
      rowKey=${(row) => `${row.position} ${row.since} ${row.address}`}
      empty=${list.loading ? html`<p class="waiting">${t("loading")}</p>` : html`<${Empty} title=${t("queue.none")} text=${t("queue.none_text")} />`}
    />
  <//>`;
}

export function Reserved() {
  const list = useList("reserved", EVERY);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "points", title: t("points.title"), width: 16, strong: true, wrap: true, value: placesOf },
      { key: "user", title: t("user"), width: 10, value: (row) => row.user },
      { key: "group", title: t("sessions.group"), width: 9, value: (row) => row.group ?? "" },
      { key: "since", title: t("reserved.lost"), width: 9, end: true, value: (row) => row.since, cell: (row) => html`<${Since} moment=${row.since} />` },
      { key: "remaining", title: t("reserved.remaining"), width: 9, end: true, value: (row) => row.remaining, cell: (row) => span(row.remaining) },
      { key: "waiting", title: t("reserved.waiting"), width: 8, end: true, value: (row) => row.waiting, cell: (row) => number(row.waiting) },
    ],
    [code],
  );
  return html`<${Part} name="reserved" list=${list}>
    <${Table}
      label=${t("reserved.title")}
      columns=${columns}
      rows=${list.value ?? []}
      rowKey=${(row) => row.number}
      sort=${{ key: "remaining", down: false }}
      empty=${list.loading ? html`<p class="waiting">${t("loading")}</p>` : html`<${Empty} title=${t("reserved.none")} text=${t("reserved.none_text")} />`}
    />
  <//>`;
}

function placesOf(row) {
  return [writePorts(row.ports), ...row.names].filter(Boolean).join(", ");
}

function Part({ name, list, children }) {
  const id = useId();
  return html`<section class="section" aria-labelledby=${id}>
    <h2 id=${id}>${t(`${name}.title`)}</h2>
    ${list.error && !list.value ? html`<${Failed} list=${list} />` : children}
  </section>`;
}
