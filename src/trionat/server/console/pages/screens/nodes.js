// The processes and servers that serve together, and sending the clients of this one elsewhere.

import { post } from "../api.js";
import { Confirm } from "../components/dialog.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { say } from "../components/toast.js";
import { useList } from "../data.js";
import { number, span } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t, tOr } from "../language.js";
import { server } from "../live.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

const count = (value) => (value === null || value === undefined ? "–" : number(value));

export function Nodes() {
  const list = useList("nodes", 5);
  const view = useStore(server);
  const [draining, setDraining] = useState(false);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "name", title: t("nodes.name"), strong: true, width: 11, value: (node) => node.name },
      { key: "state", title: t("state"), width: 9, value: (node) => t(`nodes.${stateOf(node)}`), cell: (node) => html`<${State} kind=${{ up: "good", drained: "warn", silent: "bad" }[stateOf(node)]}>${t(`nodes.${stateOf(node)}`)}<//>` },
      { key: "address", title: t("address"), width: 12, value: (node) => node.address },
      { key: "public", title: t("nodes.public"), width: 12, value: (node) => node.public ?? "" },
      { key: "sessions", title: t("sessions.title"), width: 7, end: true, value: (node) => node.sessions, cell: (node) => count(node.sessions) },
      { key: "visitors", title: t("visitors.title"), width: 7, end: true, value: (node) => node.visitors, cell: (node) => count(node.visitors) },
      { key: "silent", title: t("nodes.heard"), width: 8, end: true, value: (node) => node.silent, cell: (node) => (node.silent === null || node.silent === undefined ? "–" : span(node.silent)) },
    ],
    [code],
  );
  const workers = view?.whole?.workers ?? [];
  return html`<div class="head">
      <h1>${t("nodes.title")}</h1>
      <span class="gap"></span>
      ${view?.drained ? html`<${State} kind="warn">${t("overview.drained")}<//>` : html`<button type="button" onClick=${() => setDraining(true)}>${t("nodes.drain")}</button>`}
    </div>
    ${view?.whole?.cluster?.away && html`<p class="error" role="alert">${t("nodes.away")} ${visible(view.whole.cluster.away)}</p>`}
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("nodes.title")}
          columns=${columns}
          rows=${list.value ?? []}
          rowKey=${(node) => node.name}
          empty=${list.loading ? html`<p class="waiting">${t("loading")}</p>` : html`<${Empty} title=${t("nodes.none")} text=${t("nodes.none_text")} />`}
        />`}
    ${workers.length > 0 && html`<${Workers} workers=${workers} />`}
    ${draining &&
    html`<${Confirm}
      title=${t("nodes.drain_title")}
      text=${t("nodes.drain_text")}
      submit=${t("nodes.drain")}
      onSubmit=${() => post("drain")}
      onClose=${() => setDraining(false)}
      done=${() => say(t("nodes.draining"))}
    />`}`;
}

function stateOf(node) {
  if (node.drained) return "drained";
  return node.silent > 15 ? "silent" : "up";
}

function Workers({ workers }) {
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "name", title: t("nodes.worker"), strong: true, value: (worker) => worker.name },
      { key: "state", title: t("state"), value: (worker) => worker.state, cell: (worker) => html`<${State} kind=${worker.state === "up" ? "good" : "warn"}>${tOr(`worker.${worker.state}`, visible(worker.state))}<//>` },
      { key: "pid", title: t("nodes.pid"), end: true, value: (worker) => worker.pid, cell: (worker) => worker.pid ?? "–" },
      { key: "sessions", title: t("sessions.title"), end: true, value: (worker) => worker.sessions, cell: (worker) => number(worker.sessions) },
      { key: "restarts", title: t("nodes.restarts"), end: true, value: (worker) => worker.restarts, cell: (worker) => number(worker.restarts) },
    ],
    [code],
  );
  return html`<section class="section">
    <h2>${t("nodes.workers")}</h2>
    <${Table} label=${t("nodes.workers")} columns=${columns} rows=${workers} rowKey=${(worker) => worker.name} filter=${false} />
  </section>`;
}
