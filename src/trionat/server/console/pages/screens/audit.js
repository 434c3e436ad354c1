// Who has changed what, and from where.

import { Copyable } from "../components/copy.js";
import { More } from "../components/more.js";
import { Empty } from "../components/state.js";
import { Table } from "../components/table.js";
import { usePages } from "../data.js";
import { exact } from "../format.js";
import { html, useMemo } from "../html.js";
import { language, t, tOr } from "../language.js";
import { useStore } from "../store.js";
import { Peer, visible } from "../visible.js";
import { Failed } from "./failed.js";

export function Audit() {
  const list = usePages("audit", 30);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "time", title: t("time"), width: 14, value: (row) => row.time, cell: (row) => html`<span class="nowrap">${exact(row.time)}</span>` },
      {
        key: "user",
        title: t("audit.who"),
        width: 13,
        strong: true,
        value: (row) => row.user,
        cell: (row) => html`<span class="cut"><${Peer} text=${row.user} /><span class="under">${visible(wayOf(row))}</span></span>`,
      },
      { key: "by", title: t("audit.by"), unseen: true, value: wayOf },
      { key: "what", title: t("audit.what"), width: 13, value: (row) => tOr(`action.${row.what}`, row.what) },
      { key: "target", title: t("audit.target"), width: 12, value: (row) => row.target },
      { key: "detail", title: t("audit.detail"), width: 18, wrap: true, value: (row) => row.detail },
      { key: "host", title: t("audit.host"), width: 10, value: (row) => row.host ?? "" },
    ],
    [code],
  );
  return html`<div class="head"><h1>${t("audit.title")}</h1></div>
    <p class="lead">${t("audit.lead")}</p>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
            label=${t("audit.title")}
            columns=${columns}
            rows=${list.value ?? []}
            rowKey=${(row) => row.number}
            sort=${{ key: "time", down: true }}
            empty=${list.loading
              ? html`<p class="waiting">${t("loading")}</p>`
              : html`<${Empty} title=${t("audit.none")} text=${t("audit.none_text")}>
                  <${Copyable} text="trionat user add NAME" label=${t("command")} />
                <//>`}
          />
          <${More} list=${list} />`}`;
}

/** How somebody came: by the console, with a token, on the command line. */
function wayOf(row) {
  const way = tOr(`by.${row.by.replaceAll(" ", "_")}`, row.by);
  return row.token ? `${way} ${row.token}` : way;
}
