// How many bytes each account has used: in a month, in all, and day by day.

import { Bar } from "../components/bar.js";
import { Empty } from "../components/state.js";
import { Table } from "../components/table.js";
import { useChanged, useList } from "../data.js";
import { amount, day, month } from "../format.js";
import { html, useMemo, useState } from "../html.js";
import { language, t } from "../language.js";
import { useStore } from "../store.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

const MONTHS = 12;

export function Traffic() {
  const months = useMemo(lastMonths, []);
  const [wanted, setWanted] = useState(months[0]);
  const list = useList(`traffic?month=${wanted}`, 30);
  const accounts = useChanged("users", (user) => user.name);
  const rows = useMemo(() => (list.value ?? []).map((row) => (wanted === months[0] ? asOf(accounts.get(row.user), row) : row)), [list.value, accounts, wanted]);
  const code = useStore(language);
  const columns = useMemo(
    () => [
      { key: "user", title: t("user"), width: 14, strong: true, value: (row) => row.user },
      {
        key: "month_bytes",
        title: t("traffic.month"),
        width: 16,
        value: (row) => row.month_bytes,
        cell: (row) =>
          row.monthly_quota
            ? html`<${Bar} used=${row.month_bytes} limit=${row.monthly_quota} label=${t("users.quota_label", { name: visible(row.user) })} text=${`${amount(row.month_bytes)} / ${amount(row.monthly_quota)}`} />`
            : amount(row.month_bytes),
      },
      { key: "bytes", title: t("traffic.all"), width: 10, end: true, value: (row) => row.bytes, cell: (row) => amount(row.bytes) },
    ],
    [code],
  );
  return html`<div class="head">
      <h1>${t("traffic.title")}</h1>
      <span class="gap"></span>
      <label class="month">${t("traffic.of")}${" "}
        <select value=${wanted} onChange=${(event) => setWanted(event.target.value)}>
          ${months.map((each) => html`<option value=${each}>${month(each)}</option>`)}
        </select>
      </label>
    </div>
    <${Days} month=${wanted} key=${wanted} />
    ${list.error && !list.value
      ? html`<${Failed} list=${list} />`
      : html`<${Table}
          label=${t("traffic.title")}
          columns=${columns}
          rows=${rows}
          rowKey=${(row) => row.user}
          sort=${{ key: "month_bytes", down: true }}
          empty=${list.loading ? html`<p class="waiting">${t("loading")}</p>` : html`<${Empty} title=${t("traffic.none")} text=${t("traffic.none_text")} />`}
        />`}`;
}

/** The row with what the account is said to have used by now, and its quota. */
function asOf(user, row) {
  if (!user) return row;
  return { ...row, month_bytes: Math.max(row.month_bytes, user.used_this_month), monthly_quota: user.limits.monthly_quota };
}

function lastMonths() {
  const now = new Date();
  return Array.from({ length: MONTHS }, (_, back) => new Date(Date.UTC(now.getUTCFullYear(), now.getUTCMonth() - back, 1)).toISOString().slice(0, 7));
}

function Days({ month: wanted }) {
  const [year, number] = wanted.split("-").map(Number);
  const last = new Date(Date.UTC(year, number, 0)).getUTCDate();
  const days = Array.from({ length: last }, (_, index) => `${wanted}-${String(index + 1).padStart(2, "0")}`);
  const list = useList(`traffic/days?first=${days[0]}&last=${days.at(-1)}`, 60);
  const sums = new Map(days.map((each) => [each, 0]));
  for (const row of list.value ?? []) sums.set(row.day, (sums.get(row.day) ?? 0) + row.bytes);
  const most = Math.max(...sums.values());
  if (!list.value || !(most > 0)) return null;
  const busiest = day([...sums].find(([, bytes]) => bytes === most)[0]);
  return html`<section class="panel days-panel">
    <h2>${t("traffic.days", { month: month(wanted) })} <span class="soft">${t("traffic.most", { most: amount(most), day: busiest })}</span></h2>
    <div class="days" role="img" aria-label=${t("traffic.days_label", { most: amount(most), day: busiest })}>
      ${[...sums].map(([each, bytes]) => html`<div class="day" title=${`${day(each)}: ${amount(bytes)}`} style=${{ height: `${(bytes / most) * 100}%` }}></div>`)}
    </div>
    <div class="days-axis" aria-hidden="true"><span>${day(days[0])}</span><span>${day(days.at(-1))}</span></div>
  </section>`;
}
