import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { buildLease, createLeaseRenewer, microTime } from "../../../agent/node/lease.ts";
import type { Lease } from "../../../agent/kube/types.ts";
import { FakeClock, settle, stopped } from "../kube/fake-clock.ts";
import { FakeApi } from "./fake-api.ts";

test("times have six decimals", () => expect(microTime(Date.UTC(2026, 0, 1) + 7)).toBe("2026-01-01T00:00:00.007000Z"));

test("a lease of ours keeps what others put there", () => {
  const old: Lease = {
    metadata: { name: "n1", labels: { a: "b" }, ownerReferences: [] },
    spec: { leaseTransitions: 3 },
  };
  const lease = buildLease(old, { nodeName: "n1", nodeUID: "u", durationSeconds: 40 }, 0);
  expect(lease.metadata.labels).toEqual({ a: "b" });
  expect(lease.metadata.ownerReferences).toEqual([{ apiVersion: "v1", kind: "Node", name: "n1", uid: "u" }]);
  expect(lease.spec).toEqual({
    leaseTransitions: 3,
    holderIdentity: "n1",
    leaseDurationSeconds: 40,
    renewTime: "1970-01-01T00:00:00.000000Z",
  });
});

describe("the renewer", () => {
  let api: FakeApi;
  let clock: FakeClock;
  let stop: AbortController;
  let running: Promise<void>;

  const start = async () => {
    const renewer = createLeaseRenewer({
      client: api.client,
      nodeName: "n1",
      durationSeconds: 40,
      clock,
      log: silentLogger,
      random: () => 0,
    });
    running = renewer.run(stop.signal);
    await settle();
    return renewer;
  };
  const renewTime = () => api.object<Lease>("Lease", "n1")?.spec?.renewTime;

  beforeEach(() => {
    api = new FakeApi();
    api.set("Node", { metadata: { name: "n1", uid: "node-uid" } });
    clock = new FakeClock();
    stop = new AbortController();
  });

  afterEach(async () => {
    await stopped(running, stop, clock);
  });

  test("creates the lease of the node, then renews it every 10 s", async () => {
    await start();
    expect(api.log).toEqual(["get Lease", "get Node", "create Lease"]);
    expect(api.object<Lease>("Lease", "n1")?.metadata.ownerReferences?.[0]?.uid).toBe("node-uid");
    api.calls.length = 0;
    await clock.advance(20_000);
    expect(api.log).toEqual(["update Lease", "update Lease"]);
    expect(renewTime()).toBe(microTime(clock.now()));
  });

  test("there is none before there is a node; it follows quickly", async () => {
    api.remove("Node", "n1");
    await start();
    await clock.advance(5_000);
    expect(api.object("Lease", "n1")).toBeUndefined();
    api.set("Node", { metadata: { name: "n1" } });
    await clock.advance(7_000);
    expect(api.object("Lease", "n1")).toBeDefined();
  });

  test("a conflict is read anew and renewed in the same breath", async () => {
    await start();
    const lease = api.object<Lease>("Lease", "n1");
    api.set("Lease", { ...lease, metadata: { name: "n1", ...lease?.metadata } });
    api.calls.length = 0;
    await clock.advance(10_000);
    expect(api.log).toEqual(["update Lease", "get Lease", "update Lease"]);
  });

  test("a lease that somebody deleted is made again", async () => {
    await start();
    api.remove("Lease", "n1");
    await clock.advance(10_000);
    expect(renewTime()).toBe(microTime(clock.now()));
  });

  test("five tries, connections dropped from the second on, then the next period", async () => {
    await start();
    api.calls.length = 0;
    api.failNext("update", new AgentError("Unavailable", "away"), 5);
    await clock.advance(10_000);
    expect(api.log).toHaveLength(5);
    expect(api.resets).toBe(4);
    await clock.advance(10_000);
    expect(renewTime()).toBe(microTime(clock.now()));
  });
});
