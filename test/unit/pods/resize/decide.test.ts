import { describe, expect, test } from "vitest";
import type { Container, Pod, PodSpec } from "../../../../agent/kube/types.ts";
import { decide } from "../../../../agent/pods/decide.ts";
import type { PodLocal } from "../../../../agent/pods/local.ts";
import type { PodResources } from "../../../../agent/pods/resize/allocation.ts";
import type { ContainerStatus } from "../../../../agent/runtime/port.ts";
import { containerOf, exited, image, localOf, podOf, snapshot } from "../support.ts";
import { both, sized } from "./support.ts";

const now = 100_000;
const policy: Partial<Container> = { resizePolicy: [{ resourceName: "memory", restartPolicy: "RestartContainer" }] };
const hook: Partial<Container> = { lifecycle: { preStop: { exec: { command: ["bye"] } } } };
const small = both("100m", "64Mi");
const big = both("100m", "128Mi");
const pod = (more: Partial<Container> = {}, spec: Partial<PodSpec> = {}): Pod =>
  podOf({ containers: [sized("app", big, more), sized("log", small)], ...spec });
const had: PodResources = { containers: { app: small, log: small } };
const has: PodResources = { containers: { app: big, log: small } };
const up = [containerOf(), containerOf({ name: "log" })];
const failing = (retryAtMs: number): PodLocal["attempts"] =>
  new Map([["resize", { state: "failed", reason: "", message: "no", retryAtMs, failures: 1 }]]);

const cases: {
  name: string;
  of?: Pod;
  from?: PodResources;
  actual?: PodResources;
  containers?: ContainerStatus[];
  local?: Partial<PodLocal>;
  want: string[];
}[] = [
  { name: "all have it", from: has, want: [] },
  { name: "a container has not", from: had, want: ["ResizePod"] },
  { name: "it is under way", from: had, local: { attempts: new Map([["resize", { state: "running" }]]) }, want: [] },
  { name: "it rests after a failure", from: had, local: { attempts: failing(now + 1) }, want: [] },
  { name: "its rest is over", from: had, local: { attempts: failing(now) }, want: ["ResizePod"] },
  { name: "a restart is needed first", of: pod(policy), from: had, want: ["KillContainer app"] },
  { name: "with its hook", of: pod({ ...policy, ...hook }), from: had, want: ["PreStop app"] },
  {
    name: "the one that restarts has stopped, the pod's cgroup is next",
    of: pod(policy),
    from: had,
    containers: [exited(), containerOf({ name: "log" })],
    local: { replaced: new Set(["app-0"]) },
    want: ["ResizePod"],
  },
  {
    name: "it starts again once that is done",
    of: pod(policy),
    from: has,
    containers: [exited(), containerOf({ name: "log" })],
    local: { replaced: new Set(["app-0"]) },
    want: ["StartContainer app"],
  },
  {
    name: "it starts again although that failed: others may be why",
    of: pod(policy),
    from: had,
    containers: [exited(), containerOf({ name: "log" })],
    local: { replaced: new Set(["app-0"]), attempts: failing(now + 1) },
    want: ["StartContainer app"],
  },
  {
    name: "it has started with the new ones after a failure: no second restart, but another attempt",
    of: pod(policy),
    from: had,
    actual: has,
    want: ["ResizePod"],
  },
  {
    name: "cpu changes, and memory's policy does not matter",
    of: podOf({ containers: [sized("app", both("1", "64Mi"), policy), sized("log", small)] }),
    from: had,
    want: ["ResizePod"],
  },
  {
    name: "a sidecar restarts, too",
    of: podOf({
      containers: [sized("app", big)],
      initContainers: [sized("log", big, { ...policy, restartPolicy: "Always" })],
    }),
    from: { containers: { app: big, log: small } },
    want: ["KillContainer log"],
  },
  {
    name: "an init container that runs is not restarted",
    of: podOf({ containers: [sized("app", big)], initContainers: [sized("log", big, policy)] }),
    from: { containers: { app: big, log: small } },
    containers: [containerOf({ name: "log" })],
    want: ["ResizePod"],
  },
  { name: "nobody knows what they have", want: ["ResizePod"] },
  {
    name: "one of them is just being made, with what it was to have then",
    from: had,
    containers: [containerOf({ name: "log" })],
    local: { attempts: new Map([["start/app", { state: "running" }]]) },
    want: [],
  },
  {
    name: "its successor is just being made",
    from: had,
    containers: [exited({ exitCode: 1 }), containerOf({ name: "log" })],
    local: { attempts: new Map([["start/app", { state: "running" }]]) },
    want: [],
  },
  {
    name: "it runs, but its postStart hook is not over",
    from: had,
    local: { attempts: new Map([["start/app", { state: "running" }]]) },
    want: ["ResizePod"],
  },
];

describe("a pod with other resources than it was given", () => {
  test.each(cases)("$name", ({ of = pod(), from, actual = from, containers = up, local = {}, want }) => {
    const images = new Map(["app", "log"].map((name) => [name, image]));
    const resize = { actual, from };
    const { actions } = decide(of, snapshot({ containers }), localOf({ images, resize, ...local }), now);
    expect(
      actions.map((action) => ("container" in action ? `${action.kind} ${action.container}` : action.kind)),
    ).toEqual(want);
  });

  test("stops a container with the message that people know", () => {
    const resize = { actual: had, from: had };
    const [action] = decide(pod(policy), snapshot({ containers: up }), localOf({ resize }), now).actions;
    expect(action).toMatchObject({ why: "Container app resize requires restart", replaces: true, graceSeconds: 30 });
  });
});
