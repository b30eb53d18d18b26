import assert from "node:assert/strict";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import { uidOf } from "../../../../agent/kube/pod-resources.ts";
import type { Pod, ResourceRequirements } from "../../../../agent/kube/types.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../../agent/lib/metrics.ts";
import { resourcesOf } from "../../../../agent/pods/resize/allocation.ts";
import { createResizeMetrics, requestedChanges } from "../../../../agent/pods/resize/metrics.ts";
import { firstRetryMs, Resizes, retryMs } from "../../../../agent/pods/resize/resizes.ts";
import { FakeClock } from "../../kube/fake-clock.ts";
import { admission, asking, both, node, policy, requests, sizedPod } from "./support.ts";

let rootDir: string;
let world: World;

/** Pods of a node of 2 CPUs, and who gave them what. */
class World {
  readonly clock = new FakeClock();
  readonly events: string[] = [];
  readonly woken: string[] = [];
  readonly pods = new Map<string, Pod>();
  readonly registry = new MetricsRegistry();
  readonly resizes: Resizes;
  allocatable = node.status?.allocatable ?? {};

  constructor() {
    this.resizes = new Resizes({
      clock: this.clock,
      log: silentLogger,
      recorder: { event: ({ name }, type, reason) => void this.events.push(`${name} ${type} ${reason}`) },
      rootDir,
      policy,
      admission: () => ({ ...admission, node: { ...node, status: { allocatable: this.allocatable } } }),
      active: () => [...this.pods.values()],
      onChange: (uid) => this.woken.push(uid),
      metrics: createResizeMetrics(this.registry),
    });
  }

  async begin(): Promise<this> {
    await this.resizes.load();
    this.resizes.open((uid) => this.pods.has(uid));
    return this;
  }

  add(pod: Pod): void {
    this.resizes.admitted(pod);
    this.pods.set(uidOf(pod), pod);
    this.resizes.evaluate("pods_added");
  }

  ask(name: string, resources: ResourceRequirements): void {
    const old = this.pod(name);
    const pod = asking(old, resources);
    this.pods.set(name, pod);
    this.resizes.updated(old, pod);
  }

  remove(name: string): void {
    this.pods.delete(name);
    this.resizes.removed(name);
  }

  pod(name: string): Pod {
    const pod = this.pods.get(name);
    if (pod === undefined) throw new Error(`no pod ${name}`);
    return pod;
  }

  given(name: string) {
    return this.resizes.given(this.pod(name)).spec.containers[0]?.resources;
  }

  pending(name: string) {
    return this.resizes.states(name).pending;
  }

  /** Files are written. */
  async saved(name: string, resources: ResourceRequirements): Promise<void> {
    await vi.waitFor(() => assert.deepEqual(this.given(name), resources), { interval: 2 });
  }

  async metric(family: string) {
    const found = (await this.registry.families()).find(({ name }) => name === family);
    return [...(found?.samples ?? [])].map(({ labels, value }) => `${Object.values(labels).join(",")}=${value}`);
  }
}

beforeEach(async () => {
  rootDir = await mkdtemp(join(tmpdir(), "resizes-"));
  world = await new World().begin();
});
afterEach(async () => {
  await world.resizes.close();
  await rm(rootDir, { recursive: true });
});

describe("a pod", () => {
  test("has what it asked for when it came", () => {
    world.add(sizedPod("web", requests("1", "64Mi")));
    expect(world.given("web")).toEqual(requests("1", "64Mi"));
    expect(world.resizes.progress("web")).toEqual({ actual: undefined, from: undefined });
    world.add(sizedPod("free", {}));
    expect(world.resizes.progress("free")).toBeUndefined();
  });

  test("that asks for something else has it for others at once, and itself once it is on disk", async () => {
    world.add(sizedPod("web", requests("1", "64Mi")));
    world.ask("web", requests("1500m", "64Mi"));
    expect(world.resizes.reserved(world.pod("web")).spec.containers[0]?.resources).toEqual(requests("1500m", "64Mi"));
    expect(world.given("web")).toEqual(requests("1", "64Mi"));
    expect(world.resizes.states("web")).toEqual({});
    await world.saved("web", requests("1500m", "64Mi"));
    expect(world.resizes.states("web")).toEqual({
      inProgress: { reason: "", message: "", generation: 2, sinceMs: world.clock.now() },
    });
    expect(world.events).toEqual(["web Normal ResizeStarted"]);
    expect(world.woken).toEqual(["web"]);
  });

  test("is done when its worker says so", async () => {
    world.add(sizedPod("web", requests("1", "64Mi")));
    world.ask("web", requests("1500m", "64Mi"));
    await world.saved("web", requests("1500m", "64Mi"));
    const pod = world.resizes.given(world.pod("web"));
    world.resizes.observed(pod, true);
    expect(world.resizes.states("web").inProgress).toBeDefined();
    await world.clock.advance(40);
    world.resizes.observed(pod, false);
    world.resizes.observed(pod, false);
    expect(world.resizes.states("web")).toEqual({});
    expect(world.events).toEqual(["web Normal ResizeStarted", "web Normal ResizeCompleted"]);
    expect(await world.metric("kubelet_pod_resize_duration_milliseconds")).toContain("true=40");
  });

  test("whose resize fails says so, once for each reason, and has it begun anew from where it was", async () => {
    world.add(sizedPod("web", both("1", "64Mi")));
    await world.resizes.starting(world.pod("web"), world.pod("web").spec.containers[0] ?? { name: "" });
    world.ask("web", both("1", "32Mi"));
    await world.saved("web", both("1", "32Mi"));
    const pod = world.resizes.given(world.pod("web"));
    world.resizes.failed(pod, "too full");
    world.resizes.failed(pod, "too full");
    expect(world.resizes.states("web").inProgress).toMatchObject({
      reason: "Error",
      message: "too full",
      generation: 2,
    });
    expect(world.events).toEqual(["web Normal ResizeStarted", "web Warning ResizeError"]);
    // It restarts meanwhile, with what it was given.
    await world.resizes.starting(pod, pod.spec.containers[0] ?? { name: "" });
    expect(world.resizes.progress("web")).toEqual({
      actual: { containers: { app: both("1", "32Mi") } },
      from: { containers: { app: both("1", "64Mi") } },
      attempted: [{ containers: { app: both("1", "32Mi") } }],
    });
    await world.resizes.completed(pod);
    expect(world.resizes.progress("web")?.from).toEqual({ containers: { app: both("1", "32Mi") } });
  });
});

describe("a resize that is taken back", () => {
  const [small, big] = [both("1", "64Mi"), both("1", "32Mi")];
  beforeEach(async () => {
    world.add(sizedPod("web", small));
    await world.resizes.completed(world.pod("web"));
    world.ask("web", big);
    await world.saved("web", big);
  });

  test("after an attempt that failed still has to be made good", async () => {
    world.resizes.failed(world.resizes.given(world.pod("web")), "too full");
    world.ask("web", small);
    await world.saved("web", small);
    expect(world.resizes.progress("web")).toMatchObject({
      from: { containers: { app: small } },
      attempted: [{ containers: { app: big } }],
    });
    await world.resizes.completed(world.pod("web"));
    expect(world.resizes.progress("web")?.attempted).toBeUndefined();
  });

  test("after the agent was killed in it still has to be made good", async () => {
    const web = world.pod("web");
    await world.resizes.close();
    world = new World();
    world.pods.set("web", asking(web, small));
    await world.begin();
    world.resizes.admitted(world.pod("web"));
    world.resizes.evaluate("pods_added");
    await world.saved("web", small);
    expect(world.resizes.progress("web")).toMatchObject({
      from: { containers: { app: small } },
      attempted: [{ containers: { app: big } }],
    });
  });
});

describe("a resize that does not fit", () => {
  beforeEach(() => {
    world.add(sizedPod("big", requests("1500m", "64Mi")));
    world.add(sizedPod("web", requests("100m", "64Mi")));
    world.ask("web", requests("1", "64Mi"));
  });

  test("waits, says why, and keeps what it has", async () => {
    expect(world.pending("web")).toMatchObject({ reason: "Deferred", generation: 2 });
    expect(world.pending("web")?.message).toContain("requested: 1000, used: 1500");
    expect(world.given("web")).toEqual(requests("100m", "64Mi"));
    expect(world.events).toEqual(["web Warning ResizeDeferred"]);
    expect(world.woken).toEqual(["web"]);
    expect(await world.metric("kubelet_pod_pending_resizes")).toEqual(["deferred=1"]);
  });

  test.each([
    { trigger: "pods_removed", act: async () => world.remove("big") },
    {
      trigger: "pod_terminated",
      act: async () => {
        world.pods.delete("big");
        world.resizes.ended("big");
      },
    },
    {
      trigger: "periodic_retry",
      act: async () => {
        world.allocatable = { ...world.allocatable, cpu: "8" };
        await world.clock.advance(retryMs - 1);
        expect(world.pending("web")).toBeDefined();
        await world.clock.advance(1);
      },
    },
    { trigger: "pod_updated", act: async () => world.ask("big", requests("200m", "64Mi")) },
  ])("is accepted when something made room: $trigger", async ({ trigger, act }) => {
    await act();
    await world.saved("web", requests("1", "64Mi"));
    expect(world.pending("web")).toBeUndefined();
    expect(await world.metric("kubelet_pod_deferred_accepted_resizes_total")).toEqual([`${trigger}=1`]);
    expect(await world.metric("kubelet_pod_in_progress_resizes")).toContain(trigger === "pod_updated" ? "=2" : "=1");
  });

  test("is forgotten when nobody wants it any more", () => {
    world.ask("web", requests("100m", "64Mi"));
    expect(world.pending("web")).toBeUndefined();
    expect(world.clock.waiting).toBe(1); // the file; nothing is retried
  });

  test("of a pod that ends is given up", async () => {
    world.pods.set("web", {
      ...world.pod("web"),
      metadata: { ...world.pod("web").metadata, deletionTimestamp: "2026-01-01T00:00:00Z" },
    });
    world.remove("big");
    await world.clock.advance(2 * retryMs);
    expect(world.given("web")).toEqual(requests("100m", "64Mi"));
  });

  test("takes nothing from a new pod, and a new pod nothing from it", () => {
    const late = sizedPod("late", requests("300m", "64Mi"));
    expect(world.resizes.reserved(world.pod("web")).spec.containers[0]?.resources).toEqual(requests("100m", "64Mi"));
    world.add(late);
    expect(world.pending("web")?.message).toContain("used: 1800");
  });

  test("tells what is new of its reason, and only that", () => {
    world.resizes.evaluate("pods_added");
    expect(world.events).toHaveLength(1);
    world.ask("web", requests("1100m", "64Mi"));
    expect(world.events).toHaveLength(2);
    expect(world.pending("web")?.generation).toBe(3);
  });
});

test("a resize that can never be is looked at again with the next spec only", async () => {
  world.add(sizedPod("web", requests("100m", "64Mi")));
  world.ask("web", requests("3", "64Mi"));
  expect(world.pending("web")?.reason).toBe("Infeasible");
  expect(world.events).toEqual(["web Warning ResizeInfeasible"]);
  world.allocatable = { ...world.allocatable, cpu: "8" };
  await world.clock.advance(2 * retryMs);
  expect(world.given("web")).toEqual(requests("100m", "64Mi"));
  expect(await world.metric("kubelet_pod_infeasible_resizes_total")).toEqual(["insufficient_node_allocatable=1"]);
  world.ask("web", requests("4", "64Mi"));
  await world.saved("web", requests("4", "64Mi"));
});

test("what one gives back in the same moment, another one gets", async () => {
  world.add(sizedPod("a", requests("1500m", "64Mi"), { priority: 1 }));
  world.add(sizedPod("b", requests("400m", "512Mi"), { priority: 2 }));
  world.ask("b", requests("1500m", "512Mi")); // cpu that a has
  world.ask("a", requests("100m", "256Mi")); // less cpu, more memory
  await world.saved("a", requests("100m", "256Mi"));
  await world.saved("b", requests("1500m", "512Mi"));
  expect(await world.metric("kubelet_pod_deferred_accepted_resizes_total")).toEqual(["pod_resized=1"]);
});

test("before all pods are known, nothing is given away; the retry comes sooner then", async () => {
  const early = new World();
  await early.resizes.load();
  early.add(sizedPod("web", requests("100m", "64Mi")));
  early.ask("web", requests("1", "64Mi"));
  await early.clock.advance(firstRetryMs);
  expect(early.given("web")).toEqual(requests("100m", "64Mi"));
  early.resizes.open(() => true);
  await early.saved("web", requests("1", "64Mi"));
  await early.resizes.close();
});

describe("after a restart of the agent", () => {
  async function restarted(pods: Pod[]): Promise<World> {
    await world.resizes.close();
    const next = new World();
    await next.resizes.load();
    for (const pod of pods) next.add(pod);
    return next;
  }

  test("a pod has what it was given, and not what its spec asks for", async () => {
    world.add(sizedPod("big", requests("1500m", "64Mi")));
    world.add(sizedPod("web", requests("100m", "64Mi")));
    world.ask("web", requests("1", "64Mi"));
    const next = await restarted([...world.pods.values()]);
    expect(next.given("web")).toEqual(requests("100m", "64Mi"));
    next.resizes.open(() => true);
    expect(next.pending("web")?.reason).toBe("Deferred");
    next.remove("big");
    await next.saved("web", requests("1", "64Mi"));
    await next.resizes.close();
  });

  test("what containers have is known", async () => {
    world.add(sizedPod("web", both("1", "64Mi")));
    const [app] = world.pod("web").spec.containers;
    if (app !== undefined) await world.resizes.starting(world.pod("web"), app);
    const next = await restarted([...world.pods.values()]);
    expect(next.resizes.progress("web")?.actual).toEqual(resourcesOf(world.pod("web")));
    await next.resizes.close();
  });

  test("what the agent before said is said no twice", async () => {
    world.add(sizedPod("big", requests("1500m", "64Mi")));
    world.add(sizedPod("web", requests("100m", "64Mi")));
    world.ask("web", requests("1", "64Mi"));
    const pending = world.pending("web");
    const condition = {
      type: "PodResizePending",
      status: "True" as const,
      reason: "Deferred",
      message: pending?.message ?? "",
      observedGeneration: 2,
      lastTransitionTime: "2025-12-31T00:00:00Z",
    };
    const next = await restarted([world.pod("big"), { ...world.pod("web"), status: { conditions: [condition] } }]);
    next.resizes.open(() => true);
    expect(next.events).toEqual([]);
    expect(next.pending("web")?.sinceMs).toBe(Date.parse("2025-12-31T00:00:00Z"));
    await next.resizes.close();
  });

  test("with damaged files, pods have what their specs say", async () => {
    world.add(sizedPod("web", requests("100m", "64Mi")));
    await world.resizes.close();
    for (const name of ["allocated_pods_state", "actuated_pods_state"]) await writeFile(join(rootDir, name), "{");
    const next = new World();
    await next.resizes.load();
    next.add(asking(world.pod("web"), requests("1", "64Mi")));
    expect(next.given("web")).toEqual(requests("1", "64Mi"));
    expect(next.resizes.progress("web")?.actual).toBeUndefined();
    await next.resizes.close();
  });
});

test("nothing is said of containers of which nobody knows what they have", () => {
  world.add(sizedPod("web", requests("100m", "64Mi")));
  world.resizes.observed(world.pod("web"), true);
  world.resizes.observed(world.pod("web"), false);
  expect(world.resizes.states("web")).toEqual({});
  expect(world.events).toEqual([]);
});

test("a resize that cannot be saved is not begun, and is tried again", async () => {
  world.add(sizedPod("web", requests("100m", "64Mi")));
  await world.resizes.close();
  await rm(rootDir, { recursive: true });
  world.ask("web", requests("1", "64Mi"));
  await expect
    .poll(() => world.resizes.reserved(world.pod("web")).spec.containers[0]?.resources, { interval: 2 })
    .toEqual(requests("100m", "64Mi"));
  expect(world.events).toEqual([]);
  rootDir = await mkdtemp(join(tmpdir(), "resizes-"));
  await expect.poll(() => world.given("web")).toEqual(requests("100m", "64Mi"));
});

test("changes that are asked for are counted", async () => {
  const from = resourcesOf(sizedPod("web", { requests: { cpu: "1", memory: "1Gi" }, limits: { cpu: "2" } }));
  const to = resourcesOf(sizedPod("web", { requests: { cpu: "2" }, limits: { cpu: "1", memory: "1Gi" } }));
  expect(requestedChanges(from, to)).toEqual([
    { resource: "cpu", requirement: "requests", operation: "increase" },
    { resource: "memory", requirement: "requests", operation: "remove" },
    { resource: "cpu", requirement: "limits", operation: "decrease" },
    { resource: "memory", requirement: "limits", operation: "add" },
  ]);
  world.add(sizedPod("web", requests("100m", "64Mi")));
  world.ask("web", requests("200m", "64Mi"));
  expect(await world.metric("kubelet_container_requested_resizes_total")).toEqual(["increase,requests,cpu=1"]);
});
