// The clients that are connected.

import { me, pathOf, remove } from "../api.js";
import { Copyable } from "../components/copy.js";
import { Confirm, Dialog } from "../components/dialog.js";
import { Since } from "../components/since.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { say } from "../components/toast.js";
import { useLiveList } from "../data.js";
import { amount, milliseconds, number, rate, time } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t } from "../language.js";
import { href } from "../router.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";
import { Failed } from "./failed.js";
import { Restriction } from "./restriction.js";
import { Reached, Services, serviceText } from "./services.js";

const keyOf = (session) => session.uid;

export function Sessions({ query }) {
  const list = useLiveList("sessions", "sessions", keyOf);
  const [opened, setOpened] = useState(null);
  const [kicked, setKicked] = useState(null);
  const who = useStore(me);
  const code = useStore(language);
  const columns = useMemo(() => columnsFor(who.admin, setOpened), [who.admin, code]);
  const rows = list.value ?? [];
  const shown = opened !== null && rows.find((session) => session.uid === opened);
  return html`<div class="head"><h1>${t("sessions.title")}</h1></div>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("sessions.title")}
          columns=${columns}
          rows=${rows}
          rowKey=${keyOf}
          sort=${{ key: "since", down: true }}
          initialFilter=${query.get("filter") ?? ""}
          actions=${(session) => html`<button type="button" onClick=${() => setKicked(session)} aria-label=${t("sessions.kick_label", { client: visible(session.client) })}>${t("sessions.kick")}</button>`}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("sessions.none")} text=${t("sessions.none_text")}>
                <${Copyable} text="trionat connect TICKET 8080" label=${t("command")} />
                <a href=${href(who.admin ? "users" : "account")}>${t("sessions.none_ticket")}</a>
              <//>`}
        />`}
    ${shown && html`<${Details} session=${shown} onClose=${() => setOpened(null)} />`}
    ${kicked &&
    html`<${Confirm}
      title=${t("sessions.kick_title", { client: visible(kicked.client) })}
      text=${t("sessions.kick_text")}
      submit=${t("sessions.kick")}
      onSubmit=${() => remove(pathOf("sessions", kicked.uid))}
      onClose=${() => setKicked(null)}
      done=${() => {
        say(t("sessions.kicked", { client: kicked.client }));
        list.reload();
      }}
    />`}`;
}

function columnsFor(admin, open) {
  const columns = [
    {
      key: "client",
      title: t("client"),
      width: 11,
      strong: true,
      value: (session) => session.client,
      cell: (session) => html`<span class="cut">
        <button type="button" class="link" onClick=${() => open(session.uid)} title=${visible(session.client)}><${Peer} text=${session.client} /></button>
        <span class="under">${admin && html`<${Peer} text=${session.user} /> · `}${visible(session.dialect)}</span>
      </span>`,
    },
    { key: "uid", title: t("sessions.uid"), width: 4, end: true, value: (session) => session.uid },
    admin && { key: "user", title: t("user"), unseen: true, value: (session) => session.user },
    { key: "dialect", title: t("dialect"), unseen: true, value: (session) => session.dialect },
    { key: "services", title: t("services"), width: 16, value: (session) => session.services.map(serviceText).join(" "), cell: (session) => html`<${Services} services=${session.services} />` },
    { key: "address", title: t("address"), width: 11, value: (session) => session.address },
    { key: "round_trip", title: t("round_trip"), width: 7, end: true, value: (session) => session.round_trip, cell: (session) => milliseconds(session.round_trip) },
    { key: "since", title: t("since"), width: 7, end: true, value: (session) => session.since, cell: (session) => html`<${Since} moment=${session.since} />` },
    {
      key: "visitors",
      title: t("visitors.title"),
      width: 6,
      end: true,
      value: (session) => session.visitor_count,
      cell: (session) => (session.visitor_count ? html`<a href=${href("visitors", { session: session.uid })}>${number(session.visitor_count)}</a>` : "0"),
    },
    { key: "bytes", title: t("bytes"), width: 7, end: true, value: (session) => session.received + session.sent, cell: (session) => amount(session.received + session.sent) },
    { key: "rate", title: t("rate"), width: 8, end: true, value: (session) => session.rate, cell: (session) => rate(session.rate) },
  ];
  return columns.filter(Boolean);
}

function Details({ session, onClose }) {
  return html`<${Dialog} title=${visible(session.client)} onClose=${onClose} wide>
    <div class="body">
      <dl class="facts">
        <dt>${t("sessions.uid")}</dt>
        <dd>${session.uid}</dd>
        <dt>${t("user")}</dt>
        <dd><${Peer} text=${session.user} /></dd>
        <dt>${t("address")}</dt>
        <dd><code>${visible(session.address)}</code></dd>
        <dt>${t("dialect")}</dt>
        <dd>${visible(session.dialect)}</dd>
        <dt>${t("since")}</dt>
        <dd>${time(session.since)} (<${Since} moment=${session.since} />)</dd>
        <dt>${t("round_trip")}</dt>
        <dd>${milliseconds(session.round_trip)}</dd>
        <dt>${t("sessions.tunnels")}</dt>
        <dd>${t("sessions.tunnels_are", { busy: session.tunnels_busy, idle: session.tunnels_idle })}</dd>
        <dt>${t("received")}</dt>
        <dd>${amount(session.received)}</dd>
        <dt>${t("sent")}</dt>
        <dd>${amount(session.sent)}</dd>
        <dt>${t("rate")}</dt>
        <dd>${rate(session.rate)}</dd>
        ${session.group &&
        html`<dt>${t("sessions.group")}</dt>
          <dd><${Peer} text=${session.group} /></dd>`}
        ${session.restrictions?.length > 0 &&
        html`<dt>${t("sessions.restrictions")}</dt>
          <dd>${session.restrictions.map((each) => html`<div><${Restriction} text=${each} /></div>`)}</dd>`}
        <dt>${t("services")}</dt>
        <dd>
          ${session.services.map(
            (service) => html`<div>
              ${service.name !== service.local && html`<${Peer} text=${service.name} /> `}<${Reached} service=${service} /> → <code>${visible(service.local)}</code>
              ${service.down && html` <${State} kind="bad">${t("sessions.down")}<//>`}
            </div>`,
          )}
        </dd>
      </dl>
    </div>
    <footer>
      <a class="button" href=${href("visitors", { session: session.uid })} onClick=${onClose}>${t("visitors.title")}</a>
    </footer>
  <//>`;
}
