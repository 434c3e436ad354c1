// The services of a session, in one line.

import { CopyButton } from "../components/copy.js";
import { html } from "../html.js";
import { t } from "../language.js";
import { server } from "../live.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";

export function serviceText(service) {
  const where = service.url ?? (service.port ? `:${service.port}` : "");
  return [service.name || service.local, where].filter(Boolean).join(" ");
}

export function Services({ services }) {
  return html`<span class="list" title=${services.map((service) => visible(serviceText(service))).join("\n")}>
    ${services.map(
      (service) => html`<span class="nowrap">
        <${Peer} text=${service.name || service.local} />
        ${" "}<${Where} service=${service} />${service.down && html`<span class="tag">${t("sessions.down")}</span>`}
      </span>`,
    )}
  </span>`;
}

/** The whole address at which visitors reach a service, to be copied; nothing where there is none. */
export function Reached({ service }) {
  const address = addressOf(service, useStore(server));
  if (!address) return null;
  return html`<span class="reached">
    ${service.url ? html`<${Where} service=${service} />` : html`<code>${visible(address)}</code>`}${" "}
    <${CopyButton} text=${address} name=${visible(address)} />
  </span>`;
}

/** A URL, or the host that clients know the server by, and the visit port. */
export function addressOf(service, view) {
  if (service.url) return service.url;
  const host = (view?.public ?? "").replace(/:\d+$/, "");
  return service.port && host ? `${host}:${service.port}` : "";
}

/** Where visitors reach it, in short. Only an address of the web becomes a link. */
export function Where({ service }) {
  const text = visible(service.url ?? (service.port ? `:${service.port}` : ""));
  if (/^https?:\/\//.test(service.url ?? "")) {
    return html`<a href=${service.url} target="_blank" rel="noopener noreferrer">${text.replace(/^https?:\/\//, "").replace(/\/$/, "")}</a>`;
  }
  return html`<span class="soft">${text}</span>`;
}
