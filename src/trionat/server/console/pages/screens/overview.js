// How the server is: rates and visitors of the last hour, whom it refuses, and whether what it needs is there.

import { me } from "../api.js";
import { Copyable } from "../components/copy.js";
import { Plot } from "../components/plot.js";
import { Empty, State } from "../components/state.js";
import { useAnswer } from "../data.js";
import { number, rate, since } from "../format.js";
import { html } from "../html.js";
import { t, tOr } from "../language.js";
import { server } from "../live.js";
import { href } from "../router.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";

export function Overview() {
  const who = useStore(me);
  const view = useStore(server);
  return html`<div class="head">
      <h1>${t("overview.title")}</h1>
      <span class="gap"></span>
      ${view && html`<span class="soft">trionat ${visible(view.version)} · ${t("overview.up", { span: since(view.since) })}</span>`}
    </div>
    ${view ? html`<${Tiles} view=${view} />` : html`<p class="waiting">${t("loading")}</p>`}
    ${who.admin && html`<${Plots} />`}
    ${view &&
    html`<div class="panels">
      <${Health} view=${view} whole=${view.whole} />
      ${view.whole && html`<${Refused} refused=${view.whole.refused} />`}
    </div>`}
    ${view && view.sessions === 0 && html`<${FirstSteps} who=${who} />`}`;
}

function Tiles({ view }) {
  const whole = view.whole;
  return html`<dl class="tiles">
    <${Tile} title=${t("received")} value=${rate(view.received_rate)} />
    <${Tile} title=${t("sent")} value=${rate(view.sent_rate)} />
    <${Tile} title=${html`<a href=${href("sessions")}>${t("sessions.title")}</a>`} value=${number(view.sessions)} note=${whole && t("overview.of", { n: number(whole.session_limit) })} />
    <${Tile} title=${html`<a href=${href("visitors")}>${t("visitors.title")}</a>`} value=${number(view.visitors)} />
    ${whole && html`<${Tile} title=${html`<a href=${href("points")}>${t("overview.ports")}</a>`} value=${number(whole.ports_held)} note=${t("overview.free", { n: number(whole.ports_free) })} />`}
    ${whole && html`<${Tile} title=${html`<a href=${href("points")}>${t("overview.queue")}</a>`} value=${number(whole.queued)} note=${t("overview.of", { n: number(whole.queue_places) })} />`}
  </dl>`;
}

function Tile({ title, value, note }) {
  return html`<div class="tile">
    <dt>${title}</dt>
    <dd>${value}</dd>
    ${note && html`<dd class="note">${note}</dd>`}
  </div>`;
}

function Plots() {
  const { value } = useAnswer("history", 10);
  const points = value?.points ?? [];
  if (points.length < 2) {
    return html`<div class="panels"><section class="panel"><h2>${t("overview.hour")}</h2><p class="soft">${t("overview.soon")}</p></section></div>`;
  }
  const times = points.map((point) => Date.parse(point.time) / 1000);
  const of = (name) => points.map((point) => point[name]);
  const last = points.at(-1);
  return html`<div class="panels">
    <section class="panel">
      <h2>${t("overview.traffic")}</h2>
      <${Plot}
        label=${t("overview.traffic_label", { received: rate(last.received), sent: rate(last.sent) })}
        times=${times}
        show=${rate}
        least=${1000}
        series=${[
          { title: t("received"), color: "mark", values: of("received"), fill: true },
          { title: t("sent"), color: "second", values: of("sent") },
        ]}
      />
    </section>
    <section class="panel">
      <h2>${t("overview.visits")}</h2>
      <${Plot}
        label=${t("overview.visits_label", { visitors: number(last.visitors), sessions: number(last.sessions) })}
        times=${times}
        show=${(value) => number(value)}
        least=${5}
        series=${[
          { title: t("visitors.title"), color: "mark", values: of("visitors"), fill: true },
          { title: t("sessions.title"), color: "second", values: of("sessions") },
        ]}
      />
    </section>
  </div>`;
}

function Health({ view, whole }) {
  const parts = Object.entries(whole?.health ?? {}).filter(([, how]) => how !== null);
  const workers = whole?.workers ?? [];
  return html`<section class="panel">
    <h2>${t("overview.health")}</h2>
    <dl class="facts">
      <dt>${t("overview.server")}</dt>
      <dd>${view.drained ? html`<${State} kind="warn">${t("overview.drained")}<//>` : view.stopping ? html`<${State} kind="warn">${t("overview.stopping")}<//>` : html`<${State} kind="good">${t("overview.serving")}<//>`}</dd>
      ${parts.map(
        ([name, how]) => html`<dt>${tOr(`health.${name}`, visible(name))}</dt>
          <dd>${how === "ok" ? html`<${State} kind="good">${t("health.ok")}<//>` : html`<${State} kind="bad">${t("health.away")}<//>`}</dd>`,
      )}
      ${workers.length > 0 &&
      html`<dt>${t("overview.workers")}</dt>
        <dd>${t("overview.workers_up", { up: workers.filter((worker) => worker.state === "up").length, all: workers.length })}</dd>`}
      ${whole?.cluster &&
      html`<dt>${t("overview.node")}</dt>
        <dd><${Peer} text=${whole.cluster.node} /></dd>`}
      <dt>${t("overview.control")}</dt>
      <dd><code>${visible(view.public)}</code></dd>
      ${view.domain &&
      html`<dt>${t("overview.domain")}</dt>
        <dd><code>*.${visible(view.domain)}</code></dd>`}
    </dl>
  </section>`;
}

function Refused({ refused }) {
  const counts = Object.entries(refused).filter(([, count]) => count > 0).sort(([, one], [, other]) => other - one);
  return html`<section class="panel">
    <h2>${t("overview.refused")}</h2>
    ${counts.length === 0
      ? html`<p class="soft">${t("overview.nobody")}</p>`
      : html`<ul class="counts">
          ${counts.map(([bound, count]) => html`<li><span>${tOr(`bound.${bound}`, visible(bound))}</span><b>${number(count)}</b></li>`)}
        </ul>`}
  </section>`;
}

function FirstSteps({ who }) {
  return html`<section class="section">
    <${Empty} title=${t("overview.first")} text=${t(who.admin ? "overview.first_text" : "overview.first_text_own")}>
      ${who.admin
        ? html`<a href=${href("users")}>${t("overview.first_users")}</a>`
        : html`<a href=${href("account")}>${t("overview.first_ticket")}</a>`}
      <${Copyable} text="trionat connect TICKET 8080" label=${t("command")} />
    <//>
  </section>`;
}

