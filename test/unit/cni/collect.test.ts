import { mkdir, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { quietWaitMs } from "../../../cni/collect.ts";
import type { CNITarget } from "../../../cni/request.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { ScriptedNode } from "./scripted-plugins.ts";

let node: ScriptedNode;
beforeEach(async () => {
  node = await ScriptedNode.create();
  await node.plugin("bridge");
  await node.network(list("podnet"));
});
afterEach(async () => node[Symbol.asyncDispose]());

const list = (name: string, cniVersion = "1.0.0") => ({ cniVersion, name, plugins: [{ type: "bridge" }] });
const target: CNITarget = { containerID: "abc", netnsPath: "/proc/self/ns/net" };

async function record(name: string, text: string): Promise<void> {
  await mkdir(join(node.cacheDir, "results"), { recursive: true });
  await writeFile(join(node.cacheDir, "results", name), text);
}

describe("gc", () => {
  test("pods start and stop while the deletion of stale attachments hangs", async () => {
    const cni = node.cni();
    for (const containerID of ["s1", "s2", "s3"]) await cni.add({ ...target, containerID });
    const blocker = join(node.dir, "blocker");
    await writeFile(blocker, "");
    await node.plugin("bridge", {
      DEL: `case "$CNI_CONTAINERID" in s*) while [ -e ${blocker} ]; do sleep 0.05; done ;; esac`,
    });
    const collecting = cni.gc([]);
    await expect.poll(async () => node.story()).toContain("DEL bridge");
    await cni.add(target);
    await cni.del(target);
    expect(await node.records()).toEqual(["podnet-s1-eth0", "podnet-s2-eth0", "podnet-s3-eth0"]);
    await rm(blocker);
    await collecting;
    expect(await node.records()).toEqual([]);
  });

  test("spares what came into use since it began", async () => {
    const cni = node.cni();
    const names = ["s1", "s2", "s3", "s4", "s5"];
    for (const containerID of names) await cni.add({ ...target, containerID });
    const valid: { containerID: string }[] = [];
    const go = join(node.dir, "go");
    await node.plugin("bridge", { DEL: `while [ ! -e ${go} ]; do sleep 0.05; done` });
    const collecting = cni.gc(valid);
    await expect.poll(async () => (await node.story()).filter((call) => call === "DEL bridge").length).toBe(4);
    const isBegun = new Set((await node.calls()).slice(5).map(({ env }) => env["CNI_CONTAINERID"]));
    const waiting = names.filter((name) => !isBegun.has(name));
    for (const containerID of waiting) valid.push({ containerID });
    await writeFile(go, "");
    await collecting;
    expect(await node.records()).toEqual(waiting.map((name) => `podnet-${name}-eth0`));
  });

  test("deletes what is left of a network that is no longer in use, also when there is none", async () => {
    await node.cni().add(target);
    await node.cni().add({ ...target, containerID: "second" });
    await node.network(list("other", "1.1.0"));
    await node.cni().gc([{ containerID: "second" }]);
    expect((await node.calls()).slice(2).map(({ command, input }) => [command, input["name"]])).toEqual([
      ["DEL", "podnet"],
      ["GC", "other"],
    ]);
    await rm(node.confDir, { recursive: true });
    await node.cni().gc([]);
    expect(await node.records()).toEqual([]);
  });

  test("a record that a power failure emptied is deleted by its name, unless it is in use or of another network", async () => {
    await record("podnet-dead-eth0", "");
    await record("podnet-used-eth0", "");
    await record("elsewhere-dead-eth0", "");
    await node.cni().gc([{ containerID: "used" }]);
    expect((await node.calls()).map(({ command, env }) => [command, env["CNI_CONTAINERID"], env["CNI_NETNS"]])).toEqual(
      [["DEL", "dead", ""]],
    );
    expect(await node.records()).toEqual(["elsewhere-dead-eth0", "podnet-used-eth0"]);
  });

  test("plugins are not asked on a node that never rests", async () => {
    await node.network(list("podnet", "1.1.0"));
    await node.plugin("bridge", { ADD: "sleep 1000" });
    const clock = new FakeClock();
    const cni = node.cni({ clock });
    const stop = new AbortController();
    const adding = cni.add(target, stop.signal).catch(() => {});
    await expect.poll(async () => node.story()).toEqual(["ADD bridge"]);
    const collecting = cni.gc([target]);
    await expect.poll(() => clock.waiting).toBe(1);
    await clock.advance(quietWaitMs);
    await collecting;
    expect(await node.story()).toEqual(["ADD bridge"]);
    stop.abort();
    await adding;
  });
});
