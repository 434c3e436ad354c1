// Logging in.

import { hasLeft, logIn, me } from "../api.js";
import { explain } from "../components/toast.js";
import { Field } from "../components/field.js";
import { html, useEffect, useState } from "../html.js";
import { t } from "../language.js";

// Whether somebody was logged in since the page was opened: then it is worth a word that it has ended.
let wasIn = false;
me.follow((who) => {
  if (who) wasIn = true;
});

export function Login() {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState(null);
  useEffect(() => {
    document.title = `${t("login.title")} · trionat`;
    document.querySelector(".login input")?.focus();
  }, []);
  const send = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    setBusy(true);
    setError(null);
    try {
      await logIn(form.get("username"), form.get("password"));
    } catch (problem) {
      setError(problem.status === 401 ? t("login.wrong") : explain(problem));
      setBusy(false);
      document.querySelector(".login input[type=password]")?.select();
    }
  };
  return html`<main class="login" id="content" tabindex="-1">
    <div class="panel">
      <h1>${t("login.title")}</h1>
      ${wasIn && !error && html`<p class="help" role="status">${t(hasLeft ? "login.left" : "login.ended")}</p>`}
      <form onSubmit=${send}>
        <${Field} label=${t("login.name")} name="username" autocomplete="username" autocapitalize="none" required />
        <${Field} label=${t("login.password")} name="password" type="password" autocomplete="current-password" required />
        ${error && html`<p class="error" role="alert">${error}</p>`}
        <button type="submit" class="primary" disabled=${busy}>${busy ? t("working") : t("login.submit")}</button>
      </form>
      <p class="hint">${t("login.hint")} <code>trionat user passwd NAME</code></p>
    </div>
  </main>`;
}
