import { describe, expect, test } from "vitest";
import type { Container, ContainerState, ContainerStatus, Pod, PodPhase, PodSpec } from "../../../agent/kube/types.ts";
import { type PhaseInputs, podPhase } from "../../../agent/pods/phase.ts";
import { podOf, statusOf } from "./support.ts";

const running: ContainerState = { running: {} };
const waiting: ContainerState = { waiting: { reason: "ContainerCreating" } };
const ended = (exitCode: number, reason = exitCode === 0 ? "Completed" : "Error"): ContainerState => ({
  terminated: { exitCode, reason },
});
const is = (state: ContainerState, more: Partial<ContainerStatus> = {}): Partial<ContainerStatus> => ({
  state,
  ...more,
});
const again = (last: ContainerState) => is(waiting, { lastState: last });

function phaseOf(pod: Pod, by: Record<string, Partial<ContainerStatus>>, changes: Partial<PhaseInputs> = {}): PodPhase {
  const statusesOf = (list: readonly Container[] = []) =>
    list.flatMap(({ name }): ContainerStatus[] => {
      const status = by[name];
      return status === undefined
        ? []
        : [{ name, ready: false, restartCount: 0, image: "image:1", imageID: "", ...status }];
    });
  return podPhase({
    pod,
    initStatuses: statusesOf(pod.spec.initContainers),
    statuses: statusesOf(pod.spec.containers),
    isTerminated: false,
    hasRegular: false,
    replaced: new Set(),
    ...changes,
  });
}

const policy = (restartPolicy: "Always" | "OnFailure" | "Never", spec: Partial<PodSpec> = {}) =>
  podOf({ restartPolicy, containers: [{ name: "a" }, { name: "b" }], ...spec });
const always = policy("Always");
const onFailure = policy("OnFailure");
const never = policy("Never");
const init = { name: "init" };
const sidecar: Container = { name: "side", restartPolicy: "Always" };
const initOf = (restartPolicy: "Always" | "OnFailure" | "Never") => policy(restartPolicy, { initContainers: [init] });
const withSidecar = (restartPolicy: "Always" | "Never") => policy(restartPolicy, { initContainers: [sidecar] });
const overIsh: Partial<PhaseInputs> = { isTerminated: true };
const both = (status: Partial<ContainerStatus>) => ({ a: status, b: status });

interface Row {
  name: string;
  pod: Pod;
  by: Record<string, Partial<ContainerStatus>>;
  more?: Partial<PhaseInputs>;
  want: PodPhase;
}

function check(rows: Row[]): void {
  test.each(rows)("$name: $want", ({ pod, by, more, want }) => expect(phaseOf(pod, by, more)).toBe(want));
}

describe("regular containers", () => {
  check([
    { name: "nothing is known", pod: always, by: {}, want: "Pending" },
    { name: "all wait", pod: always, by: both(is(waiting)), want: "Pending" },
    { name: "one waits, one runs", pod: always, by: { a: is(running), b: is(waiting) }, want: "Pending" },
    { name: "one is unknown, one runs", pod: always, by: { a: is(running) }, want: "Pending" },
    { name: "all run", pod: always, by: both(is(running)), want: "Running" },
    { name: "one runs, one has failed for good", pod: never, by: { a: is(running), b: is(ended(1)) }, want: "Running" },
    { name: "one waits after a crash", pod: always, by: { a: is(running), b: again(ended(1)) }, want: "Running" },
    { name: "all wait after crashes", pod: always, by: both(again(ended(1))), want: "Running" },
    { name: "all ended, Always", pod: always, by: both(is(ended(0))), want: "Running" },
    { name: "all ended well, OnFailure", pod: onFailure, by: both(is(ended(0))), want: "Succeeded" },
    { name: "one failed, OnFailure", pod: onFailure, by: { a: is(ended(0)), b: is(ended(1)) }, want: "Running" },
    { name: "all ended well, Never", pod: never, by: both(is(ended(0))), want: "Succeeded" },
    { name: "one failed, Never", pod: never, by: { a: is(ended(0)), b: is(ended(1)) }, want: "Failed" },
    {
      name: "one that is replaced starts again whatever the policy says",
      pod: never,
      by: { a: is(ended(0)), b: is(ended(137)) },
      more: { replaced: new Set(["b"]) },
      want: "Running",
    },
    {
      name: "its own policy counts more than the pod's",
      pod: policy("Never", { containers: [{ name: "a" }, { name: "b", restartPolicy: "OnFailure" }] }),
      by: { a: is(ended(0)), b: is(ended(1)) },
      want: "Running",
    },
    {
      name: "so do its rules",
      pod: policy("Always", {
        containers: [
          {
            name: "a",
            restartPolicy: "Never",
            restartPolicyRules: [{ action: "Restart", exitCodes: { operator: "In", values: [42] } }],
          },
        ],
      }),
      by: { a: is(ended(42)) },
      want: "Running",
    },
    {
      name: "all were removed to begin anew",
      pod: never,
      by: both(again(ended(137, "RestartingAllContainers"))),
      want: "Running",
    },
  ]);
});

describe("init containers", () => {
  const behind = both(is(waiting));
  check([
    { name: "waits", pod: initOf("Always"), by: { init: is(waiting), ...behind }, want: "Pending" },
    { name: "is unknown", pod: initOf("Always"), by: behind, want: "Pending" },
    { name: "runs", pod: initOf("Always"), by: { init: is(running), ...behind }, want: "Pending" },
    {
      name: "runs again in a pod that ran",
      pod: initOf("Always"),
      by: { init: is(running), ...both(is(running)) },
      want: "Pending",
    },
    {
      name: "has ended well",
      pod: initOf("Always"),
      by: { init: is(ended(0)), ...both(is(running)) },
      want: "Running",
    },
    { name: "failed, Always", pod: initOf("Always"), by: { init: is(ended(1)), ...behind }, want: "Pending" },
    { name: "failed, OnFailure", pod: initOf("OnFailure"), by: { init: is(ended(1)), ...behind }, want: "Pending" },
    { name: "failed, Never", pod: initOf("Never"), by: { init: is(ended(1)), ...behind }, want: "Failed" },
    {
      name: "waits after a failure, Never",
      pod: initOf("Never"),
      by: { init: again(ended(1)), ...behind },
      want: "Failed",
    },
    {
      name: "waits after a failure, Always",
      pod: initOf("Always"),
      by: { init: again(ended(1)), ...behind },
      want: "Pending",
    },
    {
      name: "ran out of memory in a child, Never",
      pod: initOf("Never"),
      by: { init: is(ended(0, "OOMKilled")), ...behind },
      want: "Failed",
    },
    {
      name: "was removed to begin anew",
      pod: initOf("Never"),
      by: { init: again(ended(137, "RestartingAllContainers")), ...both(again(ended(137, "RestartingAllContainers"))) },
      want: "Running",
    },
  ]);
});

describe("sidecars", () => {
  const started = is(running, { started: true });
  const starting = is(running, { started: false });
  check([
    { name: "waits", pod: withSidecar("Always"), by: { side: is(waiting), ...both(is(waiting)) }, want: "Pending" },
    {
      name: "starts, nothing behind it yet",
      pod: withSidecar("Always"),
      by: { side: starting, ...both(again(ended(1))) },
      want: "Pending",
    },
    {
      name: "starts again beside running containers",
      pod: withSidecar("Always"),
      by: { side: starting, ...both(is(running)) },
      more: { hasRegular: true },
      want: "Running",
    },
    {
      name: "runs beside running ones",
      pod: withSidecar("Always"),
      by: { side: started, ...both(is(running)) },
      want: "Running",
    },
    {
      name: "runs when all others have ended",
      pod: withSidecar("Never"),
      by: { side: started, ...both(is(ended(0))) },
      want: "Running",
    },
    {
      name: "failed beside running ones",
      pod: withSidecar("Never"),
      by: { side: is(ended(1)), ...both(is(running)) },
      want: "Running",
    },
    {
      name: "failed after all others succeeded",
      pod: withSidecar("Never"),
      by: { side: is(ended(1)), ...both(is(ended(0))) },
      want: "Succeeded",
    },
    { name: "is unknown", pod: withSidecar("Always"), by: both(is(running)), want: "Pending" },
  ]);
});

describe("a pod that is over", () => {
  const fileOf = (spec: Partial<PodSpec> = {}) =>
    podOf({ containers: [{ name: "a" }], ...spec }, { annotations: { "kubernetes.io/config.source": "file" } });
  check([
    {
      name: "ended well although it would restart",
      pod: always,
      by: both(is(ended(0))),
      more: overIsh,
      want: "Succeeded",
    },
    { name: "one was killed", pod: always, by: { a: is(ended(0)), b: is(ended(137)) }, more: overIsh, want: "Failed" },
    { name: "never came to run", pod: always, by: both(is(waiting)), more: overIsh, want: "Failed" },
    {
      name: "never came past its init container",
      pod: initOf("Always"),
      by: { init: is(ended(137)), ...both(is(waiting)) },
      more: overIsh,
      want: "Failed",
    },
    {
      name: "of a file: its file is still there",
      pod: fileOf(),
      by: { a: is(ended(0)) },
      more: overIsh,
      want: "Running",
    },
    { name: "of a file and never ran", pod: fileOf(), by: { a: is(waiting) }, more: overIsh, want: "Pending" },
    {
      name: "of a file that runs once",
      pod: fileOf({ restartPolicy: "Never" }),
      by: { a: is(ended(1)) },
      more: overIsh,
      want: "Failed",
    },
  ]);
});

test.each(["Succeeded", "Failed"] as const)("%s is never left, whoever said it", (phase) => {
  const pod = podOf();
  expect(statusOf({ previous: { phase, containerStatuses: [] } }).phase).toBe(phase);
  expect(statusOf({ pod: { ...pod, status: { phase } } }).phase).toBe(phase);
});
