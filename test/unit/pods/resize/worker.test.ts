import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";
import type { Container, Pod, ResourceRequirements } from "../../../../agent/kube/types.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { Resizes } from "../../../../agent/pods/resize/resizes.ts";
import { ScriptedNode } from "../scripted-node.ts";
import { podOf } from "../support.ts";
import { admission, asking, both, policy, sized } from "./support.ts";

const second = 1_000;
const restarting: Partial<Container> = {
  resizePolicy: [{ resourceName: "memory", restartPolicy: "RestartContainer" }],
};
const web = (more: Partial<Container> = {}, spec: Partial<Pod["spec"]> = {}) =>
  podOf({ containers: [sized("app", both("100m", "64Mi"), more), sized("other", both("50m", "64Mi"))], ...spec });

let rootDir: string;
beforeEach(async () => {
  rootDir = await mkdtemp(join(tmpdir(), "resize-worker-"));
});
afterEach(() => rm(rootDir, { recursive: true }));

/** A scripted node on which pods can be resized. */
class ResizingNode extends ScriptedNode {
  #resizes = this.#open();

  #open(): Resizes {
    const resizes = new Resizes({
      clock: this.clock,
      log: silentLogger,
      recorder: { event: (_about, type, reason) => void this.events.push(`${type} ${reason}`) },
      rootDir,
      policy,
      admission: () => admission,
      active: () => [...this.workers.values()].map(({ worker }) => worker.pod),
      onChange: (uid) => this.workers.get(uid)?.worker.wake(),
    });
    resizes.open(() => true);
    this.resizes = resizes;
    return resizes;
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    await this.#resizes.close();
  }

  override async start(pod: Pod): Promise<void> {
    this.#resizes.admitted(pod);
    await super.start(pod);
    this.#resizes.evaluate("pods_added");
    await this.rest();
  }

  /** Somebody asks for other resources of `app`; resolves when nothing is under way. */
  async ask(resources: ResourceRequirements): Promise<void> {
    const before = this.pod("web");
    const after = asking(before, resources);
    await this.update(after);
    this.#resizes.updated(before, after);
    await this.rest();
  }

  /** The agent is killed and another one begins with what is on disk. */
  async kill(): Promise<void> {
    const pod = this.pod("web");
    await this.end("u1");
    await this.#resizes.close();
    this.#resizes = this.#open();
    await this.#resizes.load();
    await this.start(pod);
  }

  // Files take a moment of real time.
  async rest(): Promise<void> {
    for (let i = 0; i < 20; i += 1) {
      await new Promise((resolve) => void setImmediate(resolve));
      await this.clock.advance(0);
    }
  }

  /** Resolves when `check` does not throw any more. */
  async settled(check: () => void): Promise<void> {
    const look = async () => {
      await this.rest();
      check();
    };
    await vi.waitFor(look, { interval: 2 });
  }

  get resizeConditions(): string[] {
    return (this.status().conditions ?? []).flatMap(({ type, reason }) =>
      type.startsWith("PodResize") ? [`${type} ${reason ?? ""}`.trim()] : [],
    );
  }

  shown(name = "app"): ResourceRequirements | undefined {
    return this.status().containerStatuses?.find((status) => status.name === name)?.resources;
  }
}

describe("a running pod", () => {
  test("is resized without a restart, and its status tells what it has", async () => {
    await using node = new ResizingNode();
    await node.start(web());
    await node.ask(both("200m", "128Mi"));
    await node.settled(() => expect(node.events).toContain("Normal ResizeCompleted"));
    await node.settled(() => expect(node.resizeConditions).toEqual([]));
    expect(node.calls).toEqual(["start app", "start other", "resize"]);
    expect(node.shown()).toEqual(both("200m", "128Mi"));
  });

  test("restarts the container whose policy says so, after the pod has the room", async () => {
    await using node = new ResizingNode();
    await node.start(web(restarting));
    await node.ask(both("100m", "128Mi"));
    await node.settled(() => expect(node.events).toContain("Normal ResizeCompleted"));
    expect(node.calls).toEqual(["start app", "start other", "stop app 30", "resize", "start app"]);
    expect(node.events.indexOf("Normal ResizeCompleted")).toBeGreaterThan(node.events.indexOf("Normal ResizeStarted"));
    expect(node.status().containerStatuses?.[0]).toMatchObject({ restartCount: 1, resources: both("100m", "128Mi") });
  });

  test("restarts it under any restart policy, and without a crash backoff", async () => {
    await using node = new ResizingNode();
    await node.start(web(restarting, { restartPolicy: "OnFailure" }));
    await node.ask(both("100m", "128Mi"));
    await node.settled(() => expect(node.calls.filter((call) => call === "start app")).toHaveLength(2));
    await node.ask(both("100m", "256Mi"));
    await node.settled(() => expect(node.calls.filter((call) => call === "start app")).toHaveLength(3));
  });

  test("whose resize fails says so, tries again, and is none the worse", async () => {
    await using node = new ResizingNode();
    await node.start(web());
    node.fail("ResizePod", 2);
    await node.ask(both("200m", "128Mi"));
    await node.settled(() => expect(node.resizeConditions).toEqual(["PodResizeInProgress"]));
    expect(node.shown()).toEqual(both("100m", "64Mi"));
    await node.clock.advance(5 * second);
    await node.settled(() => expect(node.events).toContain("Normal ResizeCompleted"));
    expect(node.shown()).toEqual(both("200m", "128Mi"));
    expect(node.calls.filter((call) => call.startsWith("start"))).toHaveLength(2);
  });

  test("that waits for room says so, and goes on as it is", async () => {
    await using node = new ResizingNode();
    await node.start(web());
    await node.ask(both("8", "64Mi"));
    await node.settled(() => expect(node.resizeConditions).toEqual(["PodResizePending Infeasible"]));
    expect(node.calls).toEqual(["start app", "start other"]);
    expect(node.shown()).toEqual(both("100m", "64Mi"));
    await node.ask(both("100m", "64Mi"));
    await node.settled(() => expect(node.resizeConditions).toEqual([]));
  });
});

test("a pod that is resized before it starts has the room when it does", async () => {
  await using node = new ResizingNode();
  node.delay("EnsureImage", 10 * second);
  await node.start(web());
  await node.ask(both("100m", "128Mi"));
  await node.settled(() => expect(node.calls).toEqual(["resize"]));
  await node.clock.advance(20 * second);
  await node.settled(() => expect(node.isRunning("other")).toBe(true));
  expect(node.calls).toEqual(["resize", "start app", "start other"]);
});

test("a crash loop begins anew with other resources", async () => {
  await using node = new ResizingNode();
  await node.start(web());
  await node.exit("app", 1);
  await node.exit("app", 1);
  expect(node.isRunning("app")).toBe(false);
  await node.ask(both("100m", "128Mi"));
  await node.settled(() => expect(node.isRunning("app")).toBe(true));
});

describe("an agent that is killed", () => {
  test("and begins again resizes nothing and restarts nothing", async () => {
    await using node = new ResizingNode();
    await node.start(web(restarting));
    await node.ask(both("200m", "64Mi"));
    await node.settled(() => expect(node.events).toContain("Normal ResizeCompleted"));
    const before = [...node.calls];
    await node.kill();
    await node.rest();
    expect(node.calls).toEqual(before);
    expect(node.shown()).toEqual(both("200m", "64Mi"));
  });

  test.each([{ more: {} }, { more: restarting }])("before the resize goes on with it: $more", async ({ more }) => {
    await using node = new ResizingNode();
    await node.start(web(more));
    node.fail("ResizePod");
    await node.ask(both("200m", "128Mi"));
    await node.settled(() => expect(node.events).toContain("Normal ResizeStarted"));
    await node.kill();
    await node.clock.advance(5 * second);
    await node.settled(() => expect(node.resizeConditions).toEqual([]));
    expect(node.shown()).toEqual(both("200m", "128Mi"));
    expect(node.isRunning("app")).toBe(true);
    // One restart where the policy wants it, and none else, whatever happened in between.
    expect(node.calls.filter((call) => call === "start app")).toHaveLength("resizePolicy" in more ? 2 : 1);
    expect(node.calls.filter((call) => call === "start other")).toHaveLength(1);
  });
});
