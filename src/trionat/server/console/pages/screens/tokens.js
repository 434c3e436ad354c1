// Tokens for programs that use the API.

import { me, pathOf, post, remove } from "../api.js";
import { Copyable, CopyButton } from "../components/copy.js";
import { Confirm, Dialog, FormDialog } from "../components/dialog.js";
import { Field } from "../components/field.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { say } from "../components/toast.js";
import { useList, useLiveList } from "../data.js";
import { time } from "../format.js";
import { html, useId, useMemo, useState } from "../html.js";
import { language, t, tOr } from "../language.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

const keyOf = (token) => token.id;
const SCOPES = ["read", "manage"];
const ADMIN_SCOPES = [...SCOPES, "metrics"]; // of all users together, so for administrators

export function Tokens() {
  const list = useLiveList("tokens", "tokens", keyOf);
  const [doing, setDoing] = useState(null);
  const who = useStore(me);
  const code = useStore(language);
  const close = () => setDoing(null);
  const columns = useMemo(
    () =>
      [
        { key: "name", title: t("tokens.name"), strong: true, width: 12, value: (token) => token.name },
        who.admin && { key: "user", title: t("user"), width: 9, value: (token) => token.user },
        { key: "scope", title: t("tokens.scope"), width: 12, value: (token) => tOr(`tokens.${token.scope}`, token.scope) },
        { key: "created_at", title: t("users.created"), width: 10, value: (token) => token.created_at, cell: (token) => time(token.created_at) },
        { key: "last_used", title: t("tokens.used"), width: 10, value: (token) => token.last_used, cell: (token) => (token.last_used ? time(token.last_used) : html`<span class="soft">${t("never")}</span>`) },
        { key: "expires_at", title: t("tokens.expires"), width: 10, value: (token) => token.expires_at, cell: (token) => (token.expired ? html`<${State} kind="warn">${t("users.expired")}<//>` : token.expires_at ? time(token.expires_at) : html`<span class="soft">${t("never")}</span>`) },
      ].filter(Boolean),
    [who.admin, code],
  );
  return html`<div class="head">
      <h1>${t("tokens.title")}</h1>
      <span class="gap"></span>
      <button type="button" class="primary" onClick=${() => setDoing({ what: "add" })}>${t("tokens.add")}</button>
    </div>
    <p class="lead">${t("tokens.lead")}</p>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("tokens.title")}
          columns=${columns}
          rows=${list.value ?? []}
          rowKey=${keyOf}
          actions=${(token) => html`<button type="button" onClick=${() => setDoing({ what: "revoke", token })} aria-label=${t("tokens.revoke_label", { name: visible(token.name) })}>${t("tokens.revoke")}</button>`}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("tokens.none")} text=${t("tokens.none_text")}>
                <${Copyable} text="trionat token add NAME" label=${t("command")} />
              <//>`}
        />`}
    ${doing?.what === "add" &&
    html`<${AddToken}
      onClose=${close}
      done=${(made) => {
        setDoing({ what: "made", made });
        list.reload();
      }}
    />`}
    ${doing?.what === "made" && html`<${Made} made=${doing.made} onClose=${close} />`}
    ${doing?.what === "revoke" &&
    html`<${Confirm}
      title=${t("tokens.revoke_title", { name: visible(doing.token.name) })}
      text=${t("tokens.revoke_text")}
      submit=${t("tokens.revoke")}
      onSubmit=${() => remove(pathOf("tokens", doing.token.id))}
      onClose=${close}
      done=${() => {
        say(t("tokens.revoked", { name: doing.token.name }));
        list.reload();
      }}
    />`}`;
}

function AddToken({ onClose, done }) {
  const who = useStore(me);
  const add = (form) =>
    post("tokens", {
      name: form.get("name"),
      scope: form.get("scope"),
      ...(form.get("user") && form.get("user") !== who.username ? { user: form.get("user") } : {}),
      expires_at: form.get("expires") ? new Date(form.get("expires")).toISOString() : null,
    });
  return html`<${FormDialog} title=${t("tokens.add")} submit=${t("tokens.add_submit")} onSubmit=${add} onClose=${onClose} done=${done}>
    <${Field} label=${t("tokens.name")} name="name" required maxlength="64" help=${t("tokens.name_help")} autofocus />
    ${who.admin && html`<${Whose} />`}
    <${Field} label=${t("tokens.scope")} name="scope">
      ${(who.admin ? ADMIN_SCOPES : SCOPES).map((scope) => html`<option value=${scope}>${t(`tokens.${scope}`)}</option>`)}
    <//>
    <${Field} label=${t("tokens.expires")} name="expires" type="datetime-local" help=${t("tokens.expires_help")} />
  <//>`;
}

/** Whose token it is to be: an administrator may make one for anybody. */
function Whose() {
  const who = useStore(me);
  const users = useList("users");
  const id = useId();
  return html`<${Field} label=${t("tokens.user")} name="user" value=${who.username} required maxlength="255" list=${id} help=${t("tokens.user_help")} />
    <datalist id=${id}>${(users.value ?? []).map((user) => html`<option value=${user.name} />`)}</datalist>`;
}

function Made({ made, onClose }) {
  return html`<${Dialog} title=${t("tokens.made")} onClose=${onClose}>
    <div class="body steps">
      <p>${t("tokens.once")}</p>
      <textarea class="mono" rows="3" readonly aria-label=${t("tokens.token")} onFocus=${(event) => event.target.select()}>${made.token}</textarea>
      <${CopyButton} text=${made.token} label=${t("tokens.copy")} />
      <p class="help">${t("tokens.use")}</p>
      <${Copyable} text=${`curl -H "Authorization: Bearer ${made.token}" ${location.origin}/api/v1/sessions`} label=${t("command")} />
    </div>
    <footer><button type="button" class="primary" onClick=${onClose}>${t("done")}</button></footer>
  <//>`;
}
