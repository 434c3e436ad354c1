// What is in force, and where each value is from.

import { Copyable } from "../components/copy.js";
import { Empty } from "../components/state.js";
import { Table } from "../components/table.js";
import { useAnswer } from "../data.js";
import { html, useMemo, useState } from "../html.js";
import { language, t, tOr } from "../language.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

/** A section that is one list has no keys. */
function nameOf(row) {
  return row.key ? `${row.section}.${row.key}` : row.section;
}

function valueOf(row) {
  return row.unit ? `${row.value} ${row.unit}` : row.value;
}

export function Configuration() {
  const list = useAnswer("configuration");
  const all = list.value?.items;
  const [changed, setChanged] = useState(false);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      {
        key: "key",
        title: t("configuration.key"),
        strong: true,
        wrap: true,
        width: 20,
        value: nameOf,
        cell: (row) => html`<span>${nameOf(row)}<span class="under" lang="en">${visible(row.meaning)}</span></span>`,
      },
      { key: "value", title: t("configuration.value"), width: 16, wrap: true, value: valueOf, cell: (row) => html`<code>${visible(valueOf(row))}</code>` },
      { key: "source", title: t("configuration.source"), width: 12, value: (row) => tOr(`source.${row.source}`, row.source), cell: (row) => html`<span class=${row.source === "default" ? "soft" : ""}>${tOr(`source.${row.source}`, visible(row.source))}</span>` },
    ],
    [code],
  );
  const rows = useMemo(() => (all ?? []).filter((row) => !changed || row.source !== "default"), [all, changed]);
  return html`<div class="head"><h1>${t("configuration.title")}</h1></div>
    <p class="lead">${t("configuration.lead")}</p>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("configuration.title")}
          columns=${columns}
          rows=${rows}
          rowKey=${nameOf}
          extra=${html`<label class="toggle"><input type="checkbox" checked=${changed} onChange=${(event) => setChanged(event.target.checked)} /> ${t("configuration.changed")}</label>`}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("configuration.none")} text=${t("configuration.none_text")}>
                <${Copyable} text="trionat serve --config server.yml" label=${t("command")} />
              <//>`}
        />`}`;
}
