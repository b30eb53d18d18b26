import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, afterEach, beforeAll, expect, test } from "vitest";
import type { PodSandboxConfig, Runtime } from "../../agent/runtime/port.ts";
import { busyboxImageName, pauseImageName } from "../support/images/images.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";
import { eventually, followEvents } from "../support/runtime/watching.ts";

// A daemon that is not this node's alone: other nodes' agents use it, and people with images of pods' containers.

let docker: TestDocker;
const runtimes: Runtime[] = [];
beforeAll(async () => {
  docker = await startTestDocker();
});
afterEach(async () => {
  for (const runtime of runtimes.splice(0)) await runtime.close();
});
afterAll(() => docker?.destroy());

async function connect(nodeName: string): Promise<Runtime> {
  const runtime = await docker.connect({ nodeName });
  runtimes.push(runtime);
  return runtime;
}

interface TestPod {
  config: PodSandboxConfig;
  sandbox: string;
  app: string;
}

async function runPod(runtime: Runtime): Promise<TestPod> {
  const config = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
  const sandbox = await runtime.runPodSandbox(config, "");
  const command = ["sh", "-c", "echo said; sleep 1000"];
  const container = await containerConfig(config, "app", busyboxImageName, command);
  const app = await runtime.createContainer(sandbox, container, config);
  await runtime.startContainer(app);
  return { config, sandbox, app };
}

async function end(runtime: Runtime, { sandbox }: TestPod): Promise<void> {
  await runtime.stopPodSandbox(sandbox);
  await runtime.removePodSandbox(sandbox);
}

/** IDs of what a runtime has, and of what it counts. */
async function seenBy(runtime: Runtime): Promise<{ sandboxes: string[]; containers: string[]; counted: string[] }> {
  const { sandboxes, containers } = await runtime.list();
  return {
    sandboxes: sandboxes.map(({ id }) => id),
    containers: containers.map(({ id }) => id),
    counted: (await runtime.containerStats()).map(({ containerID }) => containerID),
  };
}

const only = ({ sandbox, app }: TestPod) => ({ sandboxes: [sandbox], containers: [app], counted: [app] });

interface Inspected {
  Id: string;
  Name: string;
  Image: string;
  State: { Running: boolean };
  Config: { Labels: Record<string, string> };
}

const inspect = async (id: string) => (await docker.api("GET", `/containers/${id}/json`)) as Inspected;
const isRunning = async (id: string) => (await inspect(id)).State.Running;

async function addressesInUse(): Promise<string[]> {
  const dir = join(docker.node.paths.cniDataDir, docker.node.network.netns);
  return (await readdir(dir).catch(() => [])).filter((name) => /^\d+\.\d+\.\d+\.\d+$/.test(name));
}

test("two nodes on one daemon have a pod each, and neither sees, wakes for or ends the other's", async () => {
  const [one, two] = [await connect("node-1"), await connect("node-2")];
  await using events = followEvents(two);
  await events.until(({ podUID }) => podUID === undefined);
  const first = await runPod(one);
  const second = await runPod(two);
  expect(await seenBy(one)).toEqual(only(first));
  expect(await seenBy(two)).toEqual(only(second));
  expect((await two.podSnapshot(first.config.uid)).sandboxes).toEqual([]);
  await expect(two.containerStatus(first.app)).rejects.toMatchObject({ code: "NotFound" });
  await expect(two.podSandboxStatus(first.sandbox)).rejects.toMatchObject({ code: "NotFound" });
  await two.stopContainer(first.app, 0);
  await two.removeContainer(first.app);
  await end(two, first);
  expect(await isRunning(first.app)).toBe(true);
  expect(await isRunning(first.sandbox)).toBe(true);
  // The name that the other one's sandbox has is taken; its own has another.
  const namesake = await two.runPodSandbox(first.config, "");
  expect((await inspect(namesake)).Name).toMatch(/_[0-9a-f]{8}$/);
  expect(await isRunning(first.sandbox)).toBe(true);
  await two.stopPodSandbox(namesake);
  await two.removePodSandbox(namesake);
  await end(two, second);
  expect(events.seen.filter(({ containerID }) => containerID === first.app)).toEqual([]);
  // Nor is it taken away from one that has stopped.
  await one.stopPodSandbox(first.sandbox);
  const another = await two.runPodSandbox(first.config, "");
  expect((await inspect(another)).Name).toMatch(/_[0-9a-f]{8}$/);
  expect(await isRunning(first.sandbox)).toBe(false);
  await two.stopPodSandbox(another);
  await two.removePodSandbox(another);
  await end(one, first);
});

test("what one node collects of networks is not what another one uses", async () => {
  const [one, two] = [await connect("node-1"), await connect("node-2")];
  const first = await runPod(one);
  const second = await runPod(two);
  expect(await addressesInUse()).toHaveLength(2);
  await using events = followEvents(two);
  await events.until(({ podUID }) => podUID === undefined);
  await docker.api("DELETE", `/containers/${second.sandbox}?force=1`);
  await eventually(async () => expect(await addressesInUse()).toHaveLength(1));
  const [address] = await addressesInUse();
  expect((await one.podSandboxStatus(first.sandbox)).ips).toContain(address);
  await two.removeContainer(second.app);
  await end(one, first);
});

test("an agent adopts what one of its name left, and what one left that told no name", async () => {
  const before = await connect("node-1");
  const pod = await runPod(before);
  await before.close();
  runtimes.pop();
  const after = await connect("node-1");
  expect(await seenBy(after)).toEqual(only(pod));

  const { Name, Config } = await inspect(pod.sandbox);
  const { "io.nodelet.node": node, ...Labels } = Config.Labels;
  expect(node).toBe("node-1");
  const HostConfig = { NetworkMode: "none", CgroupParent: docker.node.cgroupRoot };
  const name = Name.slice(1).replace(/_\d+$/, "_7");
  const body = { Image: pauseImageName, Labels: { ...Labels, "io.nodelet.attempt": "7" }, HostConfig };
  const { Id } = (await docker.api("POST", `/containers/create?name=${name}`, body)) as { Id: string };
  expect((await after.list()).sandboxes.map(({ id }) => id).toSorted()).toEqual([Id, pod.sandbox].toSorted());
  await end(after, { ...pod, sandbox: Id });
  await end(after, pod);
});

test("what somebody runs of an image committed from a pod's container is theirs", async () => {
  const runtime = await connect("node-1");
  const pod = await runPod(runtime);
  await using events = followEvents(runtime);
  await events.until(({ podUID }) => podUID === undefined);
  const copies: string[] = [];
  for (const [of, name] of [
    [pod.app, "app-copy"],
    [pod.sandbox, "sandbox-copy"],
  ] as const) {
    await docker.api("POST", `/commit?container=${of}&repo=${name}&tag=1`);
    const body = { Image: `${name}:1`, HostConfig: { NetworkMode: "none", CgroupParent: docker.node.cgroupRoot } };
    const { Id } = (await docker.api("POST", `/containers/create?name=${name}`, body)) as { Id: string };
    await docker.api("POST", `/containers/${Id}/start`);
    expect((await inspect(Id)).Config.Labels).toMatchObject({ "io.kubernetes.pod.uid": pod.config.uid });
    copies.push(Id);
  }
  expect(await seenBy(runtime)).toEqual(only(pod));
  expect(await runtime.podSnapshot(pod.config.uid)).toMatchObject({
    sandboxes: [{ id: pod.sandbox }],
    containers: [{ id: pod.app }],
  });
  for (const copy of copies) {
    await expect(runtime.containerStatus(copy)).rejects.toMatchObject({ code: "NotFound" });
    await runtime.stopContainer(copy, 0);
    await runtime.removeContainer(copy);
    await runtime.stopPodSandbox(copy);
    await runtime.removePodSandbox(copy);
  }
  // The pod's end takes along what has the sandbox's label, but not these.
  await end(runtime, pod);
  await events.until(({ kind, containerID }) => kind === "deleted" && containerID === pod.sandbox);
  for (const copy of copies) expect(await isRunning(copy)).toBe(true);
  expect(events.seen.filter(({ containerID }) => copies.includes(containerID ?? ""))).toEqual([]);

  // A pod of such an image is a pod as any other, with labels of its own.
  const config = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
  const sandbox = await runtime.runPodSandbox(config, "");
  const container = await containerConfig(config, "app", "docker.io/library/app-copy:1", ["sleep", "1000"]);
  const app = await runtime.createContainer(sandbox, container, config);
  await runtime.startContainer(app);
  expect(await runtime.containerStatus(app)).toMatchObject({
    podUID: config.uid,
    sandboxID: sandbox,
    state: "running",
  });
  expect(await seenBy(runtime)).toEqual(only({ config, sandbox, app }));
  await end(runtime, { config, sandbox, app });
  for (const copy of copies) await docker.api("DELETE", `/containers/${copy}?force=1`);
});
