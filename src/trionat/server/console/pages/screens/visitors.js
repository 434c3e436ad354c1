// Who is visiting, live.

import { me, pathOf, remove } from "../api.js";
import { Confirm } from "../components/dialog.js";
import { Since } from "../components/since.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { say } from "../components/toast.js";
import { useLiveList } from "../data.js";
import { amount, rate } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t } from "../language.js";
import { href } from "../router.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";
import { Failed } from "./failed.js";

const keyOf = (visitor) => visitor.number;

export function Visitors({ query }) {
  const list = useLiveList("visitors", "visitors", keyOf);
  const [ended, setEnded] = useState(null);
  const who = useStore(me);
  const code = useStore(language);
  const session = query.get("session");
  const columns = useMemo(() => columnsFor(who.admin), [who.admin, code]);
  const rows = useMemo(() => (list.value ?? []).filter((visitor) => session === null || String(visitor.session) === session), [list.value, session]);
  return html`<div class="head"><h1>${t("visitors.title")}</h1></div>
    ${session !== null && html`<p class="lead">${t("visitors.of_session")} <a href=${href("visitors")}>${t("visitors.all")}</a></p>`}
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("visitors.title")}
          columns=${columns}
          rows=${rows}
          rowKey=${keyOf}
          sort=${{ key: "since", down: true }}
          initialFilter=${query.get("filter") ?? ""}
          actions=${(visitor) => html`<button type="button" onClick=${() => setEnded(visitor)} aria-label=${t("visitors.end_label", { address: visible(visitor.address) })}>${t("visitors.end")}</button>`}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("visitors.none")} text=${t("visitors.none_text")}>
                <a href=${href("points")}>${t("visitors.none_points")}</a>
              <//>`}
        />`}
    ${ended &&
    html`<${Confirm}
      title=${t("visitors.end_title", { address: visible(ended.address) })}
      text=${t("visitors.end_text")}
      submit=${t("visitors.end")}
      onSubmit=${() => remove(pathOf("visitors", ended.number))}
      onClose=${() => setEnded(null)}
      done=${() => {
        say(t("visitors.ended", { address: ended.address }));
        list.reload();
      }}
    />`}`;
}

function columnsFor(admin) {
  return [
    { key: "address", title: t("address"), width: 12, strong: true, value: (visitor) => visitor.address },
    { key: "at", title: t("visitors.at"), width: 12, value: (visitor) => visitor.name ?? String(visitor.port || "") },
    {
      key: "client",
      title: t("client"),
      width: 11,
      value: (visitor) => visitor.client,
      cell: (visitor) => html`<span class="cut">
        <${Peer} text=${visitor.client} />
        ${admin && html`<span class="under"><${Peer} text=${visitor.user} /></span>`}
      </span>`,
    },
    admin && { key: "user", title: t("user"), unseen: true, value: (visitor) => visitor.user },
    {
      key: "state",
      title: t("state"),
      width: 7,
      value: (visitor) => (visitor.waiting ? t("visitors.waiting") : t("visitors.served")),
      cell: (visitor) => (visitor.waiting ? html`<${State} kind="warn">${t("visitors.waiting")}<//>` : html`<${State} kind="good">${t("visitors.served")}<//>`),
    },
    { key: "since", title: t("since"), width: 7, end: true, value: (visitor) => visitor.since, cell: (visitor) => html`<${Since} moment=${visitor.since} />` },
    { key: "received", title: t("received"), width: 7, end: true, value: (visitor) => visitor.received, cell: (visitor) => amount(visitor.received) },
    { key: "sent", title: t("sent"), width: 7, end: true, value: (visitor) => visitor.sent, cell: (visitor) => amount(visitor.sent) },
    { key: "rate", title: t("rate"), width: 8, end: true, value: (visitor) => visitor.rate ?? 0, cell: (visitor) => rate(visitor.rate ?? 0) },
  ].filter(Boolean);
}
