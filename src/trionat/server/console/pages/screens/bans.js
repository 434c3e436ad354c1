// Addresses of which no password is tried for a while.

import { pathOf, remove } from "../api.js";
import { Confirm } from "../components/dialog.js";
import { Empty } from "../components/state.js";
import { Table } from "../components/table.js";
import { say } from "../components/toast.js";
import { useList } from "../data.js";
import { span } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t } from "../language.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

export function Bans() {
  const list = useList("bans", 10);
  const [lifted, setLifted] = useState(null);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "network", title: t("bans.network"), strong: true, width: 16, value: (ban) => ban.network },
      { key: "remaining", title: t("bans.remaining"), width: 10, end: true, value: (ban) => ban.remaining, cell: (ban) => span(ban.remaining) },
    ],
    [code],
  );
  return html`<div class="head"><h1>${t("bans.title")}</h1></div>
    <p class="lead">${t("bans.lead")}</p>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("bans.title")}
          columns=${columns}
          rows=${list.value ?? []}
          rowKey=${(ban) => ban.network}
          sort=${{ key: "remaining", down: true }}
          actions=${(ban) => html`<button type="button" onClick=${() => setLifted(ban)} aria-label=${t("bans.lift_label", { network: visible(ban.network) })}>${t("bans.lift")}</button>`}
          empty=${list.loading ? html`<p class="waiting">${t("loading")}</p>` : html`<${Empty} title=${t("bans.none")} text=${t("bans.none_text")} />`}
        />`}
    ${lifted &&
    html`<${Confirm}
      title=${t("bans.lift_title", { network: visible(lifted.network) })}
      text=${t("bans.lift_text")}
      submit=${t("bans.lift")}
      onSubmit=${() => remove(pathOf("bans", lifted.network))}
      onClose=${() => setLifted(null)}
      done=${() => {
        say(t("bans.lifted", { network: lifted.network }));
        list.reload();
      }}
    />`}`;
}
