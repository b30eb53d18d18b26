import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, stat } from "node:fs/promises";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { busyboxImageName, webImageName } from "../support/images/images.ts";
import { mountsBelow } from "../support/node/leftovers.ts";
import { createTestNode, sweepTestNodes, type TestNode } from "../support/node/node.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";

async function startPod(node: TestNode, image = busyboxImageName, command = ["sleep", "1000"]) {
  const runtime = await connectRuntime(node);
  const sandbox = await sandboxConfig(node.dir, node.cgroupRoot);
  const sandboxID = await runtime.runPodSandbox(sandbox, "");
  const config = await containerConfig(sandbox, "main", image, command);
  const containerID = await runtime.createContainer(sandboxID, config, sandbox);
  await runtime.startContainer(containerID);
  const [ip = ""] = (await runtime.podSandboxStatus(sandboxID)).ips;
  await runtime.close();
  return { ip, containerID };
}

/** What the node left on this machine: processes, mounts, namespace, link, cgroups, CNI cache, directory. */
async function leftovers({ dir, network, cgroupRoot }: Pick<TestNode, "dir" | "network" | "cgroupRoot">) {
  const found: string[] = [];
  const there = async (path: string) => (await stat(path).catch(() => undefined)) !== undefined;
  for (const path of [dir, network.netnsPath, `/sys/class/net/${network.hostLink}`]) {
    if (await there(path)) found.push(path);
  }
  for (const controller of ["memory", "pids", "cpu", "unified", ""]) {
    const path = `/sys/fs/cgroup/${controller}${cgroupRoot}`;
    if (await there(path)) found.push(path);
  }
  for (const pid of (await readdir("/proc")).filter((name) => /^\d+$/.test(name))) {
    const command = await readFile(`/proc/${pid}/cmdline`, "utf8").catch(() => "");
    if (command.includes(`${dir}/`)) found.push(`${pid} ${command.replaceAll("\0", " ")}`);
  }
  const cached = await readdir("/var/lib/cni/results").catch(() => []);
  return [...found, ...(await mountsBelow(dir)), ...cached.filter((name) => name.startsWith(`${network.netns}-`))];
}

describe("test nodes", () => {
  let nodes: TestNode[];
  beforeAll(async () => {
    nodes = await Promise.all([createTestNode({ name: "one" }), createTestNode()]);
  });
  afterAll(async () => {
    await Promise.all(nodes.map(async (node) => await node.destroy()));
  });

  test("two at once have addresses of their own and run pods side by side", async () => {
    const [one, two] = nodes;
    if (one === undefined || two === undefined) throw new Error("no nodes");
    expect(one.name).toBe("one");
    expect(one.nodeIP).not.toBe(two.nodeIP);
    const pods = await Promise.all(nodes.map(async (node) => await startPod(node, webImageName, [])));
    expect(pods[0]?.ip).not.toBe(pods[1]?.ip);
    for (const { ip } of pods) {
      await expect.poll(async () => await (await fetch(`http://${ip}:8080/healthz`)).text()).toBe("ok\n");
    }
    const inside = await one.exec("ip", ["-o", "-4", "addr", "show", "cni0"]);
    expect(inside.stdout).toContain(one.podCIDR.replace(".0/24", ".1/24"));
  });

  test("a program started in the node runs in its namespace, and ends when asked", async () => {
    const [node] = nodes;
    if (node === undefined) throw new Error("no node");
    const program = await node.start("/bin/busybox", ["sh", "-c", "ip -o -4 addr; exec sleep 1000"], { name: "probe" });
    await expect.poll(async () => await readFile(program.logPath, "utf8")).toContain(node.nodeIP);
    await program.stop();
    expect(await program.exited).toBeNull();
    await program.stop();
  });

  test("what runs is gone after destroy, which may be called again", async () => {
    for (const node of nodes) {
      await node.destroy();
      expect(await leftovers(node)).toEqual([]);
      await node.destroy();
    }
  });
});

test("a node whose process was killed is swept by the next", async () => {
  const script = `
    const { createTestNode } = await import(${JSON.stringify(new URL("../support/node/node.ts", import.meta.url).href)});
    const { dir, network, cgroupRoot, containerd } = await createTestNode();
    console.log(JSON.stringify({ dir, network, cgroupRoot, pid: containerd.pid }));
    setInterval(() => {}, 1000);`;
  const child = spawn(process.execPath, ["--input-type=module", "-e", script], {
    stdio: ["ignore", "pipe", "inherit"],
  });
  const [line] = (await once(child.stdout, "data")) as [Buffer];
  const node = JSON.parse(line.toString()) as Pick<TestNode, "dir" | "network" | "cgroupRoot"> & { pid: number };
  await sweepTestNodes();
  expect(await stat(`/proc/${node.pid}`)).toBeDefined(); // its owner lives: left alone
  const exited = once(child, "exit");
  child.kill("SIGKILL");
  await exited;
  await sweepTestNodes();
  expect(await leftovers(node)).toEqual([]);
});
