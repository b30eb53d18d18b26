import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { createNodeAgent, type NodeAgent, type NodeSettings } from "../../../agent/node/registration.ts";
import type { RuntimeHealthState } from "../../../agent/node/runtime-health.ts";
import type { LocalNodeState } from "../../../agent/node/status.ts";
import type { Node } from "../../../agent/kube/types.ts";
import { FakeClock, settle, stopped } from "../kube/fake-clock.ts";
import { FakeApi } from "./fake-api.ts";
import { FakeHealth } from "./fake-health.ts";
import { settings } from "./node-settings.ts";
import { facts, healthy } from "./status-inputs.ts";

describe("the node agent", () => {
  let api: FakeApi;
  let clock: FakeClock;
  let health: FakeHealth;
  let local: LocalNodeState;
  let events: string[];
  let podCIDRs: string[];
  let updateRuntimeConfig: (config: { podCIDR: string }) => Promise<void>;
  let agent: NodeAgent;
  let stop: AbortController;
  let startup: string[];
  let initial: (string | undefined)[];
  let running: Promise<void>;

  const start = async (more: Partial<NodeSettings> = {}) => {
    agent = createNodeAgent({
      settings: { ...settings, ...more },
      facts,
      client: api.client,
      nodeStore: api.nodeStore(),
      health,
      runtime: { updateRuntimeConfig: (config) => updateRuntimeConfig(config) },
      images: () => [],
      local: () => local,
      clock,
      log: silentLogger,
      recorder: { event: (_about, type, reason, message) => void events.push(`${type} ${reason}: ${message}`) },
      random: () => 0.5,
      onInitial: () => void initial.push(agent.node().status?.addresses?.[0]?.address),
      startup: {
        attempted: () => void startup.push("attempted"),
        registered: () => void startup.push("registered"),
        ready: () => void startup.push("ready"),
      },
      readAddresses: async () => ({ localIPs: ["10.0.0.1"], resolvedIPs: [], defaultRouteIPs: [] }),
    });
    running = agent.run(stop.signal);
    await settle();
  };
  const node = () => api.object<Node>("Node", "n1");
  const ready = () => node()?.status?.conditions?.find(({ type }) => type === "Ready");
  const notReady = (state: RuntimeHealthState): RuntimeHealthState => ({
    ...state,
    networkReady: { status: false, reason: "R", message: "m" },
  });

  beforeEach(() => {
    api = new FakeApi();
    clock = new FakeClock();
    // Answers stay fresh for the whole test: what ages them is not this file's matter.
    health = new FakeHealth(healthy(clock.now() + 10 ** 9));
    local = {};
    events = [];
    startup = [];
    initial = [];
    podCIDRs = [];
    updateRuntimeConfig = async ({ podCIDR }) => void podCIDRs.push(podCIDR);
    stop = new AbortController();
  });

  afterEach(async () => {
    await stopped(running, stop, clock);
  });

  test("registers with its complete status, Ready at once", async () => {
    await start();
    expect(api.log).toEqual(["create Node"]);
    expect(ready()?.status).toBe("True");
    expect(node()?.status?.addresses).toEqual([
      { type: "InternalIP", address: "10.0.0.1" },
      { type: "Hostname", address: "n1" },
    ]);
    expect(node()?.metadata.labels).toMatchObject({ team: "a", "kubernetes.io/hostname": "n1" });
    await expect(agent.registered()).resolves.toBeUndefined();
    expect(startup).toEqual(["attempted", "registered", "ready"]);
    expect(events[0]).toBe("Normal Starting: Starting kubelet.");
    expect(events).toContain("Normal NodeHasSufficientMemory: Node n1 status is now: NodeHasSufficientMemory");
  });

  test("waits for the runtime's first answer, but not for ever", async () => {
    const state = health.state;
    health.state = { ...state, runtimeReady: undefined, networkReady: undefined, lastReadyAtMs: undefined };
    await start();
    expect(api.calls).toEqual([]);
    expect(agent.node().metadata.labels).toMatchObject({ team: "a" });
    await clock.advance(3_000);
    expect(ready()?.status).toBe("False");
    expect(ready()?.message).toContain("may not have completed yet");
    health.set(state);
    await clock.advance(100);
    expect(ready()?.status).toBe("True");
    expect(events.at(-1)).toBe("Normal NodeReady: Node n1 status is now: NodeReady");
  });

  test.each([true, false])(
    "says what is known of the node while the server is away (registerNode %s)",
    async (registerNode) => {
      api.failNext(registerNode ? "create" : "get", new AgentError("Unavailable", "away"), 20);
      await start({ registerNode });
      await clock.advance(1_000);
      expect(agent.node().status?.allocatable).toBeDefined();
      expect(initial).toEqual(["10.0.0.1"]); // once, however often it is tried
    },
  );

  test("retries to register, quickly at first", async () => {
    api.failNext("create", new AgentError("Unavailable", "away"), 3);
    await start();
    expect(agent.node().status?.allocatable).toMatchObject({ cpu: "4" }); // enough for static pods
    await clock.advance(700);
    expect(api.log).toEqual(["create Node", "create Node", "create Node", "create Node"]);
    expect(node()).toBeDefined();
  });

  test("an existing node is corrected, and a healthy one never reported as anything else", async () => {
    await start();
    const stored = node();
    stop.abort();
    await running;
    api.calls.length = 0;
    api.set("Node", {
      ...stored,
      metadata: { name: "n1", ...stored?.metadata, labels: { "kubernetes.io/hostname": "other", mine: "1" } },
    });
    events.length = 0;
    stop = new AbortController();
    await start();
    expect(api.log).toEqual(["create Node", "get Node", "patch Node"]);
    expect(node()?.metadata.labels).toMatchObject({
      "kubernetes.io/hostname": "n1",
      mine: "1",
      "kubernetes.io/os": "linux",
    });
    expect(events).toEqual(["Normal Starting: Starting kubelet."]);
  });

  test("Forbidden to create what is not there: the refusal is not hidden, and tried again", async () => {
    api.failNext("create", new AgentError("Forbidden", "no"), 1);
    await start();
    expect(api.log).toEqual(["create Node", "get Node"]);
    await clock.advance(200);
    expect(node()).toBeDefined();
  });

  test("registerNode false: never creates, updates as soon as somebody did", async () => {
    await start({ registerNode: false });
    await clock.advance(10_500);
    expect(api.log).not.toContain("create Node");
    api.set("Node", { metadata: { name: "n1" } });
    await settle();
    await clock.advance(100);
    expect(ready()?.status).toBe("True");
    await expect(agent.registered()).resolves.toBeUndefined();
  });

  test("an unchanged status is not sent, but about every five minutes", async () => {
    await start();
    api.calls.length = 0;
    await clock.advance(280_000);
    expect(api.calls).toEqual([]);
    await clock.advance(40_000);
    expect(api.log).toEqual(["patch Node"]);
    const patch = api.calls[0]?.body as { status: object } | undefined;
    expect(Object.keys(patch?.status ?? {})).toEqual(["conditions"]);
  });

  test("the network's end and return are told at once, with events", async () => {
    await start();
    const good = health.state;
    await clock.advance(1_000);
    events.length = 0;
    health.set(notReady(good));
    await settle();
    expect(ready()).toMatchObject({ status: "False", reason: "KubeletNotReady" });
    await clock.advance(100);
    health.set(good);
    await settle();
    expect(ready()?.status).toBe("True");
    expect(events).toEqual([
      "Normal NodeNotReady: Node n1 status is now: NodeNotReady",
      "Normal NodeReady: Node n1 status is now: NodeReady",
    ]);
  });

  test("what other parts report is sent on wake", async () => {
    await start();
    await clock.advance(200);
    local = { pressure: { memory: true, disk: false, pid: false } };
    agent.wake();
    await settle();
    expect(node()?.status?.conditions?.find(({ type }) => type === "MemoryPressure")?.status).toBe("True");
    expect(events.at(-1)).toContain("NodeHasInsufficientMemory");
  });

  test("a failing heartbeat is tried five times, each with a fresh Node, then left to the next tick", async () => {
    await start();
    await clock.advance(200);
    api.calls.length = 0;
    api.failNext("patch", new AgentError("Unavailable", "away"), 5);
    local = { isShuttingDown: true };
    agent.wake();
    await settle();
    expect(api.log.filter((call) => call === "patch Node")).toHaveLength(5);
    expect(api.log.filter((call) => call === "get Node")).toHaveLength(4);
    expect(api.resets).toBe(4);
    expect(ready()?.status).toBe("True");
    await clock.advance(10_500);
    expect(ready()).toMatchObject({ status: "False", message: "node is shutting down" });
  });

  test("a deleted node is not brought back behind the administrator's back", async () => {
    await start();
    api.remove("Node", "n1");
    api.calls.length = 0;
    local = { isShuttingDown: true };
    await clock.advance(30_000);
    expect(api.log).not.toContain("create Node");
    expect(api.calls.length).toBeLessThanOrEqual(3);
  });

  test("the pod CIDR reaches the runtime when it is assigned, again if that failed", async () => {
    await start();
    await clock.advance(200);
    updateRuntimeConfig = () => Promise.reject(new AgentError("Unavailable", "away"));
    const current = node();
    api.set("Node", {
      ...current,
      metadata: { name: "n1", ...current?.metadata },
      spec: { podCIDRs: ["10.1.0.0/24", "fd00:1::/64"] },
    });
    await settle();
    expect(podCIDRs).toEqual([]);
    updateRuntimeConfig = async ({ podCIDR }) => void podCIDRs.push(podCIDR);
    await clock.advance(30_000);
    expect(podCIDRs).toEqual(["10.1.0.0/24,fd00:1::/64"]);
  });

  test("a reboot is told once", async () => {
    api.set("Node", { metadata: { name: "n1" }, status: { nodeInfo: { bootID: "boot-0" } } } as Node);
    await start();
    await clock.advance(30_000);
    expect(events.filter((event) => event.includes("Rebooted"))).toEqual([
      "Warning Rebooted: Node n1 has been rebooted, boot id: boot-1",
    ]);
  });

  test("cordon and uncordon are told", async () => {
    await start();
    await clock.advance(200);
    const current = node();
    api.set("Node", { ...current, metadata: { name: "n1", ...current?.metadata }, spec: { unschedulable: true } });
    await clock.advance(200);
    expect(events.at(-1)).toBe("Normal NodeNotSchedulable: Node n1 status is now: NodeNotSchedulable");
  });
});
