// Dialogs: the browser's own, which keep the focus inside and close by Escape.

import { html, useId, useLayoutEffect, useRef, useState } from "../html.js";
import { t } from "../language.js";
import { explain } from "./toast.js";

export function Dialog({ title, onClose, wide, children }) {
  const element = useRef(null);
  const id = useId();
  useLayoutEffect(() => {
    const before = document.activeElement;
    const dialog = element.current;
    dialog.showModal();
    return () => {
      dialog.close();
      if (before?.isConnected) before.focus();
    };
  }, []);
  return html`<dialog
    ref=${element}
    class=${wide ? "wide" : ""}
    aria-labelledby=${id}
    onCancel=${(event) => {
      event.preventDefault();
      onClose();
    }}
  >
    <header>
      <h2 id=${id}>${title}</h2>
      <button type="button" class="quiet" aria-label=${t("close")} onClick=${onClose}>×</button>
    </header>
    ${children}
  </dialog>`;
}

/** A dialog with a form: `onSubmit` does it, and what it throws is shown; `done` is told what it returned. */
export function FormDialog({ title, submit, danger, onSubmit, onClose, done, wide, children }) {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  const send = async (event) => {
    event.preventDefault();
    if (busy) return;
    setBusy(true);
    setError(null);
    try {
      const result = await onSubmit(new FormData(event.target));
      onClose();
      done?.(result);
    } catch (problem) {
      setError(problem);
      setBusy(false);
    }
  };
  return html`<${Dialog} title=${title} onClose=${onClose} wide=${wide}>
    <form onSubmit=${send}>
      <div class="body">${children}</div>
      ${error && html`<p class="error" role="alert">${explain(error)}</p>`}
      <footer>
        <button type="button" onClick=${onClose}>${t("cancel")}</button>
        <button type="submit" class=${danger ? "danger" : "primary"} disabled=${busy}>${busy ? t("working") : submit}</button>
      </footer>
    </form>
  <//>`;
}

/** Asks before something is done that cannot be undone. */
export function Confirm({ title, text, submit, onSubmit, onClose, done, children }) {
  return html`<${FormDialog} title=${title} submit=${submit} danger onSubmit=${onSubmit} onClose=${onClose} done=${done}>
    <p>${text}</p>
    ${children}
  <//>`;
}
