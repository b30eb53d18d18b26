import { mkdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { exec } from "../../../agent/lib/exec.ts";
import { namesIn } from "../../../agent/lib/names-in.ts";
import type { CNITarget } from "../../../cni/request.ts";
import { ScriptedNode } from "./scripted-plugins.ts";

let node: ScriptedNode;
beforeEach(async () => {
  node = await ScriptedNode.create();
  await node.plugin("bridge");
  await node.network({ cniVersion: "1.0.0", name: "podnet", plugins: [{ type: "bridge" }] });
});
afterEach(async () => node[Symbol.asyncDispose]());

const target: CNITarget = { containerID: "abc", netnsPath: "/proc/self/ns/net" };

async function record(network: string, content: object | string): Promise<void> {
  const names = { kind: "cniCacheV1", containerId: "abc", ifName: "eth0", networkName: network };
  await mkdir(join(node.cacheDir, "results"), { recursive: true });
  const text = typeof content === "string" ? content : JSON.stringify({ ...names, ...content });
  await writeFile(join(node.cacheDir, "results", `${network}-abc-eth0`), text);
}
const encoded = (config: object) => Buffer.from(JSON.stringify(config)).toString("base64");

describe("records", () => {
  test.each([
    { name: "a single plugin", config: { cniVersion: "1.0.0", name: "old", type: "single" }, want: "DEL single" },
    { name: "no plugins, which lay in files", config: { cniVersion: "1.0.0", name: "old" }, want: "DEL bridge" },
    { name: "an empty list of plugins", config: { cniVersion: "1.0.0", name: "old", plugins: [] }, want: "DEL bridge" },
  ])("of $name: the plugin runs before the record goes", async ({ config, want }) => {
    await node.plugin("single");
    await record("old", { config: encoded(config), result: { cniVersion: "1.0.0" } });
    await node.cni().del(target);
    expect(await node.story()).toEqual([want]);
    expect(await node.records()).toEqual([]);
  });

  test("of a version that is not known: the addresses are not, but DEL runs", async () => {
    await record("podnet", { owner: "nodelet", result: { cniVersion: "1.2.0", ips: [] } });
    const cni = node.cni();
    expect(await cni.cachedResult("abc")).toBeUndefined();
    expect(await cni.hasRecord("abc")).toBe(true);
    await cni.del(target);
    expect(await node.story()).toEqual(["DEL bridge"]);
  });

  test("that a plugin keeps of those it delegates to stay the plugin's", async () => {
    const cni = node.cni();
    await cni.add(target);
    const config = encoded({ cniVersion: "1.0.0", name: "adelegate", type: "missing" });
    await record("adelegate", { config, result: { cniVersion: "1.0.0", ips: [{ address: "10.77.0.1/24" }] } });
    expect((await cni.cachedResult("abc"))?.ips).toEqual([{ address: "10.1.0.5/24" }]);
    await cni.del(target);
    expect(await node.story()).toEqual(["ADD bridge", "DEL bridge"]);
    expect(await node.records()).toEqual(["adelegate-abc-eth0"]);
  });

  test("remember the namespace: DEL is not run in another that has its path by now", async () => {
    const cni = node.cni();
    await cni.add(target);
    const path = join(node.dir, "net"); // a file is no namespace, but not the same one either
    await writeFile(path, "");
    await cni.del({ ...target, netnsPath: path });
    await cni.add(target);
    await cni.del(target);
    const asked = (await node.calls()).filter(({ command }) => command === "DEL").map(({ env }) => env["CNI_NETNS"]);
    expect(asked).toEqual(["", "/proc/self/ns/net"]);
  });
});

/** Not gone, and not dead with nobody to take notice of it. */
async function isAtWork(pid: number): Promise<boolean> {
  const stat = await readFile(`/proc/${pid}/stat`, "utf8").catch(() => ") Z");
  return !/\) [ZX]/.test(stat);
}

describe("an agent that dies in ADD", () => {
  // What an agent does: it adds, and is killed meanwhile.
  const program = () => `
    const { createCNI } = await import(${JSON.stringify(new URL("../../../cni/index.ts", import.meta.url).href)});
    const log = { debug() {}, info() {}, warn() {}, error() {} };
    const { confDir, binDir, cacheDir } = ${JSON.stringify(node)};
    const target = { containerID: "abc", netnsPath: "/proc/self/ns/net" };
    void createCNI({ confDir, binDirs: [binDir], cacheDir, log }).add(target);
  `;

  test("the next one ends the plugin that works on, with what it started, before it undoes its work", async () => {
    const reserved = join(node.dir, "reserved");
    const pids = join(node.dir, "pids");
    await node.plugin("bridge", {
      ADD: `sh -c 'echo $$; exec sleep 1000' > ${pids}; : > ${reserved}`,
      DEL: `rm -f ${reserved}`,
    });
    const stop = new AbortController();
    const options = { timeoutMs: 30_000, signal: stop.signal };
    const dying = exec(process.execPath, ["--input-type=module", "-e", program()], options);
    await expect.poll(async () => node.read("pids"), { timeout: 10_000 }).toMatch(/^\d+\n$/);
    stop.abort(); // kills it; its plugin leads a group of its own
    await dying;
    const pid = Number(await node.read("pids"));
    expect(await isAtWork(pid)).toBe(true);
    await node.cni().del(target);
    expect(await isAtWork(pid)).toBe(false);
    expect(await node.story()).toEqual(["ADD bridge", "DEL bridge"]);
    expect(await node.records()).toEqual([]);
    expect(await namesIn(node.dir)).not.toContain("reserved");
  });

  test("another process that has the plugin's ID by now is left alone", async () => {
    await mkdir(join(node.cacheDir, "running"), { recursive: true });
    const bootID = (await readFile("/proc/sys/kernel/random/boot_id", "utf8")).trim();
    const noted = { pid: process.pid, startTicks: "1", bootID };
    await writeFile(join(node.cacheDir, "running", "abc"), JSON.stringify(noted));
    await node.cni().add(target);
    expect(await node.story()).toEqual(["ADD bridge"]);
  });
});
