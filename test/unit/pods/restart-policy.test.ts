import { describe, expect, test } from "vitest";
import type { Container, RestartPolicy } from "../../../agent/kube/types.ts";
import { nextInit } from "../../../agent/pods/init-containers.ts";
import { failsPod, initExitCode, restartsAfter, ruleAfter, shouldRestart } from "../../../agent/pods/restart-policy.ts";
import type { ContainerStatus } from "../../../agent/runtime/port.ts";
import { containerOf, exited, podOf } from "./support.ts";

type Rule = NonNullable<Container["restartPolicyRules"]>[number];
const rule = (operator: "In" | "NotIn", values: number[], action: Rule["action"] = "Restart"): Rule => ({
  action,
  exitCodes: { operator, values },
});

describe("whether a container that ended starts again", () => {
  const rows: [pod: RestartPolicy, own: RestartPolicy | undefined, rules: Rule[], exitCode: number, want: boolean][] = [
    ["Always", undefined, [], 0, true],
    ["Always", undefined, [], 1, true],
    ["OnFailure", undefined, [], 0, false],
    ["OnFailure", undefined, [], 1, true],
    ["Never", undefined, [], 0, false],
    ["Never", undefined, [], 1, false],
    // its own policy replaces the pod's
    ["Never", "Always", [], 0, true],
    ["Never", "OnFailure", [], 1, true],
    ["Never", "OnFailure", [], 0, false],
    ["Always", "Never", [], 1, false],
    // a rule that matches comes before both
    ["Never", "Never", [rule("In", [42])], 42, true],
    ["Never", "Never", [rule("In", [42])], 41, false],
    ["Never", "Never", [rule("NotIn", [0])], 1, true],
    ["Never", "Never", [rule("NotIn", [0])], 0, false],
    ["Never", "Never", [rule("In", [42], "RestartAllContainers")], 42, true],
    // one that does not leaves it to the container's policy
    ["Never", "OnFailure", [rule("In", [42])], 1, true],
    ["Always", "Never", [rule("In", [42])], 1, false],
  ];
  test.each(rows)("pod %s, container %s, rules %j, exit %d: %s", (restartPolicy, own, rules, exitCode, want) => {
    const container: Container = {
      name: "app",
      ...(own === undefined ? {} : { restartPolicy: own }),
      restartPolicyRules: rules,
    };
    expect(restartsAfter(podOf({ restartPolicy }), container, exitCode)).toBe(want);
  });

  test("nothing of a pod that is deleted", () => {
    const pod = podOf({}, { deletionTimestamp: "2026-01-01T00:00:00Z" });
    expect(shouldRestart(pod, { name: "app" }, { state: "exited", exitCode: 1 })).toBe(false);
  });

  test.each(["created", "unknown"] as const)("one that is %s does, whatever the policy", (state) => {
    expect(shouldRestart(podOf({ restartPolicy: "Never" }), { name: "app" }, { state, exitCode: 0 })).toBe(true);
  });
});

test("the first rule that matches counts, and one that makes no sense never does", () => {
  const container: Container = {
    name: "app",
    restartPolicyRules: [
      { action: "RestartAllContainers" },
      rule("In", [1]),
      rule("NotIn", [2], "RestartAllContainers"),
    ],
  };
  expect([1, 2, 3].map((exitCode) => ruleAfter(container, exitCode))).toEqual([
    "Restart",
    undefined,
    "RestartAllContainers",
  ]);
});

test.each([
  ["Always", undefined, 1, false],
  ["OnFailure", undefined, 1, false],
  ["Never", undefined, 1, true],
  ["Never", undefined, 0, false],
  ["Never", "Always", 1, false],
  ["Never", "OnFailure", 1, false],
  ["Always", "Never", 1, true],
] as const)(
  "an init container of a pod with %s, itself %s, that exits with %d fails the pod: %s",
  (pod, own, code, want) => {
    const container: Container = { name: "init", ...(own === undefined ? {} : { restartPolicy: own }) };
    expect(failsPod(podOf({ restartPolicy: pod }), container, code)).toBe(want);
  },
);

test("an init container in which something ran out of memory has failed", () => {
  expect(initExitCode({ exitCode: 0, reason: "OOMKilled" })).toBe(137);
  expect(initExitCode({ exitCode: 0, reason: "Completed" })).toBe(0);
});

describe("initialization", () => {
  const pod = podOf({
    initContainers: [{ name: "a" }, { name: "side", restartPolicy: "Always" }, { name: "b" }],
  });
  const rows: {
    name: string;
    has: ContainerStatus[];
    isStarted?: boolean;
    want: [boolean, string[]];
    spec?: RestartPolicy;
  }[] = [
    { name: "begins with the first", has: [], want: [false, ["a"]] },
    {
      name: "starts again what was made only",
      has: [containerOf({ name: "a", state: "created" })],
      want: [false, ["a"]],
    },
    { name: "waits for one that runs", has: [containerOf({ name: "a" })], want: [false, []] },
    { name: "goes on after one that succeeded", has: [exited({ name: "a" })], want: [false, ["side"]] },
    { name: "tries one again that failed", has: [exited({ name: "a", exitCode: 1 })], want: [false, ["a"]] },
    {
      name: "is over when one failed for good",
      has: [exited({ name: "a", exitCode: 1 })],
      spec: "Never",
      want: [false, []],
    },
    {
      name: "tries one again that ran out of memory",
      has: [exited({ name: "a", exitCode: 0, reason: "OOMKilled" })],
      want: [false, ["a"]],
    },
    { name: "waits for a sidecar to start", has: [containerOf({ name: "side" })], isStarted: false, want: [false, []] },
    { name: "goes on beside a sidecar", has: [containerOf({ name: "side" })], want: [false, ["b"]] },
    {
      name: "starts a sidecar that ended again before it goes on",
      has: [exited({ name: "side" })],
      want: [false, ["side"]],
    },
    {
      name: "starts a sidecar that ended again while a later one runs",
      has: [containerOf({ name: "b" }), exited({ name: "side" })],
      want: [false, ["side"]],
    },
    { name: "is done after the last", has: [exited({ name: "b" }), containerOf({ name: "side" })], want: [true, []] },
    {
      name: "is done where a regular container runs, but for sidecars",
      has: [containerOf({ name: "app" })],
      want: [true, ["side"]],
    },
    {
      name: "is not done because a regular container once ran",
      has: [exited({ name: "app" })],
      want: [false, ["a"]],
    },
  ];
  test.each(rows)("$name", ({ has, isStarted = true, want: [isInitialized, start], spec = "Always" }) => {
    const progress = nextInit({ ...pod, spec: { ...pod.spec, restartPolicy: spec } }, has, () => isStarted);
    expect({ ...progress, start: progress.start.map(({ name }) => name) }).toEqual({ isInitialized, start });
  });
});
