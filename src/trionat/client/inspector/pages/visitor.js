// One visitor: what is known of it, and what both sides have said.

import {ask} from "./api.js";
import {AT_ONCE, Bytes} from "./bytes.js";
import {byId, make, saveButton, toast} from "./dom.js";
import {Http} from "./http.js";
import {t} from "./language.js";
import {amount, clock, duration, reason, visible} from "./words.js";

const REFRESH = 400;
const TABS = ["http", "text", "hex"];
const MOST_MARKS = 2000;

// What is looked at first, until somebody chooses.
function tabOf(row) {
  if (row.protocol === "HTTP") return "http";
  return row.protocol === "TLS" || row.protocol === "HTTP/2" ? "hex" : "text";
}

export class Visitor {
  constructor(row) {
    this.row = row;
    this.path = `/api/visitors/${row.number}`;
    this.details = {pieces: [], secrets: {received: [], sent: []}};
    this.bytes = {received: new Uint8Array(), sent: new Uint8Array()};
    this.revealed = false;
    this.tab = tabOf(row);
    this.hasChosen = false;
    this.view = null;
    this.timer = 0;
    this.isBusy = false;
    this.isDue = false;
    this.isOver = false;
    this.place = byId("visitor");
    this.facts = make("dl", {class: "facts"});
    this.title = make("h2", {});
    this.panel = make("div", {class: "panel", role: "tabpanel", id: "panel"});
    this.marks = [];
    this.build();
  }

  build() {
    const {number, replay_of: replayOf} = this.row;
    this.tabs = TABS.map(name => make("button", {type: "button", role: "tab", id: `tab-${name}`, "aria-controls": "panel", onclick: () => this.choose(name)}, t(`tab.${name}`)));
    const bar = make("div", {role: "tablist", "aria-label": t("shown")}, ...this.tabs);
    bar.addEventListener("keydown", event => {
      const step = {ArrowRight: 1, ArrowLeft: -1}[event.key];
      if (!step) return;
      event.preventDefault();
      this.choose(TABS[(TABS.indexOf(this.tab) + step + TABS.length) % TABS.length]);
      this.tabs[TABS.indexOf(this.tab)].focus();
    });
    this.reveal = make("button", {type: "button", "aria-pressed": "false", onclick: () => this.toggle()}, t("secrets"));
    this.count = make("span", {class: "quiet", role: "status"});
    this.find = make("input", {type: "search", placeholder: t("find"), "aria-label": t("find.label"), spellcheck: "false", autocomplete: "off"});
    this.find.addEventListener("input", () => this.mark());
    this.find.addEventListener("keydown", event => {
      if (event.key !== "Enter") return;
      event.preventDefault();
      this.next(event.shiftKey ? -1 : 1);
    });
    this.place.replaceChildren(
      make("div", {class: "top"}, make("a", {class: "button back", href: "#", "aria-label": t("back")}, "←"), make("span", {class: "quiet"}, `#${number}`), this.title),
      replayOf === null ? "" : make("p", {class: "again"}, `↻ ${t("again")} `, make("a", {href: `#${replayOf}`}, t("one.number", {n: replayOf})), `: ${t("again.text")}`),
      this.facts,
      make("div", {class: "actions"},
        make("button", {type: "button", title: t("replay.all_title"), onclick: () => this.replay({})}, t("replay.all")),
        saveButton(t("har"), `/api/har?visitor=${number}`, t("har.hidden")),
        saveButton(t("har.secrets"), `/api/har?visitor=${number}&secrets=1`),
        saveButton(t("save.received"), `${this.path}/bytes/received?download`, t("save.received_title")),
        saveButton(t("save.sent"), `${this.path}/bytes/sent?download`, t("save.sent_title")),
        this.reveal),
      make("div", {class: "tools"}, bar, make("div", {class: "find"}, this.find, this.count)),
      this.panel);
    this.place.hidden = false;
    this.fill();
    this.show(this.tab);
    this.place.focus({preventScroll: true});
  }

  close() {
    this.isOver = true;
    clearTimeout(this.timer);
    this.view?.stop();
    CSS.highlights?.clear();
    this.place.hidden = true;
    this.place.replaceChildren();
  }

  // The list has heard something new of it.
  update(row) {
    if (row === null) {
      this.facts.append(make("dt", {}, ""), make("dd", {class: "wrong"}, t("gone")));
      return;
    }
    this.row = row;
    this.fill();
    if (!this.hasChosen && this.tab !== tabOf(row)) this.show(tabOf(row)); // its first bytes have come
    else this.later();
  }

  later() {
    if (this.timer || this.isOver) return;
    this.timer = setTimeout(() => {
      this.timer = 0;
      this.refresh();
    }, REFRESH);
  }

  fill() {
    const {row} = this;
    this.title.textContent = visible(row.title || row.protocol || t("one.title", {n: row.number}));
    const kept = (all, part) => part < all ? t("kept", {all: amount(all), part: amount(part)}) : amount(all);
    const facts = [
      row.replay_of === null ? [t("visitor"), row.address ?? t("untold")] : [t("sent_as"), row.address ?? t("one.number", {n: row.replay_of})],
      [t("service"), row.service === row.local ? row.local : `${row.service} (${row.local})`],
      [t("came"), `${new Date(row.began * 1000).toLocaleDateString()} ${clock(row.began, true)}`],
      [t("received"), kept(row.received, row.kept_received)],
      [t("sent"), kept(row.sent, row.kept_sent)],
      [t("first_byte"), duration(row.first_byte)],
      [t(row.ended ? "fact.ended" : "fact.open"), row.ended ? t("fact.after", {time: duration(row.seconds), why: reason(row.why)}) : `${amount(row.rate)}/s`],
    ];
    if (row.dropped) facts.push([t("fact.bytes"), t("fact.dropped")]);
    this.facts.replaceChildren(...facts.flatMap(([name, value]) => [
      make("dt", {}, name),
      make("dd", {}, visible(String(value))),
    ]));
  }

  async refresh() {
    if (this.isBusy) {
      this.isDue = true;
      return;
    }
    this.isBusy = true;
    try {
      await this.load();
    } catch (error) {
      if (error.status === 404) this.panel.replaceChildren(make("p", {class: "quiet"}, t("gone.bytes")));
    } finally {
      this.isBusy = false;
      if (this.isDue) {
        this.isDue = false;
        this.later();
      }
    }
  }

  async load() {
    if (this.tab === "http") {
      await this.view.refresh();
    } else {
      const details = await (await ask(this.path)).json();
      for (const direction of ["received", "sent"]) {
        const have = this.bytes[direction].length, there = details[`kept_${direction}`];
        if (there > have) {
          const more = new Uint8Array(await (await ask(`${this.path}/bytes/${direction}?start=${have}&end=${there}`)).arrayBuffer());
          const joined = new Uint8Array(have + more.length);
          joined.set(this.bytes[direction]);
          joined.set(more, have);
          this.bytes[direction] = joined;
        }
      }
      if (this.isOver) return;
      // More may have come since the pieces were told.
      details.pieces = details.pieces.map(([direction, start, end, time]) => [direction, start, Math.min(end, this.bytes[direction].length), time]);
      this.details = details;
      if (this.view instanceof Bytes) this.view.extend(AT_ONCE);
    }
    if (this.find.value) this.mark();
  }

  ending() {
    const {row} = this;
    if (!row.received && !row.sent) return row.ended ? t("said.ended", {why: visible(reason(row.why))}) : t("said.nothing");
    if (row.dropped) return t("said.dropped");
    const cut = row.kept_received < row.received || row.kept_sent < row.sent;
    return cut ? t("said.cut") : "";
  }

  choose(name) {
    this.hasChosen = true;
    this.show(name);
  }

  show(name) {
    this.tab = name;
    this.view?.stop();
    this.view = name === "http" ? new Http(this) : new Bytes(this, name);
    for (const tab of this.tabs) {
      const isChosen = tab.id === `tab-${name}`;
      tab.setAttribute("aria-selected", String(isChosen));
      tab.tabIndex = isChosen ? 0 : -1;
    }
    this.panel.setAttribute("aria-labelledby", `tab-${name}`);
    this.panel.replaceChildren(this.view.element);
    this.reveal.hidden = name === "http";
    this.refresh();
  }

  toggle() {
    this.revealed = !this.revealed;
    this.reveal.setAttribute("aria-pressed", String(this.revealed));
    this.show(this.tab);
  }

  async send(wanted) {
    const answer = await ask(`${this.path}/replay`, {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify(wanted),
    });
    const {number} = await answer.json();
    toast(t("replay.sent", {n: number, of: this.row.number}));
    location.hash = `#${number}`;
  }

  async replay(wanted) {
    try {
      await this.send(wanted);
    } catch (error) {
      toast(error.message);
    }
  }

  // -- find

  mark() {
    const wanted = this.find.value.toLowerCase();
    CSS.highlights?.clear();
    this.marks = [];
    this.at = -1;
    if (!wanted) {
      this.count.textContent = "";
      return;
    }
    if (this.view instanceof Bytes) this.view.all();
    const walker = document.createTreeWalker(this.panel, NodeFilter.SHOW_TEXT);
    while (this.marks.length < MOST_MARKS && walker.nextNode()) {
      const text = walker.currentNode.data.toLowerCase();
      for (let at = text.indexOf(wanted); at >= 0 && this.marks.length < MOST_MARKS; at = text.indexOf(wanted, at + wanted.length)) {
        const range = new Range();
        range.setStart(walker.currentNode, at);
        range.setEnd(walker.currentNode, Math.min(at + wanted.length, walker.currentNode.length));
        this.marks.push(range);
      }
    }
    if (CSS.highlights && this.marks.length) CSS.highlights.set("found", new Highlight(...this.marks));
    this.count.textContent = this.marks.length ? t("find.count", {n: this.marks.length}) : t("find.none");
  }

  next(step) {
    if (!this.marks.length) return;
    this.at = (this.at + step + this.marks.length) % this.marks.length;
    const range = this.marks[this.at];
    CSS.highlights?.set("here", new Highlight(range));
    range.startContainer.parentElement?.closest("details")?.setAttribute("open", "");
    const box = range.getBoundingClientRect(), around = this.place.getBoundingClientRect();
    this.place.scrollBy({top: box.top - around.top - around.height / 3});
    this.count.textContent = t("find.at", {n: this.at + 1, all: this.marks.length});
  }
}
