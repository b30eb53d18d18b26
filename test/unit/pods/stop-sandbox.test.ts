import { expect, test } from "vitest";
import { decide } from "../../../agent/pods/decide.ts";
import { Instances } from "../../../agent/pods/instances.ts";
import { exited, localOf, podOf, sandboxOf, snapshot } from "./support.ts";

const now = 10_000;
const died = snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] });
const stop = { kind: "StopSandbox", sandboxID: "s0" };

test("a sandbox that died by itself is stopped before another takes its place: its addresses go only then", () => {
  const fresh = new Set<string>();
  expect(decide(podOf(), died, localOf({ stoppedSandboxes: fresh }), now).actions).toEqual([stop]);
  const instances = new Instances({ initialMs: 10_000, maxMs: 300_000 });
  instances.done({ kind: "StopSandbox", sandboxID: "s0" });
  const { stoppedSandboxes } = instances;
  expect(decide(podOf(), died, localOf({ stoppedSandboxes }), now).actions).toContainEqual({
    kind: "CreateSandbox",
    attempt: 1,
  });
  instances.observe(snapshot({ sandboxes: [] }), now, now);
  expect(instances.stoppedSandboxes.size).toBe(0);
});

test("and when its pod ends", () => {
  const terminating = { sinceMs: 9_000, graceSeconds: 30 };
  const local = { terminating, stoppedSandboxes: new Set<string>() };
  expect(decide(podOf(), died, localOf(local), now).actions).toContainEqual(stop);
  const stopped = localOf({ terminating, areVolumesGone: true });
  expect(decide(podOf(), died, stopped, now).actions).toEqual([{ kind: "CleanUp" }]);
});
