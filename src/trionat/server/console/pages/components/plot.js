// A plot over time by uPlot. Its numbers stand below it as text too: those under the pointer, or else the newest.

import { html, useEffect, useRef, useState } from "../html.js";
import { clock } from "../format.js";
import { language } from "../language.js";
import { useStore } from "../store.js";

const HEIGHT = 180;
const HOUR = 3600;

// Whole steps, so that no axis says the same thing twice.
const STEPS = Array.from({ length: 13 }, (_, power) => [1, 2, 5].map((step) => step * 10 ** power)).flat();
const dark = matchMedia("(prefers-color-scheme: dark)");

/** `times` in seconds since 1970; `series` are `{title, color, values, fill}`, where `color` is the name of a colour of the style;
 * the axis goes up to `least` at least. */
export function Plot({ label, times, series, show, least }) {
  const box = useRef(null);
  const plot = useRef(null);
  const data = useRef(null);
  const [at, setAt] = useState(null);
  const [theme, setTheme] = useState(dark.matches);
  const code = useStore(language);
  data.current = [times, ...series.map((each) => each.values)];
  useEffect(() => {
    const follow = () => setTheme(dark.matches);
    dark.addEventListener("change", follow);
    return () => dark.removeEventListener("change", follow);
  }, []);
  useEffect(() => {
    let over = false;
    const resized = new ResizeObserver(([entry]) => plot.current?.setSize({ width: Math.floor(entry.contentRect.width), height: HEIGHT }));
    import("../vendor/uplot.js").then(({ default: uPlot }) => {
      if (over || !box.current) return;
      plot.current = new uPlot(options(uPlot, box.current, series, show, least, setAt), data.current, box.current);
      resized.observe(box.current);
    });
    return () => {
      over = true;
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [theme, code, series.length]);
  useEffect(() => plot.current?.setData(data.current));
  const index = at === null || at >= times.length ? times.length - 1 : at;
  return html`<figure class="plot">
    <div class="canvas" role="img" aria-label=${label} ref=${box}></div>
    <figcaption>
      ${series.map(
        (each) => html`<span class="key">
          <span class="swatch ${each.color}" aria-hidden="true"></span>${each.title} <b>${index >= 0 ? show(each.values[index] ?? 0) : "–"}</b>
        </span>`,
      )}
      <span class="soft">${index >= 0 ? clock(times[index] * 1000) : ""}</span>
    </figcaption>
  </figure>`;
}

function options(uPlot, box, series, show, least, setAt) {
  const style = getComputedStyle(box);
  const color = (name) => style.getPropertyValue(`--${name}`).trim();
  const font = `11px ${style.fontFamily}`;
  const axis = { stroke: color("soft"), font, grid: { stroke: color("grid"), width: 1 }, ticks: { show: false } };
  return {
    width: Math.floor(box.getBoundingClientRect().width),
    height: HEIGHT,
    padding: [8, 18, 0, 0], // half a moment of the axis fits
    legend: { show: false },
    cursor: { y: false, drag: { x: false, y: false }, points: { size: 6 } },
    scales: { x: { time: true, range: (_, lowest, highest) => [highest - HOUR, highest] }, y: { range: (_, lowest, highest) => [0, Math.max(highest * 1.1, least)] } },
    axes: [
      { ...axis, values: (_, splits) => splits.map((split) => clock(split * 1000).slice(0, 5)), grid: { show: false }, size: 26, space: 70 },
      { ...axis, size: 72, incrs: STEPS, values: (_, splits) => splits.map((split) => show(split)), space: 28 },
    ],
    series: [
      {},
      ...series.map((each) => ({
        stroke: color(each.color),
        fill: each.fill ? `${color(each.color)}22` : undefined,
        width: 1.5,
        points: { show: false },
        spanGaps: true,
      })),
    ],
    hooks: { setCursor: [(self) => setAt(self.cursor.idx ?? null)] },
  };
}
