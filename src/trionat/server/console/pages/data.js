// Lists of the API as components use them: fetched, fetched again when that is due, and kept up to date by the live stream.

import { get, getAll, getPages } from "./api.js";
import { useCallback, useEffect, useRef, useState } from "./html.js";
import { follow, useOpened, useTick } from "./live.js";

/** `{value, error, loading, reload}` of one answer; `every` in seconds, 0 for once. */
export function useAnswer(path, every = 0, fetchIt = get) {
  const [state, setState] = useState({ value: null, error: null, loading: true });
  const opened = useOpened();
  const tick = useTick(every || 86400);
  const latest = useRef(0);
  const load = useCallback(async () => {
    const turn = (latest.current += 1);
    try {
      const value = await fetchIt(path);
      if (turn === latest.current) setState({ value, error: null, loading: false });
    } catch (error) {
      // What was there stays, and the banner tells that the server is away.
      if (turn === latest.current) setState((before) => ({ value: before.value, error, loading: false }));
    }
  }, [path, fetchIt]);
  useEffect(() => {
    setState((before) => ({ ...before, loading: before.value === null }));
    load();
    return () => {
      latest.current += 1;
    };
  }, [load, opened, tick]);
  return { ...state, reload: load };
}

/** The same for all pages of a list: `value` is an array. */
export function useList(path, every = 0) {
  return useAnswer(path, every, getAll);
}

/** A list that may be very long, the newest first: one page of it, and one more each time that `more` is called, which is null where that is all. Fetched again each `every` seconds while it is one page. */
export function usePages(path, every = 0) {
  const [asked, setAsked] = useState({ path, pages: 1 });
  const pages = asked.path === path ? asked.pages : 1;
  const fetchIt = useCallback(async (from) => ({ ...(await getPages(from, pages)), pages }), [pages]);
  const answer = useAnswer(path, pages === 1 ? every : 0, fetchIt);
  const there = answer.value?.pages ?? 0;
  const failed = there < pages && answer.error;
  return {
    ...answer,
    value: answer.value?.items ?? null,
    busy: there > 0 && there < pages && !failed,
    more: answer.value?.next ? () => (failed ? answer.reload() : setAsked({ path, pages: there + 1 })) : null,
  };
}

/** A list that the live stream keeps up to date. */
export function useLiveList(path, topic, keyOf) {
  const list = useList(path);
  const [rows, setRows] = useState(null);
  const items = useRef(new Map());
  const changes = useRef([]);
  const known = useRef(null);
  if (list.value !== known.current) {
    known.current = list.value;
    items.current = new Map((list.value ?? []).map((item) => [keyOf(item), item]));
    // What came while the list was on its way: it may be in the list already, and twice does no harm.
    for (const change of changes.current) apply(items.current, change, keyOf);
    changes.current = [];
    setRows(list.value && [...items.current.values()]);
  }
  useEffect(
    () =>
      follow(topic, (_, change) => {
        changes.current = [...changes.current.slice(-99), change];
        if (known.current === null) return;
        apply(items.current, change, keyOf);
        setRows([...items.current.values()]);
      }),
    [topic],
  );
  const opened = useOpened();
  useEffect(() => {
    changes.current = [];
  }, [opened]);
  return { ...list, value: rows };
}

/** One answer, which is an entry of a list that the live stream tells of. */
export function useLiveAnswer(path, topic, isIt) {
  const answer = useAnswer(path);
  const [newer, setNewer] = useState(null);
  useEffect(() => setNewer(null), [answer.value]);
  useEffect(
    () =>
      follow(topic, (_, change) => {
        const found = [...(change.added ?? []), ...(change.changed ?? [])].find(isIt);
        if (found) setNewer(found);
      }),
    [topic, path],
  );
  return { ...answer, value: newer ?? answer.value };
}

/** What the live stream has told of a topic since this is shown, by key. */
export function useChanged(topic, keyOf) {
  const [items, setItems] = useState(new Map());
  useEffect(
    () =>
      follow(topic, (_, change) =>
        setItems((before) => {
          const after = new Map(before);
          apply(after, change, keyOf);
          return after;
        }),
      ),
    [topic],
  );
  return items;
}

function apply(items, change, keyOf) {
  for (const item of [...(change.added ?? []), ...(change.changed ?? [])]) items.set(keyOf(item), item);
  for (const key of change.removed ?? []) items.delete(key);
}
