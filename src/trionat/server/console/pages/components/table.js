// A table that is sorted, filtered, and stays fluid with thousands of rows: of a long one only the rows in sight are drawn.
// On a phone each row is a card. The roles are said again because browsers forget them when the style makes cards of rows.

import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import { number } from "../format.js";
import { locale, t } from "../language.js";
import { Peer } from "../visible.js";

const LONG = 150;
const SPARE = 12;
const GUESSED_HEIGHT = 38;

/**
 * `columns` are `{key, title, value(row), cell(row), width, end, strong, wrap}`: `value` is what is sorted by and, where it is a text, filtered;
 * `cell` is what is drawn, the value as it is where there is none; `width` in rem, where the table is long; `end` for numbers, `strong` for what a row is called by, `wrap` for long texts;
 * one that is `unseen` is for the filter and for sorting only.
 */
export function Table({ label, columns, rows, rowKey, empty, sort, filter = true, initialFilter = "", extra, actions }) {
  const [order, setOrder] = useState(sort ?? { key: columns[0].key, down: false });
  const [wanted, setWanted] = useState(initialFilter);
  const shown = useMemo(() => arrange(rows, columns, wanted, order), [rows, columns, wanted, order]);
  const drawn = columns.filter((column) => !column.unseen);
  const all = actions ? [...drawn, { key: "actions", title: t("table.actions"), cell: actions, actions: true, width: 9 }] : drawn;
  const long = shown.length > LONG;
  const toolbar = filter && rows.length > 0;
  return html`<div class="table-with-tools">
    ${(toolbar || extra) &&
    html`<div class="toolbar">
      ${toolbar &&
      html`<input
          type="search"
          class="filter"
          data-filter
          value=${wanted}
          placeholder=${t("table.filter")}
          aria-label=${t("table.filter_label", { label })}
          onInput=${(event) => setWanted(event.target.value)}
        />
        <label class="sort-by">
          <span>${t("table.sort")}</span>
          <select value=${order.key} onChange=${(event) => setOrder({ key: event.target.value, down: false })}>
            ${columns.map((column) => html`<option value=${column.key}>${column.title}</option>`)}
          </select>
        </label>
        <span class="count">${shown.length === rows.length ? t("table.count", { n: number(rows.length) }) : t("table.some", { n: number(shown.length), all: number(rows.length) })}</span>`}
      ${extra}
    </div>`}
    ${rows.length === 0
      ? empty
      : shown.length === 0
        ? html`<div class="empty"><p class="title">${t("table.none")}</p></div>`
        : long
          ? html`<${LongRows} label=${label} columns=${all} rows=${shown} rowKey=${rowKey} order=${order} setOrder=${setOrder} />`
          : html`<div class="scroll">
              <${Rows} label=${label} columns=${all} rows=${shown} rowKey=${rowKey} order=${order} setOrder=${setOrder} />
            </div>`}
  </div>`;
}

function arrange(rows, columns, wanted, order) {
  const word = wanted.trim().toLowerCase();
  const kept = word ? rows.filter((row) => columns.some((column) => matches(column.value?.(row), word))) : [...rows];
  const column = columns.find((each) => each.key === order.key) ?? columns[0];
  const collator = new Intl.Collator(locale(), { numeric: true });
  const way = order.down ? -1 : 1;
  const keyed = kept.map((row) => [column.value(row), row]);
  keyed.sort(([one], [other]) => way * compare(one, other, collator));
  return keyed.map(([, row]) => row);
}

function matches(value, word) {
  return (typeof value === "string" || typeof value === "number") && String(value).toLowerCase().includes(word);
}

function compare(one, other, collator) {
  if (one === other) return 0;
  if (one === null || one === undefined) return 1;
  if (other === null || other === undefined) return -1;
  if (typeof one === "number" && typeof other === "number") return one - other;
  return collator.compare(String(one), String(other));
}

function LongRows({ label, rows, ...others }) {
  const box = useRef(null);
  const [view, setView] = useState({ top: 0, height: 600 });
  const [rowHeight, setRowHeight] = useState(GUESSED_HEIGHT);
  useEffect(() => {
    const element = box.current;
    let asked = 0;
    const look = () => {
      cancelAnimationFrame(asked);
      asked = requestAnimationFrame(() => setView({ top: element.scrollTop, height: element.clientHeight }));
    };
    const resized = new ResizeObserver(look);
    resized.observe(element);
    element.addEventListener("scroll", look, { passive: true });
    return () => {
      cancelAnimationFrame(asked);
      resized.disconnect();
      element.removeEventListener("scroll", look);
    };
  }, []);
  useLayoutEffect(() => {
    // All rows of a long table are of one height, which the style decides.
    const height = box.current.querySelector("tr[data-row]")?.getBoundingClientRect().height;
    if (height && Math.abs(height - rowHeight) > 0.5) setRowHeight(height);
  });
  const first = Math.max(0, Math.min(Math.floor(view.top / rowHeight) - SPARE, rows.length - 1));
  const last = Math.min(rows.length, Math.ceil((view.top + view.height) / rowHeight) + SPARE);
  return html`<div class="scroll long" ref=${box} tabindex="0" role="region" aria-label=${label}>
    <${Rows}
      ...${others}
      label=${label}
      rows=${rows.slice(first, last)}
      first=${first}
      total=${rows.length}
      before=${first * rowHeight}
      after=${(rows.length - last) * rowHeight}
    />
  </div>`;
}

function Rows({ label, columns, rows, rowKey, order, setOrder, first = 0, total, before = 0, after = 0 }) {
  const long = total !== undefined;
  return html`<table role="table" class=${long ? "long" : ""} aria-label=${label} aria-rowcount=${long ? total + 1 : undefined}>
    ${long && html`<colgroup>${columns.map((column) => html`<col style=${{ width: `${column.width ?? 9}rem` }} />`)}</colgroup>`}
    <thead role="rowgroup">
      <tr role="row" aria-rowindex=${long ? 1 : undefined}>
        ${columns.map((column) => html`<${Heading} column=${column} order=${order} setOrder=${setOrder} />`)}
      </tr>
    </thead>
    <tbody role="rowgroup">
      ${before > 0 && html`<${Spacer} height=${before} columns=${columns} key="before" />`}
      ${rows.map(
        (row, index) => html`<tr role="row" data-row key=${rowKey(row)} aria-rowindex=${long ? first + index + 2 : undefined}>
          ${columns.map((column) => html`<${Cell} column=${column} row=${row} />`)}
        </tr>`,
      )}
      ${after > 0 && html`<${Spacer} height=${after} columns=${columns} key="after" />`}
    </tbody>
  </table>`;
}

function Spacer({ height, columns }) {
  return html`<tr class="spacer" aria-hidden="true"><td colspan=${columns.length} style=${{ height: `${height}px` }}></td></tr>`;
}

function Heading({ column, order, setOrder }) {
  if (column.actions) {
    return html`<th role="columnheader" scope="col" class="actions"><span class="hidden">${column.title}</span></th>`;
  }
  const sorted = order.key === column.key;
  const direction = sorted ? (order.down ? "descending" : "ascending") : undefined;
  return html`<th role="columnheader" scope="col" class=${column.end ? "end" : ""} aria-sort=${direction}>
    <button type="button" onClick=${() => setOrder({ key: column.key, down: sorted ? !order.down : Boolean(column.end) })}>
      ${column.title}<span class="arrow" aria-hidden="true">${sorted ? (order.down ? "↓" : "↑") : ""}</span>
    </button>
  </th>`;
}

function Cell({ column, row }) {
  const kind = ["end", "actions", "strong", "wrap"].filter((each) => column[each]).join(" ");
  return html`<td role="cell" class=${kind} data-title=${column.actions ? undefined : column.title}>
    ${column.cell ? column.cell(row) : html`<${Peer} text=${column.value(row)} />`}
  </td>`;
}
