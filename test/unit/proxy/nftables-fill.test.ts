import { describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { stepLength } from "../../../agent/proxy/nftables/fill.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { Setup } from "./nftables-setup.ts";

const serviceCount = 4_000;
const endpointsPerService = 12;

/** Some five steps. */
function bigSetup(): Setup {
  const setup = new Setup();
  for (let n = 0; n < serviceCount; n += 1) {
    const endpoints = Array.from({ length: endpointsPerService }, (_, at) => `10.244.${at}.${n & 255}`);
    setup.put(makeService(`svc${n}`, { clusterIP: `10.96.${n >> 8}.${n & 255}` }), makeSlice(`svc${n}`, endpoints));
  }
  return setup;
}

/** Makes each call wait until it is let go; `fails`: the calls that are refused, from 1 on. */
function holdCalls(setup: Setup, fails: readonly number[] = []) {
  const { apply } = setup.nft;
  const held = { calls: 0, underWay: 0, most: 0, letGo: () => {}, isHolding: false };
  setup.nft.apply = async (text) => {
    held.calls += 1;
    const number = held.calls;
    held.underWay += 1;
    held.most = Math.max(held.most, held.underWay);
    if (held.isHolding) await new Promise<void>((resolve) => (held.letGo = resolve));
    else await new Promise(setImmediate);
    held.underWay -= 1;
    if (fails.includes(number)) throw new AgentError("Unavailable", "killed");
    await apply(text);
  };
  return held;
}

describe("a table that did not exist", () => {
  test("is filled in steps of bounded size, and the kernel looks at it last", async () => {
    const setup = bigSetup();
    expect((await setup.sync()).transactions).toBeGreaterThan(3);
    const { applied } = setup.nft;
    expect(applied.slice(0, -1).join("")).not.toContain("hook");
    expect(applied.at(-1)).toContain("hook");
    expect(Math.max(...applied.map((text) => text.length))).toBeLessThan(1.1 * stepLength);
  });

  test("is filled in steps of bounded size however big a service is", async () => {
    const setup = new Setup();
    const endpoints = Array.from({ length: 4_000 }, (_, at) => `10.244.${at >> 8}.${at & 255}`);
    const spec = { type: "NodePort" as const, sessionAffinity: "ClientIP" as const };
    for (const n of [1, 2]) {
      setup.put(makeService(`svc${n}`, { ...spec, clusterIP: `10.96.0.${n}` }), makeSlice(`svc${n}`, endpoints));
    }
    await setup.sync();
    expect(Math.max(...setup.nft.applied.map((text) => text.length))).toBeLessThan(2 * stepLength);
  });

  test("takes one step while the next is made, but never two", async () => {
    const setup = bigSetup();
    const held = holdCalls(setup);
    let madeMeanwhile = 0;
    const describeOne = setup.model.describe.bind(setup.model);
    setup.model.describe = (key) => {
      if (held.underWay > 0) madeMeanwhile += 1;
      return describeOne(key);
    };
    await setup.sync();
    expect(held.calls).toBeGreaterThan(3);
    expect(held.most).toBe(1);
    expect(madeMeanwhile).toBeGreaterThan(0);
  });

  test("gets nothing more after a step that failed, and all of it the next time, in steps again", async () => {
    const setup = bigSetup();
    const held = holdCalls(setup, [2]);
    await expect(setup.sync()).rejects.toThrow("killed");
    expect(held.calls).toBe(2);
    expect(held.underWay).toBe(0);
    expect(setup.nft.hooks.size).toBe(0);
    await setup.sync();
    expect(held.calls).toBeGreaterThan(5);
    expect(Math.max(...setup.nft.applied.map((text) => text.length))).toBeLessThan(1.1 * stepLength);
    expect(setup.nft.sets.get("service-ips")?.elements.size).toBe(serviceCount);
    expect(setup.nft.hooks.size).toBeGreaterThan(0);
  });

  test("is no longer written to when a step that cannot be made has ended the sync", async () => {
    const setup = bigSetup();
    const held = holdCalls(setup);
    held.isHolding = true;
    const describeOne = setup.model.describe.bind(setup.model);
    setup.model.describe = (key) => {
      if (held.calls === 1) throw new Error("cannot be described");
      return describeOne(key);
    };
    let isSettled = false;
    const sync = setup.sync().finally(() => (isSettled = true));
    sync.catch(() => {});
    while (held.underWay === 0) await new Promise(setImmediate);
    for (let n = 0; n < 20; n += 1) await new Promise(setImmediate);
    expect(isSettled).toBe(false);
    held.letGo();
    await expect(sync).rejects.toThrow("cannot be described");
  });
});
