// A ticket of an account: shown with what to do with it, narrowed on demand, or all of them made void.

import { pathOf, post, remove } from "../api.js";
import { Copyable, CopyButton } from "../components/copy.js";
import { Confirm, Dialog } from "../components/dialog.js";
import { Field } from "../components/field.js";
import { QrCode } from "../components/qr.js";
import { explain, say } from "../components/toast.js";
import { readPorts, words } from "../format.js";
import { html, useState } from "../html.js";
import { t } from "../language.js";
import { visible } from "../visible.js";
import { Restriction } from "./restriction.js";

export function TicketDialog({ name, onClose }) {
  const [ticket, setTicket] = useState(null);
  const [error, setError] = useState(null);
  const [busy, setBusy] = useState(false);
  const make = async (event) => {
    event.preventDefault();
    setError(null);
    setBusy(true);
    try {
      setTicket(await post(pathOf("users", name, "tickets"), wishes(new FormData(event.target))));
    } catch (problem) {
      setError(explain(problem));
    }
    setBusy(false);
  };
  return html`<${Dialog} title=${t("ticket.title", { name: visible(name) })} onClose=${onClose} wide>
    ${ticket
      ? html`<${Ticket} ticket=${ticket.ticket} restrictions=${ticket.restrictions} />
          <footer>
            <button type="button" onClick=${() => setTicket(null)}>${t("back")}</button>
            <button type="button" class="primary" onClick=${onClose}>${t("done")}</button>
          </footer>`
      : html`<form onSubmit=${make}>
          <div class="body">
            <p>${t("ticket.about")}</p>
            <details>
              <summary>${t("ticket.narrow")}</summary>
              <div class="fields">
                <${Field} label=${t("ticket.names")} name="names" placeholder="shop, blog-*" help=${t("ticket.names_help")} />
                <${Field} label=${t("ticket.ports")} name="ports" placeholder="60000-60009" help=${t("ticket.ports_help")} />
                <${Field} label=${t("ticket.expires")} name="expires" type="datetime-local" help=${t("ticket.expires_help")} />
              </div>
            </details>
          </div>
          ${error && html`<p class="error" role="alert">${visible(error)}</p>`}
          <footer>
            <button type="button" onClick=${onClose}>${t("cancel")}</button>
            <button type="submit" class="primary" disabled=${busy}>${busy ? t("working") : t("ticket.show")}</button>
          </footer>
        </form>`}
  <//>`;
}

function wishes(form) {
  const wished = {};
  const names = words(form.get("names"));
  if (names.length) wished.only_names = names;
  const ports = readPorts(form.get("ports"));
  if (ports === undefined) throw new Error(t("wrong_ports"));
  if (ports) wished.only_ports = ports;
  if (form.get("expires")) wished.expires = new Date(form.get("expires")).toISOString();
  return wished;
}

function Ticket({ ticket, restrictions }) {
  return html`<div class="body">
    <div class="ticket">
      <div class="steps">
        <p>${t("ticket.secret")}</p>
        ${restrictions.length > 0 &&
        html`<div class="narrowed">
          <b>${t("ticket.good_for")}</b>
          ${restrictions.map((each) => html`<div><${Restriction} text=${each} /></div>`)}
        </div>`}
        <textarea class="mono" rows="6" readonly aria-label=${t("ticket.ticket")} onFocus=${(event) => event.target.select()}>${ticket}</textarea>
        <${CopyButton} text=${ticket} label=${t("ticket.copy")} />
        <p class="help">${t("ticket.command")}</p>
        <${Copyable} text=${`trionat connect ${ticket} 8080`} label=${t("command")} />
      </div>
      <${QrCode} text=${ticket} label=${t("ticket.qr")} />
    </div>
  </div>`;
}

export function VoidTickets({ name, onClose }) {
  return html`<${Confirm}
    title=${t("ticket.void_title", { name: visible(name) })}
    text=${t("ticket.void_text")}
    submit=${t("ticket.void")}
    onSubmit=${() => remove(pathOf("users", name, "tickets"))}
    onClose=${onClose}
    done=${() => say(t("ticket.voided", { name }))}
  />`;
}
