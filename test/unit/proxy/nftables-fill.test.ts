import { describe, expect, test } from "vitest";
import { AgentError } from "../../../agent/lib/errors.ts";
import { makeService, makeSlice } from "../../support/service-objects.ts";
import { Setup } from "./nftables-setup.ts";

describe("a table that did not exist", () => {
  function bigSetup(): Setup {
    const setup = new Setup();
    for (let n = 0; n < 1_500; n += 1) {
      const clusterIP = `10.96.${n >> 8}.${n & 255}`;
      const endpoints = Array.from({ length: 12 }, (_, at) => `10.244.${at}.${n & 255}`);
      setup.put(makeService(`svc${n}`, { clusterIP }), makeSlice(`svc${n}`, endpoints));
    }
    return setup;
  }

  test("is filled in steps, and the kernel looks at it last", async () => {
    const setup = bigSetup();
    expect((await setup.sync()).transactions).toBeGreaterThan(1);
    const { applied } = setup.nft;
    expect(applied.slice(0, -1).join("")).not.toContain("hook");
    expect(applied.at(-1)).toContain("hook");
  });

  test("takes one step while the next is made, but never two", async () => {
    const setup = bigSetup();
    const { apply } = setup.nft;
    let [underWay, most, madeMeanwhile] = [0, 0, 0];
    setup.nft.apply = async (text) => {
      underWay += 1;
      most = Math.max(most, underWay);
      await new Promise(setImmediate);
      await apply(text);
      underWay -= 1;
    };
    const describeOne = setup.model.describe.bind(setup.model);
    setup.model.describe = (key) => {
      if (underWay > 0) madeMeanwhile += 1;
      return describeOne(key);
    };
    await setup.sync();
    expect(most).toBe(1);
    expect(madeMeanwhile).toBeGreaterThan(0);
  });

  test("gets nothing more after a step that failed, and all of it the next time", async () => {
    const setup = bigSetup();
    const { apply } = setup.nft;
    let calls = 0;
    setup.nft.apply = async (text) => {
      calls += 1;
      if (calls === 2) throw new AgentError("Unavailable", "killed");
      await apply(text);
    };
    await expect(setup.sync()).rejects.toThrow("killed");
    expect(calls).toBe(2);
    await setup.sync();
    expect(setup.nft.sets.get("service-ips")?.elements.size).toBe(1_500);
    expect(setup.nft.hooks.size).toBeGreaterThan(0);
  });
});
