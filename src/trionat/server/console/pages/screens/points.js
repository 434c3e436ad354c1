// Ports and names: who holds what, what is kept for somebody, what is free.

import { me, pathOf, remove } from "../api.js";
import { Copyable } from "../components/copy.js";
import { Confirm } from "../components/dialog.js";
import { Empty, State } from "../components/state.js";
import { Table } from "../components/table.js";
import { say } from "../components/toast.js";
import { useList } from "../data.js";
import { time } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t } from "../language.js";
import { server } from "../live.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";
import { Queue, Reserved } from "./queue.js";
import { addressOf, Reached } from "./services.js";

const KINDS = { held: "good", reserved: "warn", free: "" };

export function Points() {
  const list = useList("points", 10);
  const names = useList("names", 10);
  const [released, setReleased] = useState(null);
  const [state, setState] = useState("");
  const who = useStore(me);
  const code = useStore(language);
  const columns = useMemo(
    () =>
      [
        { key: "point", title: t("points.point"), width: 14, strong: true, value: (row) => row.point, cell: (row) => visible(row.point) },
        { key: "state", title: t("state"), width: 8, value: (row) => t(`points.${row.state}`), cell: (row) => html`<${State} kind=${KINDS[row.state] ?? ""}>${t(`points.${row.state}`)}<//>` },
        { key: "user", title: t("user"), width: 9, value: (row) => row.user ?? "" },
        { key: "client", title: t("client"), width: 10, value: (row) => row.client ?? "" },
        { key: "service", title: t("service"), width: 9, value: (row) => row.service ?? "" },
        { key: "url", title: t("points.url"), width: 18, value: (row) => addressOf(serviceOf(row), server.get()), cell: (row) => html`<${Reached} service=${serviceOf(row)} />` },
        { key: "kept", title: t("points.kept"), width: 10, value: (row) => row.kept, cell: (row) => time(row.kept) },
      ],
    [code],
  );
  const all = useMemo(() => withNames(list.value ?? [], names.value ?? []), [list.value, names.value]);
  const rows = useMemo(() => all.filter((row) => !state || row.state === state), [all, state]);
  return html`<div class="head"><h1>${t("points.title")}</h1></div>
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("points.title")}
          columns=${columns}
          rows=${rows}
          rowKey=${(row) => row.point}
          extra=${all.length > 0 &&
          html`<select aria-label=${t("state")} value=${state} onChange=${(event) => setState(event.target.value)}>
            <option value="">${t("points.all")}</option>
            ${Object.keys(KINDS).map((each) => html`<option value=${each}>${t(`points.${each}`)}</option>`)}
          </select>`}
          actions=${who.admin &&
          all.some((row) => row.kept) &&
          ((row) =>
            row.kept
              ? html`<button type="button" onClick=${() => setReleased(row)} aria-label=${t("points.release_label", { name: visible(row.point) })}>${t("points.release")}</button>`
              : null)}
          empty=${list.loading
            ? html`<p class="waiting">${t("loading")}</p>`
            : html`<${Empty} title=${t("points.none")} text=${t("points.none_text")}>
                <${Copyable} text="trionat connect TICKET 8080" label=${t("command")} />
              <//>`}
        />`}
    <${Reserved} />
    <${Queue} />
    ${released &&
    html`<${Confirm}
      title=${t("points.release_title", { name: visible(released.point) })}
      text=${t("points.release_text", { user: visible(released.user) })}
      submit=${t("points.release")}
      onSubmit=${() => remove(pathOf("names", released.point))}
      onClose=${() => setReleased(null)}
      done=${() => {
        say(t("points.was_released", { name: released.point }));
        list.reload();
        names.reload();
      }}
    />`}`;
}

/** What visitors reach at a point that somebody has. */
function serviceOf(row) {
  return { url: row.url, port: row.state !== "free" && typeof row.point === "number" ? row.point : 0 };
}

/** The points, and the names that are kept for an account: those that nobody uses now are rows of their own. */
function withNames(points, names) {
  const kept = new Map(names.map((each) => [each.name, each]));
  const rows = points.map((row) => ({ ...row, kept: kept.get(row.point)?.kept_until ?? null }));
  const there = new Set(points.map((row) => row.point));
  const others = names
    .filter((each) => !there.has(each.name))
    .map((each) => ({ point: each.name, state: "reserved", user: each.user, kept: each.kept_until }));
  return [...rows, ...others];
}
