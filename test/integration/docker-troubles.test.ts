import { spawn } from "node:child_process";
import { once } from "node:events";
import { readdir, readFile, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { exec } from "../../agent/lib/exec.ts";
import { forEachOf } from "../../agent/runtime/docker/lanes.ts";
import type { PodSandboxConfig, Runtime, RuntimeEvent } from "../../agent/runtime/port.ts";
import { busyboxImageName, pauseImageName } from "../support/images/images.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import type { DockerPodOptions } from "../support/runtime/docker-pod-process.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";
import { eventually, followEvents } from "../support/runtime/watching.ts";

let docker: TestDocker;
let runtime: Runtime;
beforeAll(async () => {
  docker = await startTestDocker();
  runtime = await docker.connect();
});
afterAll(async () => {
  await runtime?.close();
  await docker?.destroy();
});

const agentPath = new URL("../support/runtime/docker-pod-process.ts", import.meta.url).pathname;

/** A pod's sandbox and one container, which runs, and what it takes to end them. */
async function runPod(config: PodSandboxConfig, script: string) {
  const id = await runtime.runPodSandbox(config, "");
  const container = await containerConfig(config, "app", busyboxImageName, ["sh", "-c", script]);
  const app = await runtime.createContainer(id, container, config);
  await runtime.startContainer(app);
  const remove = async () => {
    await runtime.stopPodSandbox(id);
    await runtime.removePodSandbox(id);
  };
  return { id, app, remove };
}

const newConfig = async () => await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);

async function addressesInUse(): Promise<string[]> {
  const dir = join(docker.node.paths.cniDataDir, docker.node.network.netns);
  return (await readdir(dir).catch(() => [])).filter((name) => /^\d+\.\d+\.\d+\.\d+$/.test(name));
}

test("a plugin that hangs holds a sandbox no longer than the contract says, and leaves nothing behind", async () => {
  const bridge = join(docker.cni.binDirs[0] ?? "", "bridge");
  const good = await readFile(bridge, "utf8");
  await writeFile(bridge, good.replace("exec ", 'if [ "$CNI_COMMAND" = ADD ]; then exec sleep 4321; fi\nexec '));
  const impatient = await docker.connect({ requestTimeoutMs: 2_000 });
  const config = await newConfig();
  try {
    const outcome = await impatient.runPodSandbox(config, "").catch((err: unknown) => err);
    const message = `run sandbox of default/${config.name}: not done within 4 s; it came to: set up its network`;
    expect(outcome).toMatchObject({ code: "DeadlineExceeded", message });
    await eventually(async () => {
      expect(await impatient.podSnapshot(config.uid)).toMatchObject({ sandboxes: [], containers: [] });
      expect(await addressesInUse()).toEqual([]);
      expect((await exec("pgrep", ["-f", "^sleep 4321$"], { timeoutMs: 5_000 })).stdout).toBe("");
    }, 30_000);
  } finally {
    await writeFile(bridge, good);
    await impatient.close();
  }
  // The next attempt finds nothing in its way.
  const pod = await runPod({ ...config, attempt: 1 }, "sleep 1000");
  expect(await runtime.podSandboxStatus(pod.id)).toMatchObject({ ready: true, attempt: 1 });
  await pod.remove();
});

const moments: { kind: RuntimeEvent["kind"]; count: number; moment: string }[] = [
  { kind: "created", count: 1, moment: "has created the sandbox" },
  { kind: "started", count: 1, moment: "has started the sandbox" },
  { kind: "created", count: 2, moment: "has created the container" },
  { kind: "started", count: 2, moment: "has started the container" },
];
test.each(moments)(
  "an agent that is killed when it $moment leaves nothing that the next does not find",
  async ({ kind, count }) => {
    const config = await newConfig();
    await using events = followEvents(runtime);
    await events.until(({ podUID }) => podUID === undefined);
    const { socketPath, cni } = docker;
    const options: DockerPodOptions = { docker: { socketPath, cni }, config };
    const agent = spawn(process.execPath, [agentPath, JSON.stringify(options)], {
      stdio: ["pipe", "ignore", "inherit"],
    });
    const ended = once(agent, "exit");
    try {
      const isOne = (event: RuntimeEvent) => event.podUID === config.uid && event.kind === kind;
      await events.until(() => events.seen.filter(isOne).length >= count);
    } finally {
      agent.kill("SIGKILL");
      await ended;
    }
    const { sandboxes, containers } = await runtime.podSnapshot(config.uid);
    expect(sandboxes).toHaveLength(1);
    // Found in full or not ready, never as something between.
    for (const { ready, ips } of sandboxes) expect(ips).toHaveLength(ready ? 1 : 0);
    for (const { state } of containers) expect(["created", "running"]).toContain(state);
    for (const { id } of sandboxes) {
      await runtime.stopPodSandbox(id);
      await runtime.removePodSandbox(id);
    }
    expect(await docker.api("GET", "/containers/json?all=1")).toEqual([]);
    expect(await addressesInUse()).toEqual([]);
    expect(await readdir(join(cni.cacheDir, "results")).catch(() => [])).toEqual([]);
  },
);

test("a frozen container is stopped in its own way", async () => {
  const pod = await runPod(await newConfig(), 'trap "exit 3" TERM; while :; do sleep 0.05; done');
  await docker.api("POST", `/containers/${pod.app}/pause`);
  expect(await runtime.containerStatus(pod.app)).toMatchObject({ state: "running" });
  await runtime.stopContainer(pod.app, 60);
  expect(await runtime.containerStatus(pod.app)).toMatchObject({ state: "exited", exitCode: 3 });
  await pod.remove();
});

test("a container whose grace has begun keeps it when the agent that asked for it ends", async () => {
  const leaving = await docker.connect();
  const pod = await runPod(await newConfig(), 'trap "echo told" TERM; echo up; while :; do sleep 0.05; done');
  const { logPath } = await runtime.containerStatus(pod.app);
  await eventually(async () => expect(await readFile(logPath, "utf8")).toContain("up"));
  const stop = leaving.stopContainer(pod.app, 600).catch((err: unknown) => err);
  await eventually(async () => expect(await readFile(logPath, "utf8")).toContain("told"));
  await leaving.close();
  expect(await stop).toMatchObject({ code: "Canceled" });
  expect(await runtime.containerStatus(pod.app)).toMatchObject({ state: "running" });
  // The next agent goes on with what is left of it.
  await runtime.stopContainer(pod.app, 0);
  expect(await runtime.containerStatus(pod.app)).toMatchObject({ state: "exited", exitCode: 137 });
  await pod.remove();
});

test("two thousand dead containers of others are neither seen nor asked for, and pods go on beside them", async () => {
  const others = 2_000;
  const pod = await runPod(await newConfig(), 'trap "exit 3" TERM; while :; do sleep 0.05; done');
  await forEachOf(Array(others).keys(), 8, async (i) => {
    const body = {
      Image: pauseImageName,
      // Each other one as another agent of the same tradition makes it.
      Labels: i % 2 === 0 ? {} : { "io.kubernetes.docker.type": "container", "io.kubernetes.pod.uid": `other-${i}` },
      HostConfig: { NetworkMode: "none", CgroupParent: docker.node.cgroupRoot },
    };
    await docker.api("POST", `/containers/create?name=other-${i}`, body);
  });
  await using events = followEvents(runtime);
  await events.until(({ podUID }) => podUID === undefined);
  const { sandboxes, containers } = await runtime.list();
  expect([sandboxes.map(({ id }) => id), containers.map(({ id }) => id)]).toEqual([[pod.id], [pod.app]]);
  expect((await runtime.containerStats()).map(({ containerID }) => containerID)).toEqual([pod.app]);
  await runtime.stopContainer(pod.app, 30);
  await events.until(({ kind, containerID }) => kind === "exited" && containerID === pod.app);
  expect(await runtime.containerStatus(pod.app)).toMatchObject({ state: "exited", exitCode: 3 });
  await pod.remove();
  expect(events.seen.filter(({ podUID }) => podUID?.startsWith("other") === true)).toEqual([]);
  const left = (await docker.api("GET", "/containers/json?all=1")) as unknown[];
  expect(left).toHaveLength(others);
}, 300_000);
