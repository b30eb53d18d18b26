import { expect, test } from "vitest";
import { isEventShown, isStepShown, PodObserver } from "../../../agent/pods/observer.ts";
import type { PodAction } from "../../../agent/pods/plan.ts";
import type { PodSnapshot, RuntimeEvent } from "../../../agent/runtime/port.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { containerOf, exited, podOf, sandboxOf, snapshot } from "./support.ts";

const runs = snapshot({ containers: [containerOf()] });
const ended = snapshot({ containers: [exited()] });
const stopped = snapshot({ sandboxes: [sandboxOf({ ready: false })], containers: [exited()] });
const exit = (containerID: string | undefined, kind: RuntimeEvent["kind"] = "exited"): RuntimeEvent => ({
  kind,
  podUID: "u1",
  containerID,
});
const kill = { kind: "KillContainer", containerID: "app-0", container: "app", graceSeconds: 30, why: "" } as const;

/** An observer whose looks end when the test says so, with what it says. */
function lookingAt() {
  const looks: ((seen: PodSnapshot) => void)[] = [];
  const runtime = {
    podSnapshot: async () => await new Promise<PodSnapshot>((resolve) => void looks.push(resolve)),
  };
  const deps = { runtime, clock: new FakeClock(), node: { hostIPs: () => ["192.168.0.1"] }, metrics: undefined };
  const observer = new PodObserver("u1", deps as unknown as ConstructorParameters<typeof PodObserver>[1]);
  const observe = async () => await observer.observe(podOf(), () => false);
  const show = async (seen: PodSnapshot) => {
    looks.shift()?.(seen);
    await settle();
  };
  return { observer, observe, looks, show };
}

test("an exit that a look under way shows needs no other look, however often it is told", async () => {
  const { observer, observe, looks, show } = lookingAt();
  const seen = observe();
  observer.expect((observed) => isStepShown(kill, observed));
  observer.expect((observed) => isEventShown(exit("app-0"), observed));
  await show(ended);
  expect(looks).toEqual([]);
  expect((await seen).containers[0]?.state).toBe("exited");
  observer.expect((observed) => isEventShown(exit("app-0"), observed));
  await observe();
  expect(looks).toEqual([]);
});

test("one that it does not show yet is looked at again", async () => {
  const { observer, observe, looks, show } = lookingAt();
  const seen = observe();
  observer.expect((observed) => isEventShown(exit("app-0"), observed));
  await show(runs);
  expect(looks).toHaveLength(1);
  await show(ended);
  expect((await seen).containers[0]?.state).toBe("exited");
});

test("what was expected of one look is not expected of the next", async () => {
  const { observer, observe, show } = lookingAt();
  const first = observe();
  await show(runs);
  await first;
  observer.invalidate();
  const second = observe();
  observer.expect(() => false);
  await show(runs);
  await show(ended);
  expect((await second).containers[0]?.state).toBe("exited");
});

const events: [name: string, event: RuntimeEvent, observed: PodSnapshot, isShown: boolean][] = [
  ["a container that is seen to have ended", exit("app-0"), ended, true],
  ["a container that is seen to run", exit("app-0"), runs, false],
  ["a container that nobody has seen", exit("app-1"), ended, false],
  ["a sandbox that is seen to have ended", exit("s0"), stopped, true],
  ["a sandbox that is seen to be ready", exit("s0"), ended, false],
  ["anything", exit(undefined), ended, false],
  ["another start", exit("app-0", "started"), ended, false],
  ["the kernel's killing", exit("app-0", "unknown"), ended, false],
];
test.each(events)("an event about %s", (_name, event, observed, isShown) => {
  expect(isEventShown(event, observed)).toBe(isShown);
});

const steps: [action: PodAction, observed: PodSnapshot, isShown: boolean][] = [
  [kill, runs, false],
  [kill, ended, true],
  [kill, snapshot(), false],
  [{ kind: "StopSandbox", sandboxID: "s0" }, ended, false],
  [{ kind: "StopSandbox", sandboxID: "s0" }, stopped, true],
  [{ kind: "TearDownVolumes" }, runs, true],
  [{ kind: "CleanUp" }, runs, true],
  [{ kind: "EnsureImage", container: "app" }, runs, true],
  [{ kind: "CreateSandbox", attempt: 0 }, runs, false],
  [{ kind: "StartContainer", container: "app", sandboxID: "s0", createdID: undefined }, runs, false],
  [{ kind: "RemoveContainer", containerID: "app-0" }, snapshot(), false],
];
test.each(steps)("a step is in view or not: %o", (action, observed, isShown) => {
  expect(isStepShown(action, observed)).toBe(isShown);
});
