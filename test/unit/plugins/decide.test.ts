import { expect, test } from "vitest";
import { decidePlugins, type PluginAction, type PluginState } from "../../../agent/plugins/decide.ts";

const failed = (identity: string, retryAtMs: number): PluginState => ({
  kind: "failed",
  identity,
  failures: 3,
  retryAtMs,
});
const register = (identity: string, failures = 0): PluginAction => ({
  kind: "register",
  path: "/a",
  identity,
  failures,
});
const cases: {
  name: string;
  seen?: string;
  known?: PluginState;
  want: PluginAction[];
  nextAtMs?: number;
}[] = [
  { name: "a new socket is registered", seen: "1", want: [register("1")] },
  { name: "a registered one is left alone", seen: "1", known: { kind: "registered", identity: "1" }, want: [] },
  {
    name: "one that has gone is deregistered",
    known: { kind: "registered", identity: "1" },
    want: [{ kind: "deregister", path: "/a" }],
  },
  {
    name: "one that was made anew is deregistered first",
    seen: "2",
    known: { kind: "registered", identity: "1" },
    want: [{ kind: "deregister", path: "/a" }],
  },
  { name: "one at work is left alone", seen: "1", known: { kind: "busy", identity: "1" }, want: [] },
  {
    name: "work on one that has gone is ended",
    known: { kind: "busy", identity: "1" },
    want: [{ kind: "cancel", path: "/a" }],
  },
  {
    name: "work on one that was made anew is ended",
    seen: "2",
    known: { kind: "busy", identity: "1" },
    want: [{ kind: "cancel", path: "/a" }],
  },
  { name: "a failed one waits", seen: "1", known: failed("1", 1_001), want: [], nextAtMs: 1_001 },
  { name: "a failed one is tried again when due", seen: "1", known: failed("1", 1_000), want: [register("1", 3)] },
  {
    name: "a failed one that was made anew starts anew at once",
    seen: "2",
    known: failed("1", 9_000),
    want: [register("2")],
  },
  {
    name: "a failed one that has gone is forgotten",
    known: failed("1", 9_000),
    want: [{ kind: "forget", path: "/a" }],
  },
];

for (const { name, seen, known, want, nextAtMs } of cases) {
  test(`decidePlugins: ${name}`, () => {
    const sockets = new Map(seen === undefined ? [] : [["/a", seen]]);
    const states = new Map(known === undefined ? [] : [["/a", known]]);
    expect(decidePlugins(sockets, states, 1_000)).toEqual({ actions: want, nextAtMs });
  });
}
