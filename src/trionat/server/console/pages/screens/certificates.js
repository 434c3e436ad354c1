// The certificates of names: which are valid until when, and why one could not be had.

import { Copyable } from "../components/copy.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { useList } from "../data.js";
import { span, time } from "../format.js";
import { html, useMemo } from "../html.js";
import { language, t, tOr } from "../language.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

const KINDS = { valid: "good", own: "good", late: "warn", ordering: "warn", missing: "bad", expired: "bad" };

export function Certificates() {
  const list = useList("certificates", 30);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "name", title: t("certificates.name"), strong: true, width: 16, value: (row) => row.name },
      { key: "state", title: t("state"), width: 9, value: (row) => tOr(`certificates.${row.state}`, row.state), cell: (row) => html`<${State} kind=${KINDS[row.state] ?? ""}>${tOr(`certificates.${row.state}`, visible(row.state))}<//>` },
      {
        key: "ends",
        title: t("certificates.ends"),
        width: 13,
        value: (row) => row.ends,
        cell: (row) => (row.ends ? html`<span>${time(row.ends)} <span class="soft">(${span((Date.parse(row.ends) - Date.now()) / 1000)})</span></span>` : "–"),
      },
      { key: "reason", title: t("certificates.reason"), width: 18, wrap: true, value: (row) => row.reason ?? "" },
      { key: "retry", title: t("certificates.retry"), width: 10, value: (row) => row.retry, cell: (row) => time(row.retry) },
    ],
    [code],
  );
  return html`<div class="head"><h1>${t("certificates.title")}</h1></div>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("certificates.title")}
          columns=${columns}
          rows=${list.value ?? []}
          rowKey=${(row) => row.name}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("certificates.none")} text=${t("certificates.none_text")}>
                <${Copyable} text="trionat serve --domain tunnel.example.com" label=${t("command")} />
              <//>`}
        />`}`;
}
