// A field of a form: its label, what belongs into it, and a word of help.

import { html, useId } from "../html.js";

/** `value` is what is there at first: what somebody types stays, whatever is drawn anew meanwhile. */
export function Field({ label, help, value, children, ...input }) {
  const id = useId();
  const described = help ? `${id}-help` : undefined;
  return html`<div class="field">
    <label for=${id}>${label}</label>
    ${children
      ? html`<select id=${id} aria-describedby=${described} ...${input}>${children}</select>`
      : html`<input id=${id} aria-describedby=${described} autocomplete="off" spellcheck=${false} defaultValue=${value} ...${input} />`}
    ${help && html`<p class="help" id=${described}>${help}</p>`}
  </div>`;
}

export function Check({ label, help, checked, ...input }) {
  const id = useId();
  return html`<div class="check">
    <input type="checkbox" id=${id} aria-describedby=${help ? `${id}-help` : undefined} defaultChecked=${checked} ...${input} />
    <label for=${id}>${label}</label>
    ${help && html`<p class="help" id=${`${id}-help`}>${help}</p>`}
  </div>`;
}
