import { expect, test } from "vitest";
import { decide } from "../../../agent/pods/decide.ts";
import { Instances } from "../../../agent/pods/instances.ts";
import { restartAllTrigger } from "../../../agent/pods/restart-all.ts";
import { withheldUntilStopped } from "../../../agent/pods/status-inputs.ts";
import { containerOf, exited, image, localOf, podOf, snapshot } from "./support.ts";

const now = 10_000;
const rules = [{ action: "RestartAllContainers" as const, exitCodes: { operator: "NotIn" as const, values: [0] } }];
const pod = podOf({
  containers: [
    { name: "app", image: "image:1", restartPolicyRules: rules },
    { name: "log", image: "image:1" },
  ],
});

test("nothing is removed while a container is being started: it has to go with the others", () => {
  const observed = snapshot({ containers: [exited({ exitCode: 42 })] });
  const attempts = new Map([["start/log", { state: "running" as const }]]);
  expect(decide(pod, observed, localOf({ attempts }), now).actions).toEqual([]);
  expect(decide(pod, observed, localOf(), now).actions).toEqual([
    { kind: "RemoveContainer", containerID: "app-0", keepsLogs: true },
  ]);
});

test("an instance that we stopped ourselves asks for nothing by its exit code", () => {
  const observed = snapshot({ containers: [exited({ exitCode: 137 }), containerOf({ name: "log" })] });
  expect(restartAllTrigger(pod, observed, () => false)?.id).toBe("app-0");
  expect(restartAllTrigger(pod, observed, () => true)).toBeUndefined();
  const local = localOf({ replaced: new Set(["app-0"]), images: new Map([["app", image]]) });
  expect(decide(pod, observed, local, now).actions).toEqual([
    { kind: "StartContainer", container: "app", sandboxID: "s0", createdID: undefined },
  ]);
});

test("a container that ends within the hook before its replacement is replaced all the same", () => {
  const hooked = podOf({
    restartPolicy: "OnFailure",
    containers: [
      {
        name: "app",
        image: "image:1",
        livenessProbe: { exec: { command: ["true"] } },
        lifecycle: { preStop: { exec: { command: ["quit"] } } },
      },
    ],
  });
  const observed = snapshot({ containers: [containerOf()] });
  const [action] = decide(hooked, observed, localOf({ verdict: () => "failure" }), now).actions;
  expect(action).toMatchObject({ kind: "PreStop", containerID: "app-0", replaces: true });
  const instances = new Instances({ initialMs: 10_000, maxMs: 300_000 });
  if (action !== undefined) instances.begin(action, observed, now);
  expect([...instances.replaced]).toEqual(["app-0"]);
});

test("the end of a pod is told once nothing of it is left running, its sandbox included", () => {
  const over = { phase: "Failed" as const, reason: "Evicted", message: "m", containerStatuses: [] };
  const before = { phase: "Running" as const };
  expect(withheldUntilStopped(over, before, false)).toEqual({ phase: "Running", containerStatuses: [] });
  expect(withheldUntilStopped(over, before, true)).toBe(over);
  expect(withheldUntilStopped(over, { phase: "Failed" }, false)).toBe(over);
});
