// One's own account: what it may use, its ticket, its password.

import { me, pathOf, put } from "../api.js";
import { Field } from "../components/field.js";
import { newPassword, SHORTEST_PASSWORD } from "../components/password.js";
import { explain, say } from "../components/toast.js";
import { useLiveAnswer } from "../data.js";
import { time } from "../format.js";
import { html, useState } from "../html.js";
import { t } from "../language.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";
import { TicketDialog, VoidTickets } from "./ticket.js";
import { limitsText, Quota, UserState } from "./users.js";

export function Account() {
  const who = useStore(me);
  const { value } = useLiveAnswer(pathOf("users", who.username), "users", (user) => user.name === who.username);
  const [doing, setDoing] = useState("");
  const close = () => setDoing("");
  return html`<div class="head"><h1>${t("account.title")}</h1></div>
    <div class="panels">
      <section class="panel">
        <h2><${Peer} text=${who.username} /></h2>
        <dl class="facts">
          <dt>${t("users.role")}</dt>
          <dd>${who.admin ? t("users.admin") : t("users.plain")}</dd>
          ${value &&
          html`<dt>${t("state")}</dt>
            <dd><${UserState} user=${value} /></dd>
            <dt>${t("users.month")}</dt>
            <dd><${Quota} user=${value} /></dd>
            <dt>${t("users.limits")}</dt>
            <dd>${visible(limitsText(value.limits)) || t("users.no_limits")}</dd>
            <dt>${t("users.expires")}</dt>
            <dd>${value.expires_at ? time(value.expires_at) : t("never")}</dd>`}
        </dl>
      </section>
      <section class="panel steps">
        <h2>${t("account.ticket")}</h2>
        <p class="soft">${t("account.ticket_text")}</p>
        <p class="actions-of">
          <button type="button" class="primary" onClick=${() => setDoing("ticket")}>${t("account.ticket_show")}</button>
          <button type="button" onClick=${() => setDoing("void")}>${t("ticket.void")}</button>
        </p>
      </section>
      <${Password} who=${who} />
    </div>
    ${doing === "ticket" && html`<${TicketDialog} name=${who.username} onClose=${close} />`}
    ${doing === "void" && html`<${VoidTickets} name=${who.username} onClose=${close} />`}`;
}

function Password({ who }) {
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const save = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    setBusy(true);
    setError(null);
    try {
      const password = newPassword(form, "new", "again");
      await put(pathOf("users", who.username, "password"), { old_password: form.get("old"), password });
      event.target.reset();
      say(t("account.changed"));
    } catch (problem) {
      setError(explain(problem));
    }
    setBusy(false);
  };
  return html`<section class="panel">
    <h2>${t("account.password")}</h2>
    <form onSubmit=${save}>
      <input type="text" name="username" value=${who.username} autocomplete="username" hidden />
      <${Field} label=${t("account.old")} name="old" type="password" autocomplete="current-password" required />
      <${Field} label=${t("account.new")} name="new" type="password" autocomplete="new-password" required help=${`${t("password.rule", { n: SHORTEST_PASSWORD })} ${t("account.new_help")}`} />
      <${Field} label=${t("password.again")} name="again" type="password" autocomplete="new-password" required />
      ${error && html`<p class="error" role="alert">${visible(error)}</p>`}
      <button type="submit" disabled=${busy}>${busy ? t("working") : t("account.submit")}</button>
    </form>
  </section>`;
}
