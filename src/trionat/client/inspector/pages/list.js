// The list of visitors, the newest first. All are known here; as many have rows as one has scrolled to.

import {ask} from "./api.js";
import {byId, make} from "./dom.js";
import {t} from "./language.js";
import {amount, clock, duration, reason, visible} from "./words.js";

const STEP = 200;
const WAIT = 250;

export class List {
  constructor(onRow) {
    this.onRow = onRow;
    this.rows = new Map();
    this.elements = new Map();
    this.numbers = [];
    this.shown = STEP;
    this.words = "";
    this.found = null;
    this.mayBeMore = false;
    this.searching = null;
    this.isDue = false;
    this.chosen = null;
    this.isComplete = false;
    this.body = byId("rows");
    new IntersectionObserver(entries => {
      if (entries.some(entry => entry.isIntersecting) && this.visibleNumbers().length > this.shown) {
        this.shown += STEP;
        this.later();
      }
    }, {root: byId("list"), rootMargin: "400px"}).observe(byId("more"));
    setInterval(() => this.tick(), 1000);
    this.body.addEventListener("click", event => {
      const line = event.target.closest("tr");
      if (line && !event.target.closest("a") && !getSelection().toString()) location.hash = `#${line.dataset.number}`;
    });
  }

  begin(visitors) {
    this.rows.clear();
    this.numbers = [];
    this.isComplete = visitors === 0;
    this.later();
  }

  take({rows, gone}) {
    let isUnsorted = false;
    for (const row of rows) {
      if (!this.rows.has(row.number)) {
        if (this.numbers.length && row.number > this.numbers[0]) this.numbers.unshift(row.number);
        else {
          if (this.numbers.length && row.number > this.numbers.at(-1)) isUnsorted = true;
          this.numbers.push(row.number);
        }
      }
      this.rows.set(row.number, row);
      const element = this.elements.get(row.number);
      if (element) this.fill(element, row);
      this.onRow(row.number, row);
    }
    if (gone.length) {
      for (const number of gone) {
        this.rows.delete(number);
        this.elements.delete(number);
        this.onRow(number, null);
      }
      this.numbers = this.numbers.filter(number => this.rows.has(number));
    }
    if (isUnsorted) this.numbers.sort((left, right) => right - left);
    this.isComplete = true;
    this.later();
  }

  search(words) {
    this.words = words.trim().toLowerCase();
    this.found = null;
    this.mayBeMore = false;
    this.shown = STEP;
    clearTimeout(this.timer);
    this.searching?.abort();
    if (this.words.length > 1) this.timer = setTimeout(() => this.searchBytes(this.words), WAIT);
    this.later();
  }

  async searchBytes(words) {
    this.searching = new AbortController();
    const {signal} = this.searching;
    try {
      const {numbers, more} = await (await ask(`/api/search?q=${encodeURIComponent(words)}`, {signal})).json();
      if (words !== this.words) return;
      this.found = new Set(numbers);
      this.mayBeMore = more;
      this.later();
    } catch { /* then only what is listed is searched */ }
  }

  matches(row) {
    if (!this.words || this.found?.has(row.number)) return true;
    const replay = row.replay_of === null ? "" : t("replay_of", {n: row.replay_of});
    return [row.title, row.address ?? "", row.service, row.local, row.protocol, reason(row.why), row.status ?? "", `#${row.number}`, replay]
      .some(text => String(text).toLowerCase().includes(this.words));
  }

  visibleNumbers() {
    return this.words ? this.numbers.filter(number => this.matches(this.rows.get(number))) : this.numbers;
  }

  later() {
    if (this.isDue) return;
    this.isDue = true;
    requestAnimationFrame(() => {
      this.isDue = false;
      this.render();
    });
  }

  render() {
    const numbers = this.visibleNumbers();
    const wanted = numbers.slice(0, this.shown);
    let at = this.body.firstElementChild;
    const keep = new Set(wanted);
    for (const number of wanted) {
      while (at && !keep.has(Number(at.dataset.number))) {
        const next = at.nextElementSibling;
        this.elements.delete(Number(at.dataset.number));
        at.remove();
        at = next;
      }
      const element = this.element(number);
      if (element === at) at = at.nextElementSibling;
      else this.body.insertBefore(element, at);
    }
    while (at) {
      const next = at.nextElementSibling;
      this.elements.delete(Number(at.dataset.number));
      at.remove();
      at = next;
    }
    byId("visitors").hidden = !numbers.length;
    byId("empty").hidden = !this.isComplete || this.numbers.length > 0;
    byId("none").hidden = !this.words || !this.numbers.length || numbers.length > 0;
    byId("list").dataset.count = this.numbers.length;
    byId("more").textContent = numbers.length > wanted.length ? t("rest", {n: numbers.length - wanted.length}) : "";
    this.onCount?.(numbers.length, this.numbers.length, this.mayBeMore);
    this.rove();
  }

  element(number) {
    let element = this.elements.get(number);
    if (!element) {
      element = make("tr", {"data-number": number});
      this.elements.set(number, element);
      this.fill(element, this.rows.get(number));
    }
    element.classList.toggle("chosen", number === this.chosen);
    return element;
  }

  fill(element, row) {
    const hadFocus = element.contains(document.activeElement);
    const tab = element.querySelector("a")?.tabIndex ?? -1;
    element.className = row.ended ? "ended" : "open";
    element.classList.toggle("replay", row.replay_of !== null);
    element.classList.toggle("chosen", row.number === this.chosen);
    const link = make("a", {href: `#${row.number}`, tabindex: tab}, visible(row.title) || row.protocol || t("nothing"));
    element.replaceChildren(
      make("td", {class: "what"},
        make("span", {class: "dot", title: t(row.ended ? "ended" : "open"), "aria-label": t(row.ended ? "ended" : "open"), role: "img"}),
        make("span", {class: "quiet"}, `#${row.number} `),
        row.replay_of === null ? null : make("span", {class: "badge again"}, `↻ ${t("replay_of", {n: row.replay_of})}`),
        row.protocol && row.title ? make("span", {class: "badge"}, row.protocol) : null,
        row.status === null ? null : make("span", {class: `status s${String(row.status)[0]}`}, String(row.status)),
        link),
      make("td", {"data-name": t("visitor")}, row.replay_of !== null ? t("you") : row.address === null ? "–" : visible(row.address)),
      make("td", {"data-name": t("service")}, visible(row.service)),
      make("td", {"data-name": t("received"), class: "number"}, amount(row.received)),
      make("td", {"data-name": t("sent"), class: "number"}, amount(row.sent)),
      make("td", {"data-name": t("rate"), class: "number"}, row.ended ? "" : `${amount(row.rate)}/s`),
      make("td", {"data-name": t("first_byte"), class: "number"}, duration(row.first_byte)),
      make("td", {"data-name": t("came")}, `${clock(row.began)}, ${duration(row.seconds)}`),
      make("td", {"data-name": t("end"), class: "why"}, visible(reason(row.why))));
    if (hadFocus) link.focus({preventScroll: true});
  }

  tick() {
    for (const [number, element] of this.elements) {
      const row = this.rows.get(number);
      if (!row || row.ended) continue;
      row.seconds = Math.max(row.seconds, Date.now() / 1000 - row.began);
      const place = element.children[7], text = `${clock(row.began)}, ${duration(row.seconds)}`;
      if (place.textContent !== text) place.textContent = text;
    }
  }

  choose(number) {
    for (const each of [this.chosen, number]) this.elements.get(each)?.classList.toggle("chosen", each === number);
    this.chosen = number;
    this.rove();
  }

  focus() {
    this.body.querySelector("a[tabindex='0']")?.focus();
  }

  // One row takes part in the order of Tab; the arrows go from row to row.
  rove() {
    const links = this.body.querySelector("a[tabindex='0']");
    const chosen = this.elements.get(this.chosen)?.querySelector("a");
    const wanted = chosen ?? links ?? this.body.querySelector("a");
    if (links && links !== wanted) links.tabIndex = -1;
    if (wanted) wanted.tabIndex = 0;
  }

  // From wherever an arrow means nothing else, the first one leads into the list.
  key(event) {
    const step = {ArrowDown: 1, j: 1, ArrowUp: -1, k: -1}[event.key];
    if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
    const line = event.target.closest("#rows tr");
    const next = line ? (step > 0 ? line.nextElementSibling : line.previousElementSibling) : this.body.querySelector("a[tabindex='0']")?.closest("tr");
    if (!next) return;
    event.preventDefault();
    const to = next.querySelector("a");
    if (line) line.querySelector("a").tabIndex = -1;
    to.tabIndex = 0;
    to.focus();
  }
}
