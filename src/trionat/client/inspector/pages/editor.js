// A request that is changed before it is sent once more.

import {ask} from "./api.js";
import {make} from "./dom.js";
import {SECRETS} from "./http.js";
import {t} from "./language.js";

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
  const method = make("input", {name: "method", "aria-label": t("edit.method"), size: "8", spellcheck: "false", autocomplete: "off"});
  const target = make("input", {name: "target", "aria-label": t("edit.target"), spellcheck: "false", autocomplete: "off"});
  method.value = request.first[0];
  target.value = request.first[1];
  const fields = make("div", {class: "edited"});
  const add = (name, value, focus = false) => {
    const isSecret = SECRETS.has(name.trim().toLowerCase());
    const key = make("input", {"aria-label": t("edit.name"), spellcheck: "false", autocomplete: "off", class: "name"});
    const text = make("input", {"aria-label": t("edit.value", {name: name || t("edit.a_field")}), spellcheck: "false", autocomplete: "off", class: isSecret ? "value masked" : "value"});
    key.value = name;
    text.value = value;
    const line = make("div", {class: "field"}, key, text,
      isSecret ? make("button", {type: "button", "aria-label": t("secret.label", {name}), onclick: () => text.classList.toggle("masked")}, t("edit.show")) : null,
      make("button", {type: "button", "aria-label": t("edit.remove", {name: name || t("edit.this_field")}), onclick: () => line.remove()}, "×"));
    fields.append(line);
    if (focus) key.focus();
  };
  for (const [name, value] of request.fields) if (!FRAMING.has(name.toLowerCase())) add(name, value);
  const body = make("textarea", {name: "body", rows: "10", "aria-label": t("edit.body"), spellcheck: "false"});
  const before = isText ? was?.text ?? "" : "";
  body.value = before;
  const start = body.value;
  const wrong = make("p", {class: "wrong", role: "alert"});
  const send = make("button", {type: "submit", class: "main"}, t("edit.send"));
  const form = make("form", {method: "dialog"},
    make("h2", {}, t("edit")),
    make("div", {class: "first"}, method, target),
    make("h3", {}, t("edit.fields")), fields,
    make("button", {type: "button", onclick: () => add("", "", true)}, t("edit.add")),
    make("h3", {}, t("edit.body")),
    isText ? body : make("p", {class: "quiet"}, t("edit.binary")),
    make("p", {class: "quiet"}, t("edit.length")),
    wrong,
    make("div", {class: "actions"}, send, make("button", {type: "button", onclick: () => dialog.close()}, t("cancel"))));
  const dialog = make("dialog", {class: "editor", "aria-label": t("edit")}, form);
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
