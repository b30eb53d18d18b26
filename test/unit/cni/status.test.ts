import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { CNITarget } from "../../../cni/request.ts";
import { failure, ScriptedNode, versionScript } from "./scripted-plugins.ts";

let node: ScriptedNode;
beforeEach(async () => {
  node = await ScriptedNode.create();
  await node.plugin("bridge");
  await node.plugin("second");
  await node.network({ cniVersion: "1.0.0", name: "podnet", plugins: [{ type: "bridge" }, { type: "second" }] });
});
afterEach(async () => node[Symbol.asyncDispose]());

const target: CNITarget = { containerID: "abc", netnsPath: "/proc/self/ns/net" };
// Long enough for a shell on a busy machine.
const shortMs = 1_000;

describe("status", () => {
  test("without a configuration, naming what was passed over", async () => {
    await rm(join(node.confDir, "10-net.conflist"));
    const none = `Network plugin returns error: cni plugin not initialized: no network config found in ${node.confDir}`;
    expect(await node.cni().status()).toEqual({ ready: false, reason: "NetworkPluginNotReady", message: none });
    await node.network({ name: "x", plugins: [] }, "20-x.conflist");
    const problem = `${join(node.confDir, "20-x.conflist")}: plugins: must name at least one plugin`;
    expect((await node.cni().status()).message).toBe(`${none} (${problem})`);
    await expect(node.cni().add(target)).rejects.toMatchObject({ code: "Unavailable" });
  });

  test("with plugins that do not speak the version", async () => {
    await node.plugin("second", { VERSION: versionScript(["0.4.0"]) });
    expect((await node.cni().status()).message).toContain(
      'plugin type="second" does not support config version "1.0.0"',
    );
  });

  test("asks the plugins from 1.1.0 on", async () => {
    const cni = node.cni();
    expect(await cni.status()).toEqual({ ready: true, reason: "", message: "" });
    expect(await node.story()).toEqual([]);
    await node.network({ cniVersion: "1.1.0", name: "podnet", plugins: [{ type: "bridge" }, { type: "second" }] });
    expect((await node.cni().status()).ready).toBe(true);
    expect(await node.story()).toEqual(["STATUS bridge", "STATUS second"]);
    await node.plugin("second", { STATUS: failure({ code: 50, msg: "daemon is down" }) });
    expect(await node.cni().status()).toMatchObject({
      ready: false,
      message: expect.stringContaining('plugin type="second" failed (status): daemon is down (error code 50)'),
    });
  });

  test("a plugin that hangs does not make it hang", async () => {
    await node.plugin("bridge", { STATUS: "sleep 1000" });
    await node.network({ cniVersion: "1.1.0", name: "podnet", plugins: [{ type: "bridge" }] });
    const cni = node.cni({ timeouts: { statusMs: shortMs } });
    expect((await cni.status()).message).toContain("failed (status)");
  });

  test("a plugin whose VERSION hangs is used all the same", async () => {
    await node.plugin("bridge", { VERSION: "sleep 1000" });
    const cni = node.cni({ timeouts: { versionMs: shortMs } });
    expect((await cni.status()).ready).toBe(true);
  });
});
