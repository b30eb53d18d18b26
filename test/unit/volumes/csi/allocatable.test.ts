import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { CSIDriver } from "../../../../agent/kube/types.ts";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { refreshAllocatable } from "../../../../agent/volumes/csi/allocatable.ts";
import type { CSIDriverClient, NodeInfo } from "../../../../agent/volumes/csi/port.ts";
import { FakeClock, settle, stopped } from "../../kube/fake-clock.ts";

describe("refreshing how many volumes drivers take", () => {
  let clock: FakeClock;
  let stop: AbortController;
  let running: Promise<void>;
  let objects: Map<string, CSIDriver>;
  let names: string[];
  let wake: () => void;
  let asked: string[];
  let written: string[];
  let answers: () => Promise<NodeInfo>;

  const driver = (name: string, seconds?: number) => {
    const nodeAllocatableUpdatePeriodSeconds =
      seconds === undefined ? {} : { nodeAllocatableUpdatePeriodSeconds: seconds };
    objects.set(name, { metadata: { name }, spec: nodeAllocatableUpdatePeriodSeconds });
  };
  const clients = new Map<string, CSIDriverClient>();
  const client = (name: string) => {
    const made: Partial<CSIDriverClient> = {
      driver: name,
      nodeGetInfo: async () => {
        asked.push(name);
        return await answers();
      },
    };
    const found = clients.get(name) ?? (made as CSIDriverClient);
    clients.set(name, found);
    return found;
  };

  beforeEach(async () => {
    clock = new FakeClock();
    stop = new AbortController();
    objects = new Map();
    names = ["a.test", "b.test"];
    asked = [];
    written = [];
    clients.clear();
    answers = async () => ({ nodeID: "i", maxVolumesPerNode: 7, topology: {} });
    running = refreshAllocatable(
      {
        drivers: { names: () => names, client, subscribe: () => () => {} },
        objects: {
          csiDriver: async (name) => objects.get(name),
          subscribe: (listener) => {
            wake = () => listener("any");
            return () => {};
          },
        },
        csiNode: { set: async (name, { maxVolumesPerNode }) => void written.push(`${name} ${maxVolumesPerNode}`) },
        clock,
        log: silentLogger,
      },
      stop.signal,
    );
    await settle();
  });
  afterEach(async () => {
    await stopped(running, stop, clock);
  });

  test("asks those whose objects say how often, as often", async () => {
    driver("a.test", 60);
    driver("b.test");
    wake();
    await settle();
    await clock.advance(59_000);
    expect(asked).toEqual([]);
    await clock.advance(1_000);
    expect(written).toEqual(["a.test 7"]);
    await clock.advance(60_000);
    expect(written).toEqual(["a.test 7", "a.test 7"]);
    expect(asked).toEqual(["a.test", "a.test"]);
  });

  test("follows the period when it changes", async () => {
    driver("a.test", 3_600);
    wake();
    await clock.advance(20_000);
    driver("a.test", 10);
    wake();
    await settle();
    expect(asked).toEqual(["a.test"]);
    driver("a.test");
    wake();
    await clock.advance(100_000);
    expect(asked).toEqual(["a.test"]);
  });

  test("a driver that hangs is asked once, and holds up no other", async () => {
    driver("a.test", 10);
    driver("b.test", 30);
    const hanging = Promise.withResolvers<NodeInfo>();
    answers = async () => await hanging.promise;
    wake();
    await settle();
    await clock.advance(10_000);
    expect(asked).toEqual(["a.test"]);
    answers = async () => ({ nodeID: "i", maxVolumesPerNode: 1, topology: {} });
    await clock.advance(20_000);
    expect(asked).toEqual(["a.test", "b.test"]);
    // It has gone meanwhile: what it says now must not bring its entry back.
    names = ["b.test"];
    hanging.resolve({ nodeID: "i", maxVolumesPerNode: 9, topology: {} });
    await settle();
    expect(written).toEqual(["b.test 1"]);
  });

  test("a driver that fails is asked again after its period", async () => {
    driver("a.test", 10);
    answers = async () => {
      throw new Error("away");
    };
    wake();
    await settle();
    await clock.advance(10_000);
    await clock.advance(10_000);
    expect(asked).toEqual(["a.test", "a.test"]);
    expect(written).toEqual([]);
  });
});
