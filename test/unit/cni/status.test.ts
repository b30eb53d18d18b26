import { rm } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { killWaitMs } from "../../../agent/lib/exec.ts";
import { statusTimeoutMs } from "../../../agent/node/runtime-health.ts";
import { closeGraceMs } from "../../../cni/index.ts";
import { pluginTimeouts, versionRetryMs } from "../../../cni/plugins.ts";
import type { CNITarget } from "../../../cni/request.ts";
import { FakeClock } from "../kube/fake-clock.ts";
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

  test("a plugin that hangs does not make it hang, and what it began is killed", async () => {
    const pids = join(node.dir, "pids");
    await node.plugin("bridge", { STATUS: `echo $$ > ${pids}; exec sleep 1000` });
    await node.network({ cniVersion: "1.1.0", name: "podnet", plugins: [{ type: "bridge" }] });
    const cni = node.cni({ timeouts: { statusMs: shortMs } });
    const { message } = await cni.status();
    expect(message).toContain(`failed (status): ${join(node.binDir, "bridge")} did not end within`);
    expect(message).toContain(`the plugins of an operation have ${shortMs} ms together`);
    const pid = Number(await node.read("pids"));
    expect(() => process.kill(pid, 0)).toThrow("ESRCH");
  });

  test("is there before its caller gives up, though VERSION and STATUS both hang and are slow to die", () => {
    const { versionMs, statusMs } = pluginTimeouts;
    expect(versionMs + killWaitMs).toBeLessThan(statusMs);
    expect(statusMs + killWaitMs).toBeLessThan(statusTimeoutMs);
  });

  test("ends when the agent does", async () => {
    const clock = new FakeClock();
    await node.plugin("bridge", { STATUS: "sleep 1000" });
    await node.network({ cniVersion: "1.1.0", name: "podnet", plugins: [{ type: "bridge" }] });
    const cni = node.cni({ clock });
    const asked = cni.status();
    await expect.poll(async () => node.story()).toEqual(["STATUS bridge"]);
    const closed = cni.close();
    await clock.advance(closeGraceMs);
    await closed;
    expect(await asked).toMatchObject({ ready: false });
    expect((await cni.status()).message).toContain("the agent stops");
  });

  test("a plugin that does not tell its versions gets that of the configuration, and is asked again later", async () => {
    const clock = new FakeClock();
    const asked = join(node.dir, "asked");
    const slowOnce = `echo . >> ${asked}; [ "$(wc -l < ${asked})" -gt 1 ] || exec sleep 1000`;
    await node.plugin("bridge", { VERSION: `${slowOnce}; ${versionScript(["0.4.0", "1.0.0"])}` });
    await node.network({
      cniVersion: "0.4.0",
      cniVersions: ["1.0.0", "1.1.0"],
      name: "podnet",
      plugins: [{ type: "bridge" }],
    });
    const cni = node.cni({ clock, timeouts: { versionMs: shortMs } });
    await cni.add({ ...target, containerID: "c1" });
    await cni.add({ ...target, containerID: "c2" });
    expect(await node.read("asked")).toBe(".\n");
    await clock.advance(versionRetryMs);
    await cni.add({ ...target, containerID: "c3" });
    await cni.add({ ...target, containerID: "c4" });
    expect(await node.read("asked")).toBe(".\n.\n");
    const versions = (await node.calls()).map(({ input }) => input["cniVersion"]);
    expect(versions).toEqual(["0.4.0", "0.4.0", "1.0.0", "1.0.0"]);
  });
});
