import { beforeEach, describe, expect, test } from "vitest";
import { AgentError } from "../../../../agent/lib/errors.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import type { PluginInfo } from "../../../../agent/plugins/port.ts";
import type { OwnedCSIClient } from "../../../../agent/volumes/csi/client.ts";
import { createCSIDrivers, type OwnedCSIDrivers } from "../../../../agent/volumes/csi/drivers.ts";
import type { NodeInfo } from "../../../../agent/volumes/csi/port.ts";

const info: NodeInfo = { nodeID: "i-1", maxVolumesPerNode: 0, topology: {} };

describe("the table of CSI drivers", () => {
  let drivers: OwnedCSIDrivers;
  /** What the cluster was told, and which connections were opened and closed. */
  let log: string[];
  let answer: (endpoint: string) => Promise<NodeInfo>;
  let written: () => Promise<void>;
  const { signal } = new AbortController();

  const plugin = (endpoint: string, version = "1.0.0"): PluginInfo => ({
    name: "a.test",
    endpoint,
    supportedVersions: [version],
  });
  const endpointOf = () => (drivers.client("a.test") as unknown as { endpoint: string }).endpoint;

  beforeEach(() => {
    log = [];
    answer = async () => info;
    written = async () => {};
    drivers = createCSIDrivers({
      csiNode: {
        set: async (name, { nodeID }) => {
          log.push(`set ${name} ${nodeID}`);
          await written();
        },
        remove: (name) => void log.push(`remove ${name}`),
      },
      log: silentLogger,
      open: async (driver, endpoint) => {
        log.push(`open ${endpoint}`);
        const client: Partial<OwnedCSIClient> & { endpoint: string } = {
          driver,
          endpoint,
          nodeGetInfo: async () => await answer(endpoint),
          close: () => void log.push(`close ${endpoint}`),
        };
        return client as OwnedCSIClient;
      },
    });
  });

  test("a driver can be used once it has answered, also before the cluster knows", async () => {
    const cluster = Promise.withResolvers<void>();
    written = async () => await cluster.promise;
    const told: string[][] = [];
    drivers.subscribe(() => void told.push(drivers.names()));
    const registering = drivers.handler.register(plugin("/1"), signal);
    expect(() => drivers.client("a.test")).toThrow(
      "driver name a.test not found in the list of registered CSI drivers",
    );
    await new Promise(setImmediate);
    expect(endpointOf()).toBe("/1");
    expect(told).toEqual([["a.test"]]);
    cluster.resolve();
    await registering;
    expect(log).toEqual(["open /1", "set a.test i-1"]);
  });

  test("one that is gone has no client, and the cluster is told", async () => {
    const told: string[][] = [];
    const first = plugin("/1");
    await drivers.handler.register(first, signal);
    drivers.subscribe(() => void told.push(drivers.names()));
    await drivers.handler.deregister(first);
    expect(log.slice(2)).toEqual(["close /1", "remove a.test"]);
    expect(told).toEqual([[]]);
    let err: unknown;
    try {
      drivers.client("a.test");
    } catch (caught) {
      err = caught;
    }
    expect(err).toMatchObject({ code: "Unavailable", isFinal: false, status: undefined });
  });

  test("a second one of the same version is refused, and the first stays when the second goes", async () => {
    await drivers.handler.register(plugin("/1"), signal);
    const second = plugin("/2");
    await expect(drivers.handler.register(second, signal)).rejects.toThrow(
      "CSI driver a.test is registered already, with CSI 1.0.0 at /1",
    );
    await drivers.handler.deregister(second);
    expect(endpointOf()).toBe("/1");
    expect(log).toEqual(["open /1", "set a.test i-1"]);
  });

  test("a second one of a higher version takes over, and stays when the first goes", async () => {
    const first = plugin("/1");
    await drivers.handler.register(first, signal);
    await drivers.handler.register(plugin("/2", "1.1.0"), signal);
    await drivers.handler.deregister(first);
    expect(endpointOf()).toBe("/2");
    expect(log).toEqual(["open /1", "set a.test i-1", "open /2", "close /1", "set a.test i-1"]);
  });

  test("of two that come at once one is refused", async () => {
    const outcomes = await Promise.allSettled([
      drivers.handler.register(plugin("/1"), signal),
      drivers.handler.register(plugin("/2"), signal),
    ]);
    expect(outcomes.map(({ status }) => status)).toEqual(["fulfilled", "rejected"]);
    expect(endpointOf()).toBe("/1");
    expect(log).toContain("close /2");
  });

  test("one that does not say what the node is to it is never in use", async () => {
    answer = async () => {
      throw new AgentError("Unavailable", "not yet");
    };
    const first = plugin("/1");
    await expect(drivers.handler.register(first, signal)).rejects.toThrow("not yet");
    expect(drivers.names()).toEqual([]);
    await drivers.handler.deregister(first);
    expect(log).toEqual(["open /1", "close /1", "remove a.test"]);
  });

  test("a registration that nobody waits for any more ends, though the API server hangs", async () => {
    written = async () => await new Promise<never>(() => {});
    const abort = new AbortController();
    const registering = drivers.handler.register(plugin("/1"), abort.signal);
    await new Promise(setImmediate);
    abort.abort();
    await expect(registering).rejects.toMatchObject({ name: "AbortError" });
  });

  test("closing tells the cluster nothing", async () => {
    await drivers.handler.register(plugin("/1"), signal);
    drivers.close();
    expect(log.slice(2)).toEqual(["close /1"]);
    expect(drivers.names()).toEqual([]);
  });
});
