// The server's log as it is written, with a filter.

import { get } from "../api.js";
import { Empty } from "../components/state.js";
import { clock, time } from "../format.js";
import { html, useEffect, useLayoutEffect, useMemo, useRef, useState } from "../html.js";
import { t } from "../language.js";
import { follow, useOpened } from "../live.js";
import { visible } from "../visible.js";
import { Failed } from "./failed.js";

const MOST_LINES = 1000;
const LEVELS = ["debug", "info", "warning", "error"];
const DRAW_EVERY = 250;

export function Log() {
  const [level, setLevel] = useState("");
  const [wanted, setWanted] = useState("");
  const [following, setFollowing] = useState(true);
  const [error, setError] = useState(null);
  const [again, setAgain] = useState(0);
  const lines = useLines(level, setError, again);
  const box = useRef(null);
  const shown = useMemo(() => {
    const word = wanted.trim().toLowerCase();
    return (lines ?? []).filter((line) => !word || `${textOf(line)} ${line.exception ?? ""}`.toLowerCase().includes(word));
  }, [lines, wanted]);
  useLayoutEffect(() => {
    if (following && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [shown, following]);
  const onScroll = () => {
    const { scrollTop, scrollHeight, clientHeight } = box.current;
    setFollowing(scrollHeight - scrollTop - clientHeight < 24);
  };
  return html`<div class="head"><h1>${t("log.title")}</h1></div>
    <div class="toolbar">
      <input type="search" class="filter" data-filter value=${wanted} placeholder=${t("table.filter")} aria-label=${t("table.filter_label", { label: t("log.title") })} onInput=${(event) => setWanted(event.target.value)} />
      <select aria-label=${t("log.level")} value=${level} onChange=${(event) => setLevel(event.target.value)}>
        <option value="">${t("log.all")}</option>
        ${LEVELS.map((each) => html`<option value=${each}>${t(`log.${each}`)}</option>`)}
      </select>
      <span class="count">${t("table.count", { n: shown.length })}</span>
      ${!following && html`<button type="button" onClick=${() => setFollowing(true)}>${t("log.follow")}</button>`}
    </div>
    ${error && lines === null
      ? html`<${Failed} list=${{ error, reload: () => setAgain((count) => count + 1) }} />`
      : lines === null
        ? html`<p class="waiting">${t("loading")}</p>`
        : shown.length === 0
          ? html`<${Empty} title=${t("log.none")} text=${t("log.none_text")} />`
          : html`<div class="log lines" ref=${box} onScroll=${onScroll} tabindex="0" role="log" aria-live="off" aria-label=${t("log.title")}>
              ${shown.map((line) => html`<${Line} line=${line} key=${line.number} />`)}
            </div>`}`;
}

/** What was logged, and what is; null until the first is there. Drawn a few times a second, however much comes. */
function useLines(level, setError, again) {
  const [lines, setLines] = useState(null);
  const opened = useOpened();
  useEffect(() => {
    let all = null;
    let early = [];
    let over = false;
    let timer = 0;
    const draw = () => {
      timer ||= setTimeout(() => {
        timer = 0;
        if (!over) setLines(all);
      }, DRAW_EVERY);
    };
    const end = follow("log", (_, line) => {
      if (level && LEVELS.indexOf(line.level) < LEVELS.indexOf(level)) return;
      if (all === null) early.push(line);
      else {
        if (line.number <= (all.at(-1)?.number ?? 0)) return;
        all = [...all, line].slice(-MOST_LINES);
        draw();
      }
    });
    get(`log?limit=${MOST_LINES}${level ? `&level=${level}` : ""}`).then(
      (answer) => {
        if (over) return;
        setError(null);
        const before = answer.items.slice().reverse();
        const newest = before.at(-1)?.number ?? 0;
        all = [...before, ...early.filter((line) => line.number > newest)].slice(-MOST_LINES);
        early = [];
        setLines(all);
      },
      (problem) => !over && setError(problem),
    );
    return () => {
      over = true;
      clearTimeout(timer);
      end();
    };
  }, [level, opened, again]);
  return lines;
}

function textOf(line) {
  const keys = Object.entries(line.keys).map(([key, value]) => `${key}=${typeof value === "string" ? value : JSON.stringify(value)}`);
  return [line.event, ...keys].join(" ");
}

function Line({ line }) {
  const level = line.level;
  return html`<div class="log-line ${level === "error" || level === "critical" ? "failure" : level}">
    <span class="soft" title=${time(line.time)}>${clock(line.time)}</span>
    <span class="level">${visible(level)}</span>
    <span class="message">
      ${visible(textOf(line))}
      ${line.exception &&
      html`<details>
        <summary>${visible(line.exception.trimEnd().split("\n").at(-1))}</summary>
        <pre>${line.exception.split("\n").map(visible).join("\n")}</pre>
      </details>`}
    </span>
  </div>`;
}
