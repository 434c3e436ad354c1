// The services of a session, in one line.

import { html } from "../html.js";
import { t } from "../language.js";
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

/** Where visitors reach it. Only an address of the web becomes a link. */
export function Where({ service }) {
  const text = visible(service.url ?? (service.port ? `:${service.port}` : ""));
  if (/^https?:\/\//.test(service.url ?? "")) {
    return html`<a href=${service.url} target="_blank" rel="noopener noreferrer">${text.replace(/^https?:\/\//, "").replace(/\/$/, "")}</a>`;
  }
  return html`<span class="soft">${text}</span>`;
}
