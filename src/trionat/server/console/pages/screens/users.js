// The accounts: who may log in, until when, and what each may use.

import { me, patch, pathOf, post, put, remove } from "../api.js";
import { Bar } from "../components/bar.js";
import { Copyable } from "../components/copy.js";
import { Confirm, Dialog, FormDialog } from "../components/dialog.js";
import { Check, Field } from "../components/field.js";
import { newPassword, SHORTEST_PASSWORD } from "../components/password.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { complain, say } from "../components/toast.js";
import { useLiveList } from "../data.js";
import { amount, date, number, readAmount, readPorts, time, words, writeAmount, writePorts } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t } from "../language.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";
import { Failed } from "./failed.js";
import { TicketDialog, VoidTickets } from "./ticket.js";

const keyOf = (user) => user.name;

export function Users() {
  const list = useLiveList("users", "users", keyOf);
  const [doing, setDoing] = useState(null);
  const who = useStore(me);
  const code = useStore(language);
  const rows = list.value ?? [];
  const close = () => setDoing(null);
  const columns = useMemo(() => columnsFor((user) => setDoing({ what: "user", name: user.name })), [code]);
  const user = doing?.name !== undefined && rows.find((each) => each.name === doing.name);
  const toggle = async (user) => {
    try {
      await patch(pathOf("users", user.name), { disabled: !user.disabled });
      say(t(user.disabled ? "users.enabled" : "users.was_disabled", { name: user.name }));
      list.reload();
    } catch (error) {
      complain(error);
    }
  };
  return html`<div class="head">
      <h1>${t("users.title")}</h1>
      <span class="gap"></span>
      <button type="button" class="primary" onClick=${() => setDoing({ what: "add" })}>${t("users.add")}</button>
    </div>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("users.title")}
          columns=${columns}
          rows=${rows}
          rowKey=${keyOf}
          actions=${(user) => html`<button type="button" onClick=${() => setDoing({ what: "ticket", name: user.name })} aria-label=${t("users.ticket_label", { name: visible(user.name) })}>${t("users.ticket")}</button>
            ${user.name !== who.username &&
            html`<button type="button" onClick=${() => toggle(user)} aria-label=${t(user.disabled ? "users.enable_label" : "users.disable_label", { name: visible(user.name) })}>${t(user.disabled ? "users.enable" : "users.disable")}</button>`}`}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("users.none")} text=${t("users.none_text")}>
                <button type="button" class="primary" onClick=${() => setDoing({ what: "add" })}>${t("users.add")}</button>
                <${Copyable} text="trionat user add NAME" label=${t("command")} />
              <//>`}
        />`}
    ${doing?.what === "add" && html`<${AddUser} onClose=${close} done=${list.reload} show=${(name) => setDoing({ what: "ticket", name })} />`}
    ${doing?.what === "ticket" && html`<${TicketDialog} name=${doing.name} onClose=${close} />`}
    ${doing?.what === "void" && html`<${VoidTickets} name=${doing.name} onClose=${close} />`}
    ${user && doing.what === "user" && html`<${UserDialog} user=${user} onClose=${close} toggle=${toggle} go=${(what) => setDoing({ what, name: user.name })} />`}
    ${user && doing.what === "limits" && html`<${LimitsDialog} user=${user} onClose=${close} done=${list.reload} />`}
    ${user && doing.what === "password" && html`<${PasswordDialog} user=${user} onClose=${close} />`}
    ${user &&
    doing.what === "remove" &&
    html`<${Confirm}
      title=${t("users.remove_title", { name: visible(user.name) })}
      text=${t("users.remove_text")}
      submit=${t("users.remove")}
      onSubmit=${() => remove(pathOf("users", user.name))}
      onClose=${close}
      done=${() => {
        say(t("users.removed", { name: user.name }));
        list.reload();
      }}
    />`}
    ${user &&
    doing.what === "kick" &&
    html`<${Confirm}
      title=${t("users.kick_title", { name: visible(user.name) })}
      text=${t("users.kick_text")}
      submit=${t("users.kick")}
      onSubmit=${() => post(pathOf("users", user.name, "kick"))}
      onClose=${close}
      done=${() => say(t("users.kicked", { name: user.name }))}
    />`}`;
}

function columnsFor(open) {
  return [
    {
      key: "name",
      title: t("user"),
      width: 12,
      strong: true,
      value: (user) => user.name,
      cell: (user) => html`<span class="cut">
        <button type="button" class="link" onClick=${() => open(user)} title=${visible(user.name)}><${Peer} text=${user.name} /></button>
        ${user.admin && html`<span class="under">${t("users.admin")}</span>`}
        ${!user.has_password && html`<span class="under">${t("users.no_password")}</span>`}
      </span>`,
    },
    { key: "state", title: t("state"), width: 8, value: (user) => t(`users.${stateOf(user)}`), cell: (user) => html`<${UserState} user=${user} />` },
    { key: "quota", title: t("users.month"), width: 13, value: (user) => user.used_this_month ?? 0, cell: (user) => html`<${Quota} user=${user} />` },
    { key: "limits", title: t("users.limits"), width: 14, wrap: true, value: (user) => limitsText(user.limits), cell: (user) => html`<span class="soft">${visible(limitsText(user.limits)) || t("users.no_limits")}</span>` },
    { key: "expires_at", title: t("users.expires"), width: 10, value: (user) => user.expires_at, cell: (user) => (user.expires_at ? html`<${Day} moment=${user.expires_at} />` : html`<span class="soft">${t("never")}</span>`) },
    { key: "created_at", title: t("users.created"), width: 8, value: (user) => user.created_at, cell: (user) => html`<${Day} moment=${user.created_at} />` },
  ];
}

function Day({ moment }) {
  return html`<span title=${time(moment)}>${date(moment)}</span>`;
}

function stateOf(user) {
  if (user.damage) return "damaged";
  if (user.disabled) return "disabled";
  if (user.expired) return "expired";
  const quota = user.limits?.monthly_quota;
  return quota && user.used_this_month >= quota ? "used_up" : "active";
}

export function UserState({ user }) {
  const state = stateOf(user);
  return html`<${State} kind=${{ active: "good", disabled: "bad", expired: "warn", used_up: "warn", damaged: "bad" }[state]}>${t(`users.${state}`)}<//>`;
}

export function Quota({ user }) {
  const used = user.used_this_month ?? 0;
  const quota = user.limits?.monthly_quota;
  if (!quota) return html`<span>${amount(used)}</span>`;
  return html`<${Bar} used=${used} limit=${quota} label=${t("users.quota_label", { name: visible(user.name) })} text=${`${amount(used)} / ${amount(quota)}`} />`;
}

/** The limits of an account in a line; what has no limit is left out. */
export function limitsText(limits) {
  const ports = limits?.visit_ports;
  const parts = [];
  if (ports) parts.push(t("limits.ports", { n: writePorts(ports) }));
  if (limits?.names) parts.push(t("limits.names", { n: limits.names.join(", ") }));
  if (limits?.sessions) parts.push(t("limits.sessions", { n: number(limits.sessions) }));
  if (limits?.visitors) parts.push(t("limits.visitors", { n: number(limits.visitors) }));
  if (limits?.bandwidth) parts.push(`${amount(limits.bandwidth)}/s`);
  if (limits?.monthly_quota) parts.push(t("limits.quota", { n: amount(limits.monthly_quota) }));
  if (limits?.allow_visitors) parts.push(t("limits.allow", { n: limits.allow_visitors.join(", ") }));
  if (limits?.deny_visitors) parts.push(t("limits.deny", { n: limits.deny_visitors.join(", ") }));
  return parts.join(" · ");
}

function AddUser({ onClose, done, show }) {
  const [without, setWithout] = useState(false);
  const add = async (form) => {
    const name = form.get("name");
    const values = { name, password: without ? null : newPassword(form, "password", "again") };
    if (form.get("admin")) values.admin = true;
    if (form.get("expires")) values.expires_at = new Date(form.get("expires")).toISOString();
    await post("users", values);
    return name;
  };
  return html`<${FormDialog}
    title=${t("users.add")}
    submit=${t("users.add_submit")}
    onSubmit=${add}
    onClose=${onClose}
    done=${(name) => {
      say(t(without ? "users.added_without" : "users.added", { name }));
      done();
      show(name);
    }}
  >
    <${Field} label=${t("login.name")} name="name" required maxlength="64" autofocus />
    ${!without &&
    html`<${Field} label=${t("login.password")} name="password" type="password" autocomplete="new-password" required help=${`${t("password.rule", { n: SHORTEST_PASSWORD })} ${t("users.password_help")}`} />
      <${Field} label=${t("password.again")} name="again" type="password" autocomplete="new-password" required />`}
    <${Check} label=${t("users.without_password")} name="without" help=${t("users.without_password_help")} onChange=${(event) => setWithout(event.target.checked)} />
    <${Field} label=${t("users.expires")} name="expires" type="datetime-local" help=${t("users.expires_help")} />
    <${Check} label=${t("users.admin")} name="admin" help=${t("users.admin_help")} />
  <//>`;
}

function UserDialog({ user, onClose, toggle, go }) {
  const self = useStore(me).username === user.name;
  return html`<${Dialog} title=${visible(user.name)} onClose=${onClose} wide>
    <div class="body">
      <dl class="facts">
        <dt>${t("state")}</dt>
        <dd><${UserState} user=${user} />${user.damage && html` <span>${visible(user.damage)}</span>`}</dd>
        <dt>${t("users.role")}</dt>
        <dd>${user.admin ? t("users.admin") : t("users.plain")}${!user.has_password && `, ${t("users.no_password")}`}</dd>
        <dt>${t("users.month")}</dt>
        <dd><${Quota} user=${user} /></dd>
        <dt>${t("users.limits")}</dt>
        <dd>${visible(limitsText(user.limits)) || t("users.no_limits")}</dd>
        <dt>${t("users.expires")}</dt>
        <dd>${user.expires_at ? time(user.expires_at) : t("never")}</dd>
        <dt>${t("users.created")}</dt>
        <dd>${time(user.created_at) || "–"}</dd>
      </dl>
      <div class="actions-of section">
        <button type="button" onClick=${() => go("ticket")}>${t("users.ticket")}</button>
        <button type="button" onClick=${() => go("limits")}>${t("users.edit")}</button>
        <button type="button" onClick=${() => go("password")}>${t("users.password")}</button>
        ${!self && html`<button type="button" onClick=${() => toggle(user)}>${t(user.disabled ? "users.enable" : "users.disable")}</button>`}
        <button type="button" onClick=${() => go("kick")}>${t("users.kick")}</button>
        <button type="button" onClick=${() => go("void")}>${t("ticket.void")}</button>
        ${!self && html`<button type="button" onClick=${() => go("remove")}>${t("users.remove")}</button>`}
      </div>
    </div>
    <footer><button type="button" class="primary" onClick=${onClose}>${t("done")}</button></footer>
  <//>`;
}

function LimitsDialog({ user, onClose, done }) {
  const limits = user.limits;
  const [before] = useState(user); // what is sent is what differs from what was shown at first
  const self = useStore(me).username === user.name; // nobody takes his own rights away
  const save = async (form) => {
    const ports = readPorts(form.get("ports"));
    if (ports === undefined) throw new Error(t("wrong_ports"));
    const amounts = {};
    for (const key of ["bandwidth", "monthly_quota"]) {
      amounts[key] = readAmount(form.get(key));
      if (Number.isNaN(amounts[key])) throw new Error(t("wrong_amount", { text: form.get(key) }));
    }
    const list = (key) => (words(form.get(key)).length ? words(form.get(key)) : null);
    const whole = (key) => (form.get(key) ? Number(form.get(key)) : null);
    const wished = {
      visit_ports: ports,
      names: list("names"),
      sessions: whole("sessions"),
      visitors: whole("visitors"),
      ...amounts,
      allow_visitors: list("allow_visitors"),
      deny_visitors: list("deny_visitors"),
    };
    const values = {};
    const changed = Object.entries(wished).filter(([key, value]) => user.damage || !isSame(value, before.limits[key]));
    if (changed.length) values.limits = Object.fromEntries(changed);
    if (form.get("expires") !== localTime(before.expires_at)) values.expires_at = form.get("expires") ? new Date(form.get("expires")).toISOString() : null;
    if (!self && Boolean(form.get("admin")) !== before.admin) values.admin = !before.admin;
    await patch(pathOf("users", user.name), values);
  };
  return html`<${FormDialog}
    title=${t("users.edit_title", { name: visible(user.name) })}
    submit=${t("save")}
    wide
    onSubmit=${save}
    onClose=${onClose}
    done=${() => {
      say(t("users.saved", { name: user.name }));
      done();
    }}
  >
    <p class="help">${t("users.edit_help")}</p>
    <div class="fields">
      <${Field} label=${t("edit.quota")} name="monthly_quota" value=${writeAmount(limits.monthly_quota)} placeholder="100G" help=${t("edit.quota_help")} />
      <${Field} label=${t("edit.bandwidth")} name="bandwidth" value=${writeAmount(limits.bandwidth)} placeholder="10M" help=${t("edit.bandwidth_help")} />
      <${Field} label=${t("edit.sessions")} name="sessions" type="number" min="1" max="1000000" value=${limits.sessions ?? ""} />
      <${Field} label=${t("edit.visitors")} name="visitors" type="number" min="1" max="1000000" value=${limits.visitors ?? ""} />
      <${Field} label=${t("edit.ports")} name="ports" value=${writePorts(limits.visit_ports)} placeholder="60000-60009,60020" />
      <${Field} label=${t("edit.names")} name="names" value=${(limits.names ?? []).join(", ")} placeholder="shop-*, blog" />
      <${Field} label=${t("edit.allow")} name="allow_visitors" value=${(limits.allow_visitors ?? []).join(", ")} placeholder="192.0.2.0/24" />
      <${Field} label=${t("edit.deny")} name="deny_visitors" value=${(limits.deny_visitors ?? []).join(", ")} placeholder="198.51.100.7" />
      <${Field} label=${t("users.expires")} name="expires" type="datetime-local" value=${localTime(user.expires_at)} />
    </div>
    ${!self && html`<${Check} label=${t("users.admin")} name="admin" checked=${user.admin} help=${t("users.admin_help")} />`}
  <//>`;
}

/** Whether two limits are the same, which may be lists. */
function isSame(one, other) {
  return JSON.stringify(one ?? null) === JSON.stringify(other ?? null);
}

/** As a field for date and time wants it: in the reader's zone, to the minute. */
function localTime(moment) {
  if (!moment) return "";
  const date = new Date(moment);
  return new Date(date.getTime() - date.getTimezoneOffset() * 60000).toISOString().slice(0, 16);
}

function PasswordDialog({ user, onClose }) {
  return html`<${FormDialog}
    title=${t("users.password_title", { name: visible(user.name) })}
    submit=${t("save")}
    onSubmit=${(form) => put(pathOf("users", user.name, "password"), { password: newPassword(form, "password", "again") })}
    onClose=${onClose}
    done=${() => say(t("users.password_set", { name: user.name }))}
  >
    <p>${t("users.password_text")}</p>
    <${Field} label=${t("users.password")} name="password" type="password" autocomplete="new-password" required autofocus help=${t("password.rule", { n: SHORTEST_PASSWORD })} />
    <${Field} label=${t("password.again")} name="again" type="password" autocomplete="new-password" required />
  <//>`;
}
