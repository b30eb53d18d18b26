import { mkdir, readFile, stat, utimes, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { type Logger, silentLogger } from "../../../agent/lib/log.ts";
import { temporaryAgeMs } from "../../../cni/cache.ts";
import type { CNITarget } from "../../../cni/request.ts";
import { answer, failure, ScriptedNode, versionScript } from "./scripted-plugins.ts";

let node: ScriptedNode;
beforeEach(async () => {
  node = await ScriptedNode.create();
});
afterEach(async () => node[Symbol.asyncDispose]());

const target: CNITarget = {
  containerID: "abc",
  netnsPath: "/proc/self/ns/net",
  args: [["K8S_POD_NAME", "web"]],
  capabilities: { portMappings: [{ hostPort: 80 }], dns: { servers: ["10.0.0.10"] } },
};
const portmap = { type: "portmap", capabilities: { portMappings: true }, snat: true };
const chain = (version: string, more: object = {}) => ({
  cniVersion: version,
  name: "podnet",
  plugins: [{ type: "bridge", mtu: 1400 }, portmap],
  ...more,
});
const first = { cniVersion: "1.0.0", ips: [{ address: "10.1.0.5/24", gateway: "10.1.0.1" }], "vendor/x": 1 };
const last = { ...first, routes: [{ dst: "0.0.0.0/0" }] };

async function twoPlugins(version = "1.0.0", more: object = {}): Promise<void> {
  await node.plugin("bridge", { ADD: answer(first) });
  await node.plugin("portmap", { ADD: answer(last) });
  await node.network(chain(version, more));
}

describe("add", () => {
  test("runs the chain, hands results on, and returns the last one", async () => {
    await twoPlugins();
    const result = await node.cni().add(target);
    expect(result.ips).toEqual([{ address: "10.1.0.5/24", gateway: "10.1.0.1" }]);
    expect(result.routes).toEqual([{ dst: "0.0.0.0/0" }]);
    const [bridge, mapper] = await node.calls();
    expect(bridge).toMatchObject({
      plugin: "bridge",
      env: {
        CNI_COMMAND: "ADD",
        CNI_CONTAINERID: "abc",
        CNI_NETNS: "/proc/self/ns/net",
        CNI_IFNAME: "eth0",
        CNI_ARGS: "K8S_POD_NAME=web",
        CNI_PATH: node.binDir,
      },
    });
    expect(bridge?.input).toEqual({ type: "bridge", mtu: 1400, name: "podnet", cniVersion: "1.0.0" });
    expect(mapper?.input).toEqual({
      ...portmap,
      name: "podnet",
      cniVersion: "1.0.0",
      prevResult: first, // also what we do not know of it
      runtimeConfig: { portMappings: [{ hostPort: 80 }] },
    });
  });

  test("leaves the record that libcni defines, for root alone", async () => {
    await twoPlugins();
    await node.cni().add(target);
    const path = join(node.cacheDir, "results", "podnet-abc-eth0");
    const record = JSON.parse(await readFile(path, "utf8")) as Record<string, unknown>;
    expect(record).toMatchObject({
      kind: "cniCacheV1",
      containerId: "abc",
      ifName: "eth0",
      networkName: "podnet",
      netns: "/proc/self/ns/net",
      cniArgs: [["K8S_POD_NAME", "web"]],
      capabilityArgs: target.capabilities,
      result: last,
    });
    const config = JSON.parse(Buffer.from(String(record["config"]), "base64").toString()) as object;
    expect(config).toEqual({ ...chain("1.0.0"), loadOnlyInlinedPlugins: true });
    expect((await stat(path)).mode & 0o777).toBe(0o600);
    expect((await stat(join(node.cacheDir, "results"))).mode & 0o777).toBe(0o700);
  });

  test("a plugin that answers in an old version is understood, and handed on in the network's", async () => {
    await node.plugin("bridge", { ADD: answer({ cniVersion: "0.2.0", ip4: { ip: "10.1.0.5/24" } }) });
    await node.plugin("portmap", { ADD: answer(last) });
    await node.network(chain("1.0.0"));
    const cni = node.cni();
    await cni.add(target);
    expect((await node.calls())[1]?.input["prevResult"]).toEqual({
      cniVersion: "1.0.0",
      interfaces: [],
      ips: [{ address: "10.1.0.5/24" }],
      routes: [],
    });
    expect((await cni.cachedResult("abc"))?.ips).toEqual(first.ips);
  });

  test("takes the newest listed version that all plugins speak", async () => {
    await twoPlugins("0.4.0", { cniVersions: ["1.0.0", "1.1.0"] });
    await node.plugin("portmap", { VERSION: versionScript(["0.4.0", "1.0.0"]) });
    await node.cni().add(target);
    expect((await node.calls()).map(({ input }) => input["cniVersion"])).toEqual(["1.0.0", "1.0.0"]);
  });

  test("a plugin that knows no VERSION is taken for the first version; one that fails at it is tried", async () => {
    const old = failure({ code: 4, msg: "unknown CNI_COMMAND: VERSION" });
    await node.plugin("bridge", { VERSION: old });
    await node.network({ cniVersion: "1.0.0", name: "n", plugins: [{ type: "bridge" }] });
    await expect(node.cni().add(target)).rejects.toThrow("it supports 0.1.0");
    await node.plugin("bridge", { VERSION: "echo whatever; exit 3" });
    await node.cni().add(target);
    expect(await node.story()).toEqual(["ADD bridge"]);
  });

  test("what an earlier run left half done is deleted first", async () => {
    await twoPlugins();
    await node.cni().add(target);
    await node.cni().add(target);
    expect(await node.story()).toEqual([
      ...["ADD bridge", "ADD portmap"],
      ...["DEL portmap", "DEL bridge"],
      ...["ADD bridge", "ADD portmap"],
    ]);
  });

  test("is canceled by a del of the same container, which then undoes it", async () => {
    await node.plugin("bridge", { ADD: "sleep 1000" });
    await node.network({ cniVersion: "1.0.0", name: "podnet", plugins: [{ type: "bridge" }] });
    const cni = node.cni();
    const adding = cni.add(target).catch((err: unknown) => err);
    await expect.poll(async () => node.story()).toEqual(["ADD bridge"]);
    await cni.del(target);
    expect(await adding).toMatchObject({ code: "Canceled" });
    expect((await node.story()).slice(0, 2)).toEqual(["ADD bridge", "DEL bridge"]);
    expect(await node.records()).toEqual([]);
  });

  test("what a plugin says beside its result can be read in the log", async () => {
    await node.plugin("bridge", { ADD: `echo "calico: picked node-a" >&2; ${answer(first)}` });
    await node.network({ cniVersion: "1.0.0", name: "podnet", plugins: [{ type: "bridge" }] });
    const lines: unknown[] = [];
    const log: Logger = { ...silentLogger, debug: (fields: unknown) => void lines.push(fields) };
    await node.cni({ log }).add(target);
    expect(lines).toContainEqual({
      plugin: "bridge",
      command: "ADD",
      containerID: "abc",
      stderr: "calico: picked node-a",
    });
  });

  test("needs a namespace, and refuses IDs that are paths", async () => {
    await twoPlugins();
    await expect(node.cni().add({ ...target, netnsPath: "" })).rejects.toMatchObject({ code: "Invalid" });
    await expect(node.cni().add({ ...target, containerID: "../x" })).rejects.toMatchObject({ code: "Invalid" });
  });
});

describe("del", () => {
  test("runs in reverse with the configuration, arguments and result of ADD, though the file has changed", async () => {
    await twoPlugins();
    await node.cni().add(target);
    await node.network({ cniVersion: "1.0.0", name: "another", plugins: [{ type: "macvlan" }] });
    await node.cni().del({ containerID: "abc", netnsPath: "/proc/self/ns/net" });
    const [mapper, bridge] = (await node.calls()).slice(2);
    expect(mapper).toMatchObject({
      plugin: "portmap",
      env: { CNI_COMMAND: "DEL", CNI_ARGS: "K8S_POD_NAME=web", CNI_NETNS: "/proc/self/ns/net" },
      input: { name: "podnet", prevResult: last, runtimeConfig: { portMappings: [{ hostPort: 80 }] } },
    });
    expect(bridge).toMatchObject({ plugin: "bridge", input: { name: "podnet", prevResult: last } });
    expect(await node.records()).toEqual([]);
  });

  test("hands no result to plugins of versions that know none", async () => {
    await node.plugin("bridge");
    await node.network({ cniVersion: "0.3.1", name: "n", plugins: [{ type: "bridge" }] });
    const cni = node.cni();
    await cni.add(target);
    await cni.del(target);
    expect((await node.calls())[1]?.input).not.toHaveProperty("prevResult");
  });

  test("a namespace that has gone is none", async () => {
    await twoPlugins();
    const cni = node.cni();
    await cni.add(target);
    await cni.del({ ...target, netnsPath: join(node.dir, "gone") });
    expect((await node.calls()).slice(2).map(({ env }) => env["CNI_NETNS"])).toEqual(["", ""]);
  });

  test("may be repeated, and asks the plugins once more", async () => {
    await twoPlugins();
    const cni = node.cni();
    await cni.add(target);
    await cni.del(target);
    await cni.del(target);
    expect((await node.story()).slice(4)).toEqual(["DEL portmap", "DEL bridge"]);
  });

  test("ends at the plugin that fails, keeps the record, and succeeds later", async () => {
    await twoPlugins();
    const cni = node.cni();
    await cni.add(target);
    await node.plugin("portmap", { DEL: failure({ code: 5, msg: "rules are locked" }) });
    await expect(cni.del(target)).rejects.toThrow(
      'network "podnet": plugin type="portmap" failed (delete): rules are locked (error code 5)',
    );
    expect((await node.story()).slice(2)).toEqual(["DEL portmap"]);
    expect(await node.records()).toEqual(["podnet-abc-eth0"]);
    await node.plugin("portmap");
    await cni.del(target);
    expect((await node.story()).slice(3)).toEqual(["DEL portmap", "DEL bridge"]);
    expect(await node.records()).toEqual([]);
  });

  test("of a container that was never added succeeds, without any configuration or with plugins that fail", async () => {
    await node.cni().del(target);
    await node.plugin("bridge", { DEL: "exit 1" });
    await node.network({ cniVersion: "1.0.0", name: "n", plugins: [{ type: "missing" }, { type: "bridge" }] });
    await node.cni().del(target);
    expect(await node.story()).toEqual(["DEL bridge"]);
  });

  test("understands the records of other tools, also from before the layout", async () => {
    await twoPlugins();
    await mkdir(join(node.cacheDir, "results"), { recursive: true });
    await writeFile(join(node.cacheDir, "results", "podnet-abc-eth0"), JSON.stringify(last));
    await node.cni().del(target);
    expect((await node.calls()).map(({ input }) => input["prevResult"])).toEqual([last, last]);
    expect(await node.records()).toEqual([]);
  });

  test("a record that a crash left half written beside the good one is none", async () => {
    await twoPlugins();
    const cni = node.cni();
    await cni.add(target);
    const results = join(node.cacheDir, "results");
    const path = join(results, "podnet-abcd-eth0.123456789abc.tmp");
    await writeFile(path, '{"kind":"cniCa');
    await writeFile(join(results, "podnet-abc-eth0.123456789abc.tmp"), '{"kind":"cniCa');
    await cni.del(target);
    expect((await node.story()).slice(2)).toEqual(["DEL portmap", "DEL bridge"]);
    // Its own went with the container, on which nobody else works; others may be being written.
    await cni.gc([]);
    expect(await node.records()).toEqual(["podnet-abcd-eth0.123456789abc.tmp"]);
    const old = Date.now() / 1_000 - temporaryAgeMs / 1_000 - 1;
    await utimes(path, old, old);
    await cni.gc([]);
    expect(await node.records()).toEqual([]);
  });

  test("a record whose first writing was cut off goes with its container", async () => {
    await twoPlugins();
    const results = join(node.cacheDir, "results");
    await mkdir(results, { recursive: true });
    await writeFile(join(results, "podnet-abc-eth0.123456789abc.tmp"), '{"kind":"cniCa');
    await node.cni().del(target);
    expect(await node.records()).toEqual([]);
  });

  test("a record that was cut off is made good with the present configuration", async () => {
    await twoPlugins();
    await mkdir(join(node.cacheDir, "results"), { recursive: true });
    await writeFile(join(node.cacheDir, "results", "podnet-abc-eth0"), '{"kind":"cniCa');
    await node.cni().del(target);
    expect(await node.story()).toEqual(["DEL portmap", "DEL bridge"]);
    expect(await node.records()).toEqual([]);
  });
});

describe("check", () => {
  test("hands every plugin the result of ADD, and fails with the first that does", async () => {
    await twoPlugins();
    const cni = node.cni();
    await cni.add(target);
    await cni.check(target);
    expect((await node.calls()).slice(2)).toMatchObject([
      { plugin: "bridge", command: "CHECK", input: { prevResult: last } },
      { plugin: "portmap", command: "CHECK", input: { prevResult: last } },
    ]);
    await node.plugin("bridge", { CHECK: failure({ code: 999, msg: "no address" }) });
    await expect(cni.check(target)).rejects.toThrow('plugin type="bridge" failed (check): no address');
  });

  const without = [
    { name: "the network switches it off", version: "1.0.0", more: { disableCheck: true } },
    { name: "the version has none", version: "0.3.1", more: {} },
  ];
  test.each(without)("does nothing if $name", async ({ version, more }) => {
    await twoPlugins(version, more);
    const cni = node.cni();
    await cni.add(target);
    await cni.check(target);
    expect(await node.story()).toEqual(["ADD bridge", "ADD portmap"]);
  });

  test("of a container that was not added", async () => {
    await twoPlugins();
    await expect(node.cni().check(target)).rejects.toMatchObject({ code: "NotFound" });
  });
});

describe("gc", () => {
  const foreign = { kind: "cniCacheV1", containerId: "theirs", ifName: "eth0", networkName: "podnet" };

  test("deletes our stale attachments, leaves others', and tells the plugins what is in use", async () => {
    await twoPlugins("1.1.0");
    const cni = node.cni();
    await cni.add(target);
    await cni.add({ ...target, containerID: "stale" });
    await writeFile(join(node.cacheDir, "results", "podnet-theirs-eth0"), JSON.stringify(foreign));
    await cni.gc([{ containerID: "abc" }]);
    const calls = (await node.calls()).slice(4);
    expect(
      calls.map(({ plugin, command, env }) => [command, plugin, env["CNI_CONTAINERID"], env["CNI_NETNS"]]),
    ).toEqual([
      ["DEL", "portmap", "stale", ""], // its process ID may be another's by now
      ["DEL", "bridge", "stale", ""],
      ["GC", "bridge", "", ""],
      ["GC", "portmap", "", ""],
    ]);
    const inUse = [
      { containerID: "abc", ifname: "eth0" },
      { containerID: "theirs", ifname: "eth0" },
    ];
    expect(calls[2]?.input).toMatchObject({ "cni.dev/valid-attachments": inUse, "cni.dev/attachments": inUse });
    expect(await node.records()).toEqual(["podnet-abc-eth0", "podnet-theirs-eth0"]);
  });

  test("goes on after a plugin that fails, and then says so", async () => {
    await twoPlugins("1.1.0");
    await node.plugin("bridge", { GC: failure({ code: 999, msg: "no" }) });
    await expect(node.cni().gc([])).rejects.toThrow('plugin type="bridge" failed (gc): no');
    expect(await node.story()).toEqual(["GC bridge", "GC portmap"]);
  });

  const without = [
    { name: "the network switches it off", version: "1.1.0", more: { disableGC: true } },
    { name: "the version has none", version: "1.0.0", more: {} },
  ];
  test.each(without)("deletes what is on record, but runs no GC if $name", async ({ version, more }) => {
    await twoPlugins(version, more);
    const cni = node.cni();
    await cni.add(target);
    await cni.gc([]);
    expect((await node.story()).slice(2)).toEqual(["DEL portmap", "DEL bridge"]);
    expect(await node.records()).toEqual([]);
  });
});
