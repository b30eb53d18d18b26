import { readdir, readFile, readlink, rm, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { PodSandboxConfig, Runtime } from "../../agent/runtime/port.ts";
import { busyboxImageName, pauseImageName } from "../support/images/images.ts";
import { freeze } from "../support/node/processes.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";
import { eventually, expectCode, followEvents } from "../support/runtime/watching.ts";
import { spdyClient } from "../support/streaming/clients.ts";

let docker: TestDocker;
let runtime: Runtime;
beforeAll(async () => {
  // Without live-restore, as most daemons run: what a restart does then is the harder case.
  docker = await startTestDocker({ liveRestore: false });
  runtime = await docker.connect();
});
afterAll(async () => {
  await runtime?.close();
  await docker?.destroy();
});

// Ends at SIGTERM, which a daemon gives ten seconds otherwise.
const obedient = 'trap "exit 0" TERM; while :; do sleep 0.05; done';

interface Sandbox {
  id: string;
  config: PodSandboxConfig;
}

async function newSandbox(change: Partial<PodSandboxConfig> = {}): Promise<Sandbox> {
  const config = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot, change);
  return { id: await runtime.runPodSandbox(config, ""), config };
}

async function newContainer({ id, config }: Sandbox, script: string, name = "app"): Promise<string> {
  const container = await containerConfig(config, name, busyboxImageName, ["sh", "-c", script]);
  return await runtime.createContainer(id, container, config);
}

async function startContainer(sandbox: Sandbox, script: string): Promise<string> {
  const id = await newContainer(sandbox, script);
  await runtime.startContainer(id);
  return id;
}

async function removeSandbox({ id }: Sandbox): Promise<void> {
  await runtime.stopPodSandbox(id);
  await runtime.removePodSandbox(id);
}

/** Addresses that the node's bridge network has given away. */
async function addressesInUse(): Promise<string[]> {
  const dir = join(docker.node.paths.cniDataDir, docker.node.network.netns);
  return (await readdir(dir).catch(() => [])).filter((name) => /^\d+\.\d+\.\d+\.\d+$/.test(name));
}

describe("behind our back", () => {
  test("a pause container that is killed wakes its pod, which is not ready, and can be removed", async () => {
    await using events = followEvents(runtime);
    const sandbox = await newSandbox();
    await docker.api("POST", `/containers/${sandbox.id}/kill?signal=KILL`);
    const { podUID } = await events.until(({ kind, containerID }) => kind === "exited" && containerID === sandbox.id);
    expect(podUID).toBe(sandbox.config.uid);
    expect(await runtime.podSandboxStatus(sandbox.id)).toMatchObject({ ready: false, ips: [] });
    expect((await runtime.list(sandbox.config.uid)).sandboxes).toMatchObject([{ id: sandbox.id, ready: false }]);
    await removeSandbox(sandbox);
    expect(await addressesInUse()).toEqual([]);
  });

  test("list and status agree on a pause container that is frozen, and on one that somebody started again", async () => {
    const sandbox = await newSandbox();
    const look = async () => {
      const { ready } = await runtime.podSandboxStatus(sandbox.id);
      expect((await runtime.list(sandbox.config.uid)).sandboxes).toMatchObject([{ id: sandbox.id, ready }]);
      return ready;
    };
    await docker.api("POST", `/containers/${sandbox.id}/pause`);
    expect(await look()).toBe(true);
    await docker.api("POST", `/containers/${sandbox.id}/unpause`);
    await docker.api("POST", `/containers/${sandbox.id}/restart?t=0`);
    expect(await look()).toBe(false);
    await removeSandbox(sandbox);
  });

  test("a pause container that is removed wakes its pod, and its address is free again", async () => {
    await using events = followEvents(runtime);
    const sandbox = await newSandbox();
    const app = await startContainer(sandbox, "sleep 1000");
    expect(await addressesInUse()).toHaveLength(1);
    await docker.api("DELETE", `/containers/${sandbox.id}?force=1`);
    await events.until(({ kind, containerID }) => kind === "deleted" && containerID === sandbox.id);
    await expectCode(runtime.podSandboxStatus(sandbox.id), "NotFound");
    const { sandboxes, containers } = await runtime.podSnapshot(sandbox.config.uid);
    expect(sandboxes).toEqual([]);
    expect(containers).toMatchObject([{ id: app, sandboxID: sandbox.id, state: "running" }]);
    await eventually(async () => expect(await addressesInUse()).toEqual([]));
    await runtime.stopContainer(app, 0);
    await runtime.removeContainer(app);
    await removeSandbox(sandbox);
  });

  test("an app container that is removed wakes its pod and is gone", async () => {
    await using events = followEvents(runtime);
    const sandbox = await newSandbox();
    const app = await startContainer(sandbox, "sleep 1000");
    await docker.api("DELETE", `/containers/${app}?force=1`);
    await events.until(({ kind, containerID }) => kind === "deleted" && containerID === app);
    await expectCode(runtime.containerStatus(app), "NotFound");
    expect(await runtime.podSnapshot(sandbox.config.uid)).toMatchObject({
      sandboxes: [{ ready: true }],
      containers: [],
    });
    await removeSandbox(sandbox);
  });

  test("a sandbox that an agent left without a network is not ready", async () => {
    const sandbox = await newSandbox();
    const inspect = (await docker.api("GET", `/containers/${sandbox.id}/json`)) as {
      Name: string;
      Config: { Labels: object };
    };
    const name = `${inspect.Name.slice(1)}_0a1b2c3d`;
    const { Id } = (await docker.api("POST", `/containers/create?name=${name}`, {
      Image: pauseImageName,
      Labels: inspect.Config.Labels,
      HostConfig: { NetworkMode: "none", CgroupParent: docker.node.cgroupRoot },
    })) as { Id: string };
    await docker.api("POST", `/containers/${Id}/start`);
    expect(await runtime.podSandboxStatus(Id)).toMatchObject({ ready: false, ips: [] });
    const listed = (await runtime.list(sandbox.config.uid)).sandboxes;
    expect(listed.find(({ id }) => id === Id)).toMatchObject({ ready: false });
    await removeSandbox({ ...sandbox, id: Id });
    await removeSandbox(sandbox);
  });
});

test("a log's link is there again for the next agent, and goes with its container, also when the sandbox takes it along", async () => {
  const sandbox = await newSandbox();
  const app = await startContainer(sandbox, "echo said; sleep 1000");
  const { logPath } = await runtime.containerStatus(app);
  await eventually(async () => expect(await readFile(logPath, "utf8")).toContain("said"));
  await rm(logPath);
  const next = await docker.connect();
  await next.podSnapshot(sandbox.config.uid);
  expect(await readFile(logPath, "utf8")).toContain("said");
  await next.close();
  await removeSandbox(sandbox);
  await expect(readlink(logPath)).rejects.toThrow("ENOENT");
});

describe("names", () => {
  test("a dead leftover with the name makes place", async () => {
    const sandbox = await newSandbox();
    const first = await newContainer(sandbox, "true");
    const second = await newContainer(sandbox, "true");
    expect(second).not.toBe(first);
    await expectCode(runtime.containerStatus(first), "NotFound");
    const { Name } = (await docker.api("GET", `/containers/${second}/json`)) as { Name: string };
    const { name, namespace, uid } = sandbox.config;
    expect(Name).toBe(`/k8s_app_${name}_${namespace}_${uid}_0`);
    await removeSandbox(sandbox);
  });

  test("other people's container with the name stays, and the pod's gets a suffix", async () => {
    const sandbox = await newSandbox();
    const { name, namespace, uid } = sandbox.config;
    const taken = `k8s_app_${name}_${namespace}_${uid}_0`;
    const foreign = (await docker.api("POST", `/containers/create?name=${taken}`, { Image: busyboxImageName })) as {
      Id: string;
    };
    const id = await newContainer(sandbox, "true");
    const { Name } = (await docker.api("GET", `/containers/${id}/json`)) as { Name: string };
    expect(Name).toMatch(new RegExp(`^/${taken}_[0-9a-f]{8}$`));
    expect(await runtime.containerStatus(id)).toMatchObject({ name: "app", attempt: 0, podUID: uid });
    await docker.api("DELETE", `/containers/${foreign.Id}`);
    await removeSandbox(sandbox);
  });
});

test("other people's containers are neither listed nor counted nor told of", async () => {
  await using events = followEvents(runtime);
  const { Id } = (await docker.api("POST", "/containers/create?name=database", {
    Image: busyboxImageName,
    Cmd: ["true"],
    HostConfig: { NetworkMode: "none", CgroupParent: docker.node.cgroupRoot },
  })) as { Id: string };
  await docker.api("POST", `/containers/${Id}/start`);
  const sandbox = await newSandbox();
  await events.until(({ containerID }) => containerID === sandbox.id);
  expect(events.seen.map(({ containerID }) => containerID)).not.toContain(Id);
  const { sandboxes, containers } = await runtime.list();
  expect(sandboxes.map(({ id }) => id)).toEqual([sandbox.id]);
  expect(containers).toEqual([]);
  await expectCode(runtime.containerStatus(Id), "NotFound");
  await expectCode(runtime.podSandboxStatus(Id), "NotFound");
  await removeSandbox(sandbox);
  await docker.api("DELETE", `/containers/${Id}?force=1`);
});

test("pods of another agent of the same tradition are left alone, also when they have the name of one of ours", async () => {
  const config = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
  const { name, namespace, uid } = config;
  const { Id } = (await docker.api("POST", `/containers/create?name=k8s_POD_${name}_${namespace}_${uid}_0`, {
    Image: pauseImageName,
    Labels: {
      "io.kubernetes.docker.type": "podsandbox",
      "io.kubernetes.pod.uid": uid,
      "io.kubernetes.pod.name": name,
      "io.kubernetes.pod.namespace": namespace,
    },
    HostConfig: { NetworkMode: "none", CgroupParent: docker.node.cgroupRoot },
  })) as { Id: string };
  expect(await runtime.list()).toEqual({ sandboxes: [], containers: [] });
  const id = await runtime.runPodSandbox(config, "");
  expect((await runtime.list()).sandboxes.map((sandbox) => sandbox.id)).toEqual([id]);
  await removeSandbox({ id, config });
  await docker.api("DELETE", `/containers/${Id}`);
});

describe("a network that fails", () => {
  const plugins = [
    { name: "prints garbage", script: "cat >/dev/null; echo '{not json'; exit 0" },
    { name: "exits 255 after half its work", script: "echo half >&2; exit 255" },
  ];
  test.each(plugins)(
    "a plugin that $name: the sandbox is refused, naming the pod, and nothing is left",
    async ({ script }) => {
      const bridge = join(docker.cni.binDirs[0] ?? "", "bridge");
      const good = await readFile(bridge, "utf8");
      // DEL works, as it does when only ADD is broken.
      await writeFile(bridge, good.replace("exec ", `if [ "$CNI_COMMAND" = ADD ]; then ${script}; fi\nexec `));
      try {
        const config = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
        await expect(runtime.runPodSandbox(config, "")).rejects.toThrow(`set up network of default/${config.name}`);
        expect(await runtime.podSnapshot(config.uid)).toMatchObject({ sandboxes: [], containers: [] });
      } finally {
        await writeFile(bridge, good);
      }
      expect(await addressesInUse()).toEqual([]);
    },
  );

  test("an agent that stops while a plugin hangs takes the plugin along; the next one frees what it had reserved", async () => {
    const bridge = join(docker.cni.binDirs[0] ?? "", "bridge");
    const pidFile = join(docker.node.dir, "hanging-plugin");
    const good = await readFile(bridge, "utf8");
    // It does its work, and then does not come to its end.
    const work = good.replace("exec ", "").replaceAll(/^#!.*\n/gm, "");
    await writeFile(
      bridge,
      `#!/bin/sh\n[ "$CNI_COMMAND" = ADD ] || ${good.slice(good.indexOf("exec"))}\n${work}\necho $$ > ${pidFile}\nsleep 1000\n`,
    );
    const leaving = await docker.connect();
    const config = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
    try {
      const starting = leaving.runPodSandbox(config, "").catch((err: unknown) => err);
      await expect.poll(async () => await readFile(pidFile, "utf8").catch(() => ""), { timeout: 20_000 }).toMatch(/\d/);
      expect(await addressesInUse()).toHaveLength(1);
      await leaving.drain?.();
      expect(await starting).toMatchObject({ code: "Canceled" });
      const stat = await readFile(`/proc/${(await readFile(pidFile, "utf8")).trim()}/stat`, "utf8").catch(() => ") Z");
      expect(stat).toMatch(/\) [ZX]/); // gone, or nobody has taken notice of its death yet
    } finally {
      await writeFile(bridge, good);
      await leaving.close();
    }
    const { sandboxes } = await runtime.podSnapshot(config.uid);
    expect(sandboxes).toMatchObject([{ ready: false }]);
    for (const { id } of sandboxes) await removeSandbox({ id, config });
    expect(await addressesInUse()).toEqual([]);
  });
});

describe("the daemon", () => {
  test("a restart without live-restore ends the containers; pods are woken and see it", async () => {
    await using events = followEvents(runtime);
    const sandbox = await newSandbox();
    const app = await startContainer(sandbox, obedient);
    await events.until(({ kind, containerID }) => kind === "started" && containerID === app);
    const seen = events.seen.length;
    await docker.stop();
    expect(await runtime.status()).toMatchObject({ runtimeReady: { status: false, reason: "DockerDaemonNotReady" } });
    await expectCode(runtime.containerStatus(app), "Unavailable");
    await docker.start();
    await events.until(({ podUID }, index) => index >= seen && podUID === undefined);
    expect(await runtime.podSnapshot(sandbox.config.uid)).toMatchObject({
      sandboxes: [{ id: sandbox.id, ready: false, ips: [] }],
      containers: [{ id: app, state: "exited" }],
    });
    expect((await runtime.status()).runtimeReady.status).toBe(true);
    await removeSandbox(sandbox);
    expect(await addressesInUse()).toEqual([]);
  });

  test("a daemon that was killed leaves containers behind that the next one ends or adopts, and nothing of a pod is lost", async () => {
    const sandbox = await newSandbox();
    const app = await startContainer(sandbox, obedient);
    await docker.stop("SIGKILL");
    await docker.start();
    const snapshot = await runtime.podSnapshot(sandbox.config.uid);
    expect(snapshot).toMatchObject({
      sandboxes: [{ id: sandbox.id, ready: false, ips: [] }],
      containers: [{ id: app, state: "exited", exitCode: expect.any(Number) as unknown }],
    });
    expect(snapshot.containers[0]?.finishedAtMs).toBeGreaterThan(0);
    expect((await runtime.list(sandbox.config.uid)).sandboxes).toMatchObject([{ id: sandbox.id, ready: false }]);
    expect(await addressesInUse()).toHaveLength(1);
    await removeSandbox(sandbox);
    expect(await addressesInUse()).toEqual([]);
  });

  test("a daemon that hangs keeps nobody longer than a call's deadline", async () => {
    const impatient = await docker.connect({ requestTimeoutMs: 300 });
    await freeze(docker.pid);
    try {
      await expectCode(impatient.list(), "DeadlineExceeded");
      expect((await impatient.status()).runtimeReady).toMatchObject({ status: false });
    } finally {
      process.kill(docker.pid, "SIGCONT");
      await impatient.close();
    }
    await eventually(async () => expect((await runtime.status()).runtimeReady.status).toBe(true));
  });
});

test("a pod's DNS settings are those of its containers, and what it asked for is read back by another agent", async () => {
  const dns = {
    servers: ["10.96.0.10"],
    searches: ["default.svc.cluster.local", "svc.cluster.local"],
    options: ["ndots:5"],
  };
  const sandbox = await newSandbox({ dns, annotations: { note: "kept" }, hostname: "named" });
  const app = await startContainer(sandbox, "sleep 1000");
  const { stdout } = await runtime.execSync(app, ["sh", "-c", "hostname; cat /etc/resolv.conf"], 10);
  expect(stdout.toString()).toBe(
    "named\nsearch default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n",
  );
  const { ips } = await runtime.podSandboxStatus(sandbox.id);
  const other = await docker.connect();
  expect(await other.podSandboxStatus(sandbox.id)).toMatchObject({ ips, ready: true, annotations: { note: "kept" } });
  expect(await other.podSnapshot(sandbox.config.uid)).toEqual({
    ...(await runtime.podSnapshot(sandbox.config.uid)),
    observedAtMs: expect.any(Number) as unknown,
  });
  await other.close();
  await removeSandbox(sandbox);
});

test("commands in containers end with the agent: those it waits for, and sessions that hear no SIGTERM", async () => {
  const leaving = await docker.connect();
  const sandbox = await newSandbox();
  const app = await startContainer(sandbox, "exec sleep 1000");
  const session = { tty: false, stdin: false, stdout: true, stderr: true };
  const deaf = ["sh", "-c", 'trap "" TERM; sleep 2222; true'];
  const url = await leaving.streamingURL({ kind: "exec", containerID: app, command: deaf, ...session });
  const { connection, open } = await spdyClient(url);
  for (const stream of ["error", "stdout", "stderr"]) await open(stream);
  await expect.poll(async () => await processesIn(app)).toHaveLength(3);
  const probe = leaving.execSync(app, ["sleep", "1111"], 0).catch((err: unknown) => err);
  await expect.poll(async () => await processesIn(app)).toHaveLength(4);

  await leaving.close();
  expect(await probe).toMatchObject({ code: "Canceled" });
  await eventually(async () => expect(await processesIn(app)).toEqual(["sleep 1000"]));
  connection.destroy();
  await removeSandbox(sandbox);
});

/** Command lines of a container's processes. */
async function processesIn(containerID: string): Promise<string[]> {
  const { Processes } = (await docker.api("GET", `/containers/${containerID}/top`)) as { Processes: string[][] };
  return Processes.map((fields) => fields.at(-1) ?? "");
}
