import { expect, test } from "vitest";
import { silentLogger } from "../../../agent/lib/log.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { hostIPs } from "../../../agent/node/addresses.ts";
import { createLocalNode } from "../../../agent/node/local-node.ts";
import { FakeClock, settle } from "../kube/fake-clock.ts";
import { FakeHealth } from "./fake-health.ts";
import { settings } from "./node-settings.ts";
import { facts, healthy } from "./status-inputs.ts";

function setUp({ podCIDR = "", refusals = 0 } = {}) {
  const clock = new FakeClock();
  const health = new FakeHealth(healthy(clock.now()));
  const told: string[] = [];
  const network = { ips: ["10.0.0.1"] };
  let refused = 0;
  const local = createLocalNode({
    settings: { ...settings, nodeIPs: [] },
    facts,
    health,
    runtime: {
      updateRuntimeConfig: async ({ podCIDR: cidr }) => {
        await Promise.resolve();
        refused += 1;
        if (refused <= refusals) throw new AgentError("Unavailable", "not now");
        told.push(cidr);
      },
    },
    podCIDR,
    images: () => [],
    local: () => ({}),
    clock,
    log: silentLogger,
    readAddresses: async () =>
      await Promise.resolve({ localIPs: network.ips, resolvedIPs: network.ips, defaultRouteIPs: network.ips }),
  });
  const stop = new AbortController();
  const ended = local.run(stop.signal);
  const end = async () => {
    stop.abort();
    await ended;
  };
  return { clock, health, told, network, local, end };
}

test("the node knows its addresses and resources by itself, and tells when they change", async () => {
  const { clock, network, local, end } = setUp();
  let heard = 0;
  local.subscribe(() => {
    heard += 1;
  });
  await settle();
  expect(hostIPs(local.node())).toEqual(["10.0.0.1"]);
  expect(local.node().status?.allocatable?.["cpu"]).toBeDefined();
  expect(local.node().metadata.labels).toMatchObject({ "kubernetes.io/hostname": "n1", team: "a" });
  expect(heard).toBe(1);
  await clock.advance(settings.statusUpdateMs);
  expect(heard).toBe(1); // a heartbeat is no change
  network.ips = ["10.0.0.2"];
  await clock.advance(settings.statusUpdateMs);
  expect([heard, hostIPs(local.node())]).toEqual([2, ["10.0.0.2"]]);
  await end();
});

test("the runtime is told the configured pod CIDR once, however often that takes", async () => {
  const { clock, told, end } = setUp({ podCIDR: "10.9.0.0/24", refusals: 2 });
  await settle();
  for (let i = 0; i < 5; i += 1) await clock.advance(settings.statusUpdateMs);
  expect(told).toEqual(["10.9.0.0/24"]);
  await end();
});

test("without one it is told nothing", async () => {
  const { clock, told, end } = setUp();
  await clock.advance(settings.statusUpdateMs);
  expect(told).toEqual([]);
  await end();
});
