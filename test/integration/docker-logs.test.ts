import { lstat, readdir, readlink, writeFile } from "node:fs/promises";
import { dirname, join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { systemClock } from "../../agent/lib/clock.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { createLogRotation } from "../../agent/pods/log-rotation.ts";
import type { ContainerConfig, PodSandboxConfig, Runtime } from "../../agent/runtime/port.ts";
import type { LogOptions } from "../../agent/server/logs/options.ts";
import { readLog } from "../../agent/server/logs/reader.ts";
import { logsIn } from "../../agent/stats/filesystem.ts";
import { busyboxImageName } from "../support/images/images.ts";
import { containerConfig, sandboxConfig } from "../support/runtime/configs.ts";
import { startTestDocker, type TestDocker } from "../support/runtime/docker.ts";

let docker: TestDocker;
let runtime: Runtime;
let sandbox: PodSandboxConfig;
let sandboxID: string;

// As few bytes that the tests' containers rotate their logs many times, and more files than they can fill.
const maxSizeBytes = 4 * 1024;
const maxFiles = 40;

beforeAll(async () => {
  docker = await startTestDocker();
  runtime = await docker.connect({ logs: { maxSizeBytes, maxFiles } });
  sandbox = await sandboxConfig(docker.node.dir, docker.node.cgroupRoot);
  sandbox.securityContext.namespaceOptions.network = "NODE";
  sandboxID = await runtime.runPodSandbox(sandbox, "");
});
afterAll(async () => {
  await runtime?.close();
  await docker?.destroy();
});

async function start(name: string, script: string, change: Partial<ContainerConfig> = {}) {
  const config = await containerConfig(sandbox, name, busyboxImageName, ["sh", "-c", script], change);
  const id = await runtime.createContainer(sandboxID, config, sandbox);
  await runtime.startContainer(id);
  return { id, logPath: (await runtime.containerStatus(id)).logPath };
}

const stateOf = async (id: string) => (await runtime.containerStatus(id)).state;
const ended = async (id: string) =>
  await expect.poll(async () => await stateOf(id), { timeout: 30_000 }).toBe("exited");

/** As the server reads it for `kubectl logs`. */
async function logs(path: string, id: string, options: Partial<LogOptions> = {}, chunks: string[] = []) {
  const whole: LogOptions = { follow: false, previous: false, timestamps: false, stream: "All", ...options };
  const deps = {
    clock: systemClock,
    log: silentLogger,
    isRunning: async () => (await stateOf(id)) === "running",
    write: (chunk: Buffer) => {
      chunks.push(chunk.toString());
      return Promise.resolve();
    },
  };
  await readLog(path, whole, deps, AbortSignal.timeout(60_000));
  return chunks.join("");
}

/** What a follower from the start gets of a container that runs `script`. */
async function followed(name: string, script: string): Promise<string> {
  const { id, logPath } = await start(name, `echo ready; while [ ! -e /go ]; do usleep 20000; done; ${script}`);
  const chunks: string[] = [];
  const following = logs(logPath, id, { follow: true }, chunks);
  await expect.poll(() => chunks.join(""), { timeout: 20_000 }).toBe("ready\n");
  await runtime.execSync(id, ["touch", "/go"], 20);
  return (await following).slice("ready\n".length);
}

test("kubectl's options, over what Docker wrote", async () => {
  const { id, logPath } = await start("plain", "echo one; echo two >&2; sleep 0.1; printf 'three, without end'");
  await ended(id);
  expect(logPath).toBe(join(sandbox.logDirectory, "plain", "0.log"));
  expect((await logs(logPath, id)).split("\n").sort()).toEqual(["one", "three, without end", "two"]);
  expect(await logs(logPath, id, { stream: "Stderr" })).toBe("two\n");
  expect(await logs(logPath, id, { tailLines: 1 })).toBe("three, without end");
  expect(await logs(logPath, id, { tailLines: 1, timestamps: true })).toMatch(
    /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z three, without end$/,
  );
  expect(await logs(logPath, id, { limitBytes: 3 })).toHaveLength(3);
  expect(await logs(logPath, id, { since: { seconds: Date.now() / 1_000 + 60, nanos: 0 } })).toBe("");
});

test("a line longer than Docker's pieces comes as one", async () => {
  const { id, logPath } = await start("long", "head -c 2500 /dev/zero | tr '\\0' x; echo");
  await ended(id);
  expect(await logs(logPath, id)).toBe(`${"x".repeat(2_500)}\n`);
  // Each piece of 16 KiB fills a file of this size, so that only one who follows from the start sees them all.
  const text = await followed("larger", "head -c 40000 /dev/zero | tr '\\0' x; echo");
  expect(text).toBe(`${"x".repeat(40_000)}\n`);
});

test("a follower gets every line over many rotations by Docker", async () => {
  const lines = 600;
  const step = "i=$((i+1)); [ $((i%20)) = 0 ] && usleep 60000";
  const script = `i=0; while [ $i -lt ${lines} ]; do echo "line $i of a log that is rotated"; ${step}; done`;
  const text = await followed("chatty", script);
  const want = Array.from({ length: lines }, (_, i) => `line ${i} of a log that is rotated\n`);
  expect(text).toBe(want.join(""));
  const logPath = join(sandbox.logDirectory, "chatty", "0.log");
  const files = await readdir(dirname(await readlink(logPath)));
  expect(files.filter((name) => /-json\.log\.\d+$/.test(name)).length).toBeGreaterThan(5);

  // Whoever asks later gets the newest file, as with every runtime.
  const tail = await logs(logPath, "gone", { tailLines: 2 });
  expect(tail.endsWith(`line ${lines - 1} of a log that is rotated\n`)).toBe(true);
  const { bytes } = await logsIn(dirname(logPath));
  expect(bytes).toBeGreaterThan(lines * 100);
});

test("the agent's own rotation leaves Docker's logs alone", async () => {
  const { id, logPath } = await start("rotated", "head -c 3000 /dev/zero | tr '\\0' x; echo; sleep 1000");
  await expect.poll(async () => (await logs(logPath, id)).length).toBe(3_001);
  const target = await readlink(logPath);
  const rotation = createLogRotation({
    runtime,
    isKnown: () => true,
    podLogsDir: dirname(sandbox.logDirectory),
    maxSizeBytes: 1,
    maxFiles: 2,
    maxWorkers: 1,
    intervalMs: 10_000,
    clock: systemClock,
    log: silentLogger,
  });
  await rotation.pass();
  expect(await readdir(dirname(logPath))).toEqual(["0.log"]);
  expect(await readlink(logPath)).toBe(target);
  await runtime.stopContainer(id, 0);
});

test("the link goes with its container", async () => {
  const { id, logPath } = await start("short", "true");
  await ended(id);
  expect((await lstat(logPath)).isSymbolicLink()).toBe(true);
  await runtime.removeContainer(id);
  await expect(lstat(logPath)).rejects.toThrow("ENOENT");
});

test("a running container's memory, CPU time and own files are told", async () => {
  const { id } = await start("busy", "head -c 3000000 /dev/urandom > /file; sleep 1000");
  const stats = async () => (await runtime.containerStats()).find(({ containerID }) => containerID === id);
  const before = await stats();
  expect(before?.memory?.usageBytes).toBeGreaterThan(10_000);
  expect(before?.memory?.workingSetBytes).toBeLessThanOrEqual(before?.memory?.usageBytes ?? 0);
  expect(before?.cpu?.usageCoreNanoSeconds).toBeGreaterThan(1_000_000);
  await expect
    .poll(async () => (await stats())?.writableLayer?.usedBytes, { timeout: 40_000, interval: 500 })
    .toBeGreaterThan(2_900_000);
  expect((await stats())?.writableLayer?.inodesUsed).toBeGreaterThanOrEqual(2);

  const { pid, image } = await runtime.sandboxProcess(sandboxID);
  expect(pid).toBeGreaterThan(1);
  expect(image).toContain("pause");
  await runtime.stopContainer(id, 0);
  expect(await stats()).toBeUndefined();
});

test("a daemon with log options of its own runs containers, with the sizes that the agent was told", async () => {
  const logOptions = { mode: "non-blocking", "max-buffer-size": "4m", "max-size": "1g", compress: "true" };
  await docker.stop();
  await writeFile(join(docker.node.dir, "daemon.json"), JSON.stringify({ "log-opts": logOptions }));
  await docker.start();
  // Both were asked for at once.
  const started = await Promise.all([start("buffered-1", "echo one"), start("buffered-2", "echo two")]);
  await Promise.all(started.map(async ({ id }) => await ended(id)));
  expect(await Promise.all(started.map(async ({ id, logPath }) => await logs(logPath, id)))).toEqual([
    "one\n",
    "two\n",
  ]);
  const { HostConfig } = (await docker.api("GET", `/containers/${started[0]?.id}/json`)) as {
    HostConfig: { LogConfig: unknown };
  };
  expect(HostConfig.LogConfig).toEqual({
    Type: "json-file",
    Config: { ...logOptions, "max-size": String(maxSizeBytes), "max-file": String(maxFiles), compress: "false" },
  });
});
