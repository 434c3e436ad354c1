// Preact and htm, as all other modules here use them. What is put into a template is text: nothing here ever becomes HTML.

import htm from "./vendor/htm.js";
import { h } from "./vendor/preact.js";

export const html = htm.bind(h);
export { render, createContext } from "./vendor/preact.js";
export {
  useCallback,
  useEffect,
  useId,
  useLayoutEffect,
  useMemo,
  useRef,
  useState,
} from "./vendor/preact-hooks.js";
