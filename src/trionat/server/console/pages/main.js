// The console: who is logged in, the frame around the screens, and which one is shown.

import { get, logOut, me } from "./api.js";
import { Toasts } from "./components/toast.js";
import { html, render, useEffect, useRef } from "./html.js";
import { chooseLanguage, language, LANGUAGES, loadLanguage, t } from "./language.js";
import { connection, server, start } from "./live.js";
import { href, route } from "./router.js";
import { useStore } from "./store.js";
import { Peer, visible } from "./visible.js";
import { Login } from "./screens/login.js";
import { Overview } from "./screens/overview.js";
import { Sessions } from "./screens/sessions.js";
import { Visitors } from "./screens/visitors.js";
import { Points } from "./screens/points.js";
import { Users } from "./screens/users.js";
import { Traffic } from "./screens/traffic.js";
import { Bans } from "./screens/bans.js";
import { Certificates } from "./screens/certificates.js";
import { Nodes } from "./screens/nodes.js";
import { Events } from "./screens/events.js";
import { Audit } from "./screens/audit.js";
import { Configuration } from "./screens/configuration.js";
import { Log } from "./screens/log.js";
import { Tokens } from "./screens/tokens.js";
import { Account } from "./screens/account.js";

// In the order of the menu. `admin` are those that only an administrator has.
const GROUPS = {
  now: { overview: Overview, sessions: Sessions, visitors: Visitors, points: Points },
  accounts: { users: Users, traffic: Traffic, tokens: Tokens, bans: Bans },
  server: { events: Events, audit: Audit, certificates: Certificates, nodes: Nodes, configuration: Configuration, log: Log },
  you: { account: Account },
};
const FOR_ADMINS = new Set(["users", "bans", "events", "audit", "certificates", "nodes", "configuration", "log"]);
const RETRY = 2000;

function groupsFor(who) {
  return Object.entries(GROUPS)
    .map(([group, screens]) => [group, Object.keys(screens).filter((name) => who.admin || !FOR_ADMINS.has(name))])
    .filter(([, names]) => names.length);
}

function Menu({ current }) {
  const who = useStore(me);
  return html`<nav class="menu" id="menu" aria-label=${t("menu")}>
    ${groupsFor(who).map(
      ([group, names]) => html`<h2>${t(`menu.${group}`)}</h2>
        <ul>
          ${names.map(
            (name) => html`<li>
              <a href=${href(name)} aria-current=${name === current ? "page" : undefined}>${t(`${name}.title`)}</a>
            </li>`,
          )}
        </ul>`,
    )}
    <div class="menu-foot">
      <${Languages} />
      <span class="who"><${Peer} text=${who.username} /></span>
      <button type="button" onClick=${logOut}>${t("logout")}</button>
    </div>
  </nav>`;
}

function Languages() {
  const code = useStore(language);
  return html`<select class="language" aria-label=${t("language")} value=${code} onChange=${(event) => chooseLanguage(event.target.value)}>
    ${Object.entries(LANGUAGES).map(([each, title]) => html`<option value=${each} lang=${each}>${title}</option>`)}
  </select>`;
}

function Header() {
  const who = useStore(me);
  const view = useStore(server);
  const toggle = (event) => {
    const shown = document.body.classList.toggle("menu-open");
    event.currentTarget.setAttribute("aria-expanded", String(shown));
  };
  return html`<header class="top">
    ${who && html`<button type="button" class="menu-button" aria-expanded="false" aria-controls="menu" onClick=${toggle}>${t("menu")}</button>`}
    <a class="brand" href="#/overview"><img src="icon.svg" alt="" width="24" height="24" />trionat</a>
    ${view?.name && html`<span class="node"><${Peer} text=${view.name} /></span>`}
    <span class="gap"></span>
    <span class=${who ? "in-menu" : ""}><${Languages} /></span>
    ${who &&
    html`<span class="who"><${Peer} text=${who.username} /></span>
      <button type="button" class="in-menu" onClick=${logOut}>${t("logout")}</button>`}
  </header>`;
}

function Banner() {
  const state = useStore(connection);
  return html`<div class="banner-place" role="status">
    ${state === "lost" && html`<p class="banner">${t("lost")}</p>`}
  </div>`;
}

function Frame() {
  const { screen, query } = useStore(route);
  const who = useStore(me);
  const content = useRef(null);
  const first = useRef(true);
  const known = groupsFor(who).some(([, names]) => names.includes(screen));
  const name = known ? screen : "overview";
  const Screen = Object.assign({}, ...Object.values(GROUPS))[name];
  useEffect(() => {
    document.title = `${t(`${name}.title`)} · trionat`;
    document.body.classList.remove("menu-open");
    document.querySelector(".menu-button")?.setAttribute("aria-expanded", "false");
    if (first.current) first.current = false;
    else {
      content.current.focus({ preventScroll: true }); // a screen reader begins to read there
      window.scrollTo(0, 0);
    }
  }, [name]);
  return html`<div class="frame">
    <${Menu} current=${name} />
    <main id="content" tabindex="-1" ref=${content} aria-label=${t(`${name}.title`)}>
      <${Screen} key=${`${name}?${query}`} query=${query} />
    </main>
  </div>`;
}

function App() {
  const who = useStore(me);
  const code = useStore(language);
  return html`<div key=${code}>
    <a class="skip" href="#content" onClick=${skip}>${t("skip")}</a>
    <${Header} />
    <${Banner} />
    ${who ? html`<${Frame} key=${visible(who.username)} />` : who === null ? html`<${Login} />` : html`<p class="waiting">${t("loading")}</p>`}
    <${Toasts} />
  </div>`;
}

function skip(event) {
  event.preventDefault(); // the address names the screen
  document.getElementById("content")?.focus();
}

function onKey(event) {
  if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea, dialog")) return;
  const filter = document.querySelector("[data-filter]");
  if (filter) {
    event.preventDefault();
    filter.focus();
    filter.select();
  }
}

async function learnWho() {
  try {
    me.set(await get("me"));
  } catch (error) {
    if (error.status === 401) {
      me.set(null);
      return;
    }
    connection.set("lost");
    setTimeout(learnWho, RETRY);
  }
}

await loadLanguage();
document.addEventListener("keydown", onKey);
render(html`<${App} />`, document.getElementById("app"));
start();
learnWho();
