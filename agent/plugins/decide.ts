/** What is known of one socket. Times are the monotonic clock's, in ms. */
export type PluginState =
  /** Somebody is at work on it. */
  | { readonly kind: "busy"; readonly identity: string }
  | { readonly kind: "registered"; readonly identity: string }
  | { readonly kind: "failed"; readonly identity: string; readonly failures: number; readonly retryAtMs: number };

export type PluginAction =
  /** `failures` so far, of this very socket. */
  | { readonly kind: "register"; readonly path: string; readonly identity: string; readonly failures: number }
  | { readonly kind: "deregister"; readonly path: string }
  /** End what is under way: the socket is another one or gone. */
  | { readonly kind: "cancel"; readonly path: string }
  | { readonly kind: "forget"; readonly path: string };

/**
 * What to do about plugins' sockets. Pure. A socket that was made anew is deregistered first; it is registered when that is done.
 *
 * @param seen  path → identity of the sockets that are there
 * @param known path → what we have made of it
 * @returns actions on different paths, in no order; `nextAtMs`: when a retry is due, undefined if none is waited for
 */
export function decidePlugins(
  seen: ReadonlyMap<string, string>,
  known: ReadonlyMap<string, PluginState>,
  nowMs: number,
): { actions: PluginAction[]; nextAtMs: number | undefined } {
  const actions: PluginAction[] = [];
  let nextAtMs = Number.POSITIVE_INFINITY;
  for (const [path, identity] of seen) {
    const state = known.get(path);
    if (state === undefined || (state.kind === "failed" && state.identity !== identity)) {
      actions.push({ kind: "register", path, identity, failures: 0 });
    } else if (state.kind === "failed") {
      if (state.retryAtMs <= nowMs) actions.push({ kind: "register", path, identity, failures: state.failures });
      else nextAtMs = Math.min(nextAtMs, state.retryAtMs);
    }
  }
  for (const [path, state] of known) {
    const identity = seen.get(path);
    if (identity === state.identity) continue;
    if (state.kind === "busy") actions.push({ kind: "cancel", path });
    else if (state.kind === "registered") actions.push({ kind: "deregister", path });
    else if (identity === undefined) actions.push({ kind: "forget", path });
  }
  return { actions, nextAtMs: nextAtMs === Number.POSITIVE_INFINITY ? undefined : nextAtMs };
}
