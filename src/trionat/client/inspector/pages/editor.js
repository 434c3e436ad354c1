// A request that is changed before it is sent once more.

import {ask} from "./api.js";
import {make} from "./dom.js";
import {SECRETS} from "./http.js";

const FRAMING = new Set(["content-length", "transfer-encoding"]);

export async function edit(visitor, index, exchange, path) {
  const {request} = exchange;
  let was = null;
  if (request.end > request.body) {
    try {
      was = await (await ask(`${path}/request`)).json();
    } catch { /* then the body stays as it was */ }
  }
  const isText = was === null ? request.end === request.body : was.text !== null && !was.notes.length;
  const method = make("input", {name: "method", "aria-label": "Method", size: "8", spellcheck: "false", autocomplete: "off"});
  const target = make("input", {name: "target", "aria-label": "Target", spellcheck: "false", autocomplete: "off"});
  method.value = request.first[0];
  target.value = request.first[1];
  const fields = make("div", {class: "edited"});
  const add = (name, value, focus = false) => {
    const isSecret = SECRETS.has(name.trim().toLowerCase());
    const key = make("input", {"aria-label": "Name of a header field", spellcheck: "false", autocomplete: "off", class: "name"});
    const text = make("input", {"aria-label": `Value of ${name || "a header field"}`, spellcheck: "false", autocomplete: "off", class: isSecret ? "value masked" : "value"});
    key.value = name;
    text.value = value;
    const line = make("div", {class: "field"}, key, text,
      isSecret ? make("button", {type: "button", "aria-label": `Show the value of ${name}`, onclick: () => text.classList.toggle("masked")}, "Show") : null,
      make("button", {type: "button", "aria-label": `Remove ${name || "this field"}`, onclick: () => line.remove()}, "×"));
    fields.append(line);
    if (focus) key.focus();
  };
  for (const [name, value] of request.fields) if (!FRAMING.has(name.toLowerCase())) add(name, value);
  const body = make("textarea", {name: "body", rows: "10", "aria-label": "Body", spellcheck: "false"});
  const before = isText ? was?.text ?? "" : "";
  body.value = before;
  const start = body.value;
  const wrong = make("p", {class: "wrong", role: "alert"});
  const send = make("button", {type: "submit", class: "main"}, "Send");
  const form = make("form", {method: "dialog"},
    make("h2", {}, "Edit and replay"),
    make("div", {class: "first"}, method, target),
    make("h3", {}, "Header fields"), fields,
    make("button", {type: "button", onclick: () => add("", "", true)}, "Add a field"),
    make("h3", {}, "Body"),
    isText ? body : make("p", {class: "quiet"}, "It is no text that can be edited here, and is sent as it was."),
    make("p", {class: "quiet"}, "Content-Length is set by trionat. The request goes to the local service, not through the tunnel."),
    wrong,
    make("div", {class: "actions"}, send, make("button", {type: "button", onclick: () => dialog.close()}, "Cancel")));
  const dialog = make("dialog", {class: "editor", "aria-label": "Edit and replay"}, form);
  dialog.addEventListener("close", () => dialog.remove());
  form.addEventListener("submit", async event => {
    event.preventDefault();
    wrong.textContent = "";
    send.disabled = true;
    const lines = [...fields.children].map(line => [line.querySelector(".name").value.trim(), line.querySelector(".value").value.trim()]);
    const edited = {
      method: method.value.trim(),
      target: target.value.trim(),
      fields: lines.filter(([name, value]) => name || value),
      body: isText && body.value !== start ? body.value : null,
    };
    try {
      await visitor.send({request: index, edit: edited});
      dialog.close();
    } catch (error) {
      wrong.textContent = error.message;
      if (error.field === "method") method.focus();
      if (error.field === "target") target.focus();
    } finally {
      send.disabled = false;
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  target.focus();
}
