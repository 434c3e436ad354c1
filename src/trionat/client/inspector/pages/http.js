// Requests and answers of a visitor that speaks HTTP/1, and the messages of a web socket.

import {ask} from "./api.js";
import {hexadecimal} from "./bytes.js";
import {copy, make, saveButton, toast} from "./dom.js";
import {edit} from "./editor.js";
import {pretty} from "./json.js";
import {t} from "./language.js";
import {amount, clock, duration, visible} from "./words.js";

export const SECRETS = new Set(["authorization", "cookie", "proxy-authorization", "set-cookie", "x-api-key"]);
const PICTURES = ["image/png", "image/jpeg", "image/gif", "image/webp"];

const bytesOf = text => Uint8Array.from(atob(text), character => character.charCodeAt(0));

export class Http {
  constructor(visitor) {
    this.visitor = visitor;
    this.open = new Set();
    this.seen = "";
    this.element = make("div", {class: "http"}, make("p", {class: "quiet"}, t("reading")));
  }

  stop() {}

  async refresh() {
    const answer = await (await ask(`${this.visitor.path}/http`)).text();
    if (answer === this.seen) return;
    const isFirst = this.seen === "";
    this.seen = answer;
    const {exchanges, rest} = JSON.parse(answer);
    if (isFirst && exchanges.length === 1) this.open.add(0);
    const children = exchanges.map((exchange, index) => this.exchange(exchange, index));
    if (!exchanges.length) children.push(make("p", {class: "quiet"}, t("http.none")));
    else if (rest && rest !== "WebSocket") children.push(make("p", {class: "quiet"}, t("http.rest", {why: rest})));
    if (exchanges.at(-1)?.websocket) {
      const place = make("div", {class: "socket"});
      children.push(make("h3", {}, "WebSocket"), place);
      await this.socket(place);
    }
    this.element.replaceChildren(...children);
  }

  exchange(exchange, index) {
    const {request, answer} = exchange;
    const status = answer ? answer.first[1] : "…";
    const summary = make("summary", {},
      make("span", {class: "method"}, request.first[0]),
      make("span", {class: "target"}, visible(request.first[1])),
      make("span", {class: `status s${status[0]}`}, status),
      make("span", {class: "quiet"}, answer ? amount(answer.end - answer.body) : t("http.unanswered")),
      make("span", {class: "quiet"}, exchange.ended === null ? "" : duration(exchange.ended - exchange.asked)));
    const content = make("div", {class: "content"});
    const details = make("details", {class: "exchange", open: this.open.has(index)}, summary, content);
    const fill = () => {
      if (!content.childElementCount) content.append(...this.content(exchange, index));
    };
    details.addEventListener("toggle", () => {
      if (details.open) this.open.add(index);
      else this.open.delete(index);
      if (details.open) fill();
    });
    if (this.open.has(index)) fill();
    return details;
  }

  content(exchange, index) {
    const {request, answer, interim} = exchange;
    const path = `${this.visitor.path}/http/${index}`;
    const times = [t("http.asked", {time: clock(this.visitor.row.began + exchange.asked, true)})];
    if (exchange.answered !== null) times.push(t("http.answered", {time: duration(exchange.answered - exchange.asked)}));
    if (exchange.ended !== null) times.push(t("http.complete", {time: duration(exchange.ended - exchange.asked)}));
    return [
      make("div", {class: "actions"},
        make("button", {type: "button", onclick: () => this.curl(path)}, t("http.curl")),
        make("button", {type: "button", onclick: () => this.replay({request: index})}, t("replay")),
        make("button", {type: "button", onclick: () => edit(this.visitor, index, exchange, path)}, t("edit"))),
      make("p", {class: "quiet"}, times.join(", ")),
      this.head(t("http.request"), `${request.first[0]} ${request.first[1]} HTTP/${request.first[2]}`, request),
      this.body(request, `${path}/request`),
      ...interim.map(each => this.head(t("http.interim"), `HTTP/${each.first[0]} ${each.first[1]} ${each.first[2]}`, each)),
      ...(answer ? [
        this.head(t("http.answer"), `HTTP/${answer.first[0]} ${answer.first[1]} ${answer.first[2]}`, answer),
        this.body(answer, `${path}/answer`),
      ] : []),
    ];
  }

  head(title, line, message) {
    const rows = message.fields.map(([name, value]) => make("tr", {},
      make("th", {scope: "row"}, visible(name)),
      make("td", {}, SECRETS.has(name.trim().toLowerCase()) ? secret(name, value) : visible(value))));
    return make("section", {class: "head"}, make("h3", {}, title), make("code", {class: "line"}, visible(line)),
      make("table", {class: "fields"}, make("tbody", {}, ...rows)));
  }

  body(message, path) {
    const place = make("div", {class: "body"});
    if (message.end === message.body) return place;
    place.append(make("p", {class: "quiet"}, t("reading")));
    this.fill(place, path).catch(error => place.replaceChildren(make("p", {class: "wrong"}, error.message)));
    return place;
  }

  async fill(place, path) {
    const body = await (await ask(path)).json();
    const raw = make("pre", {tabindex: "0"});
    const notes = [body.type, amount(body.size), ...body.notes].filter(Boolean).map(visible).join(" · ");
    const actions = make("div", {class: "actions"}, saveButton(t("save"), `${path}?download`));
    place.replaceChildren(make("p", {class: "quiet"}, notes), actions, raw);
    if (body.text === null) {
      raw.textContent = hexadecimal(bytesOf(body.bytes).subarray(0, 4096), 0);
      if (body.size > 4096) raw.textContent += "\n…";
      const kind = body.type.split(";")[0].trim().toLowerCase();
      if (PICTURES.includes(kind) && !body.notes.length) {
        actions.before(make("img", {src: `data:${kind};base64,${body.bytes}`, alt: t("http.picture")}));
      }
      return;
    }
    const nice = pretty(body.text);
    raw.textContent = visible(nice ?? body.text.replaceAll("\r\n", "\n"));
    if (nice !== null) {
      let isNice = true;
      const toggle = make("button", {type: "button", "aria-pressed": "true"}, t("http.formatted"));
      toggle.addEventListener("click", () => {
        isNice = !isNice;
        toggle.setAttribute("aria-pressed", isNice);
        raw.textContent = visible(isNice ? nice : body.text);
      });
      actions.prepend(toggle);
    }
  }

  async socket(place) {
    const {messages} = await (await ask(`${this.visitor.path}/websocket`)).json();
    place.replaceChildren(...messages.map(message => make("div", {class: "message"},
      make("div", {class: `piece ${message.direction}`},
        make("span", {class: "direction"}, t(message.direction === "received" ? "from_visitor" : "from_service")),
        make("time", {}, clock(this.visitor.row.began + message.time, true)),
        make("span", {}, message.kind), make("span", {}, amount(message.size)),
        make("span", {}, [message.note, message.whole ? "" : t("http.partly")].filter(Boolean).join(", "))),
      make("pre", {class: message.direction, tabindex: "0"},
        message.text === null ? hexadecimal(bytesOf(message.bytes).subarray(0, 4096), 0) : visible(pretty(message.text) ?? message.text)))));
  }

  async curl(path) {
    try {
      await copy(await (await ask(`${path}/curl`)).text());
    } catch (error) {
      toast(error.message);
    }
  }

  replay(wanted) {
    return this.visitor.replay(wanted);
  }
}

function secret(name, value) {
  const button = make("button", {type: "button", class: "secret", "aria-label": t("secret.label", {name: visible(name)}), title: t("secret.show")}, "••••••••");
  button.addEventListener("click", () => {
    const isShown = button.getAttribute("aria-pressed") === "true";
    button.setAttribute("aria-pressed", String(!isShown));
    button.textContent = isShown ? "••••••••" : visible(value);
  });
  return button;
}
