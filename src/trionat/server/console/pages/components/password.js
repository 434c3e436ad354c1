// A password that somebody chooses: typed twice, and not too short.

import { t } from "../language.js";

export const SHORTEST_PASSWORD = 8; // characters, as the server has it

/** The new password of a form, whose fields are called so; what is thrown says what is wrong with it. */
export function newPassword(form, name, again) {
  const password = form.get(name);
  if ([...password].length < SHORTEST_PASSWORD) throw new Error(t("password.short", { n: SHORTEST_PASSWORD }));
  if (password !== form.get(again)) throw new Error(t("password.differ"));
  return password;
}
