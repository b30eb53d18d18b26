import { describe, expect, test } from "vitest";
import type { Container, Pod } from "../../../agent/kube/types.ts";
import { decide } from "../../../agent/pods/decide.ts";
import type { HookProgress, PodLocal } from "../../../agent/pods/local.ts";
import type { ContainerStatus } from "../../../agent/runtime/port.ts";
import { containerOf, exited, localOf, podOf, snapshot } from "./support.ts";

const began = 100_000;
const hook = { lifecycle: { preStop: { exec: { command: ["bye"] } } } };
const sidecar = (name: string, more: Partial<Container> = {}): Container => ({
  name,
  image: "image:1",
  restartPolicy: "Always",
  ...more,
});

function todo(
  pod: Pod,
  containers: ContainerStatus[],
  afterMs = 0,
  local: Partial<PodLocal> & { graceSeconds?: number; sinceMs?: number } = {},
) {
  const { graceSeconds = 30, sinceMs = began, ...rest } = local;
  const plan = decide(
    pod,
    snapshot({ containers }),
    localOf({ terminating: { sinceMs, graceSeconds }, ...rest }),
    began + afterMs,
  );
  const actions = plan.actions.map((action) => {
    switch (action.kind) {
      case "KillContainer":
        return `kill ${action.container} ${action.timeoutSeconds ?? action.graceSeconds}`;
      case "PreStop":
        return `hook ${action.container} ${action.graceSeconds}`;
      default:
        return action.kind;
    }
  });
  return { actions, wakeInMs: plan.wakeAtMs === undefined ? undefined : plan.wakeAtMs - began };
}

const hooks = (progress: Record<string, Partial<HookProgress>>) => ({
  hooks: new Map(Object.entries(progress).map(([id, some]) => [id, { beganAtMs: began, isDone: false, ...some }])),
});

describe("containers without hooks and sidecars", () => {
  const pod = podOf({ containers: [{ name: "app" }, { name: "log" }] });
  const both = [containerOf(), containerOf({ name: "log" })];
  test("stop together, each with the whole grace", () => {
    expect(todo(pod, both).actions).toEqual(["kill app 30", "kill log 30"]);
  });
  test("a shorter grace is another stop, although one is under way", () => {
    const attempts = new Map([["kill/app-0/30", { state: "running" } as const]]);
    expect(todo(pod, [containerOf()], 5_000, { attempts }).actions).toEqual([]);
    expect(todo(pod, [containerOf()], 5_000, { attempts, graceSeconds: 3, sinceMs: began + 5_000 }).actions).toEqual([
      "kill app 3",
    ]);
  });
  test("those that the runtime lost track of are stopped, too", () => {
    expect(todo(pod, [containerOf({ state: "unknown" })]).actions).toEqual(["kill app 30"]);
  });
});

describe("hooks", () => {
  const pod = podOf({ containers: [{ name: "app", ...hook }, { name: "log" }] });
  const app = [containerOf()];
  test("begin before the stop of their own container, and hold up no other", () => {
    expect(todo(pod, [containerOf(), containerOf({ name: "log" })]).actions).toEqual(["hook app 30", "kill log 30"]);
  });
  test("are waited for", () => {
    expect(todo(pod, app, 4_000, hooks({ "app-0": {} }))).toEqual({ actions: [], wakeInMs: 30_000 });
  });
  test("leave what is left of the grace, in whole seconds", () => {
    expect(todo(pod, app, 4_900, hooks({ "app-0": { isDone: true } })).actions).toEqual(["kill app 26"]);
  });
  test("that hang are given up at the end of the grace", () => {
    expect(todo(pod, app, 30_000, hooks({ "app-0": {} })).actions).toEqual(["kill app 0"]);
  });
  test("that began before the end count from the pod's end on", () => {
    const early = hooks({ "app-0": { beganAtMs: began - 20_000 } });
    expect(todo(pod, app, 20_000, early).actions).toEqual([]);
    expect(todo(pod, app, 30_000, early).actions).toEqual(["kill app 0"]);
  });
  test("that hang are given up when a shorter grace is over", () => {
    const shorter = { ...hooks({ "app-0": {} }), graceSeconds: 2, sinceMs: began + 10_000 };
    expect(todo(pod, app, 11_000, shorter)).toEqual({ actions: [], wakeInMs: 12_000 });
    expect(todo(pod, app, 12_000, shorter).actions).toEqual(["kill app 0"]);
  });
  test("do not run in a container that does not", () => {
    expect(todo(pod, [containerOf({ state: "unknown" })]).actions).toEqual(["kill app 30"]);
  });
  test("never leave more than the grace, whatever the clock does", () => {
    const later = { ...hooks({ "app-0": { beganAtMs: began + 3_600_000, isDone: true } }), sinceMs: began + 3_600_000 };
    expect(todo(pod, app, 0, later).actions).toEqual(["kill app 30"]);
  });
});

describe("sidecars", () => {
  const pod = podOf({
    initContainers: [sidecar("first"), { name: "init", image: "image:1" }, sidecar("second")],
    containers: [{ name: "app" }],
    ephemeralContainers: [{ name: "debug" }],
  });
  const of = (...names: string[]) => names.map((name) => containerOf({ name }));
  const rows: [name: string, alive: string[], afterMs: number, want: string[]][] = [
    ["wait for regular containers", ["app", "first", "second"], 0, ["kill app 30"]],
    ["end in reverse order", ["first", "second"], 5_000, ["kill second 25"]],
    ["the first declared is the last", ["first"], 9_500, ["kill first 21"]],
    ["do not wait for init containers", ["init", "first"], 0, ["kill init 30", "kill first 30"]],
    ["do not wait for debugging sessions", ["debug", "second"], 0, ["kill second 30", "kill debug 30"]],
    [
      "wait no longer than the grace",
      ["app", "first", "second"],
      30_000,
      ["kill app 30", "kill first 0", "kill second 0"],
    ],
  ];
  test.each(rows)("%s", (_name, alive, afterMs, want) => {
    expect(todo(pod, of(...alive), afterMs).actions.toSorted()).toEqual(want.toSorted());
  });
  test("begin their hooks with the others, not when it is their turn", () => {
    const withHooks = podOf({ initContainers: [sidecar("side", hook)], containers: [{ name: "app", ...hook }] });
    expect(todo(withHooks, of("app", "side")).actions).toEqual(["hook app 30", "hook side 30"]);
    const over = hooks({ "side-0": { isDone: true }, "app-0": {} });
    expect(todo(withHooks, of("app", "side"), 3_000, over).actions).toEqual([]);
    expect(todo(withHooks, of("side"), 7_000, over).actions).toEqual(["kill side 23"]);
  });
  test("are looked at again when the grace is over", () => {
    expect(todo(pod, of("app", "first")).wakeInMs).toBe(30_000);
  });
});

test("what is made but never ran needs no stop", () => {
  expect(todo(podOf(), [containerOf({ state: "created" })]).actions).toEqual(["StopSandbox"]);
});

test("while nothing runs but something may yet start, nothing is torn down", () => {
  for (const key of ["sandbox", "start/app"]) {
    const attempts = new Map([[key, { state: "running" } as const]]);
    expect(todo(podOf(), [exited()], 0, { attempts }).actions).toEqual([]);
  }
});
