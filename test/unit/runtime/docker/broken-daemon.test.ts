import { mkdtemp, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, onTestFinished, test } from "vitest";
import { silentLogger } from "../../../../agent/lib/log.ts";
import { connectDocker } from "../../../../agent/runtime/docker/connect.ts";
import type { Runtime } from "../../../../agent/runtime/port.ts";
import { containerConfig, sandboxConfig } from "../../../support/runtime/configs.ts";
import { answer, startFakeDaemon } from "./fake-daemon.ts";

/** A runtime on a daemon that answers everything but who it is with 500. */
async function withBrokenDaemon() {
  const dir = await mkdtemp(join(tmpdir(), "nodelet-broken-"));
  const daemon = await startFakeDaemon((_request, response) =>
    answer(response, 500, { message: "database is locked" }),
  );
  const runtime = await connectDocker({
    nodeName: "node-1",
    socketPath: daemon.socketPath,
    pauseImage: "pause:1",
    logs: { maxSizeBytes: 1_000, maxFiles: 2 },
    cni: { confDir: join(dir, "net.d"), binDirs: [dir], cacheDir: join(dir, "cache") },
    measureTree: async () => ({ bytes: 0, inodes: 0 }),
    requestTimeoutMs: 5_000,
    log: silentLogger,
  });
  onTestFinished(async () => {
    await runtime.close();
    await daemon[Symbol.asyncDispose]();
    await rm(dir, { recursive: true, force: true });
  });
  return { dir, runtime };
}

const calls: Record<string, (runtime: Runtime, dir: string) => Promise<unknown>> = {
  list: (runtime) => runtime.list(),
  podSnapshot: (runtime) => runtime.podSnapshot("u"),
  runPodSandbox: async (runtime, dir) => await runtime.runPodSandbox(await sandboxConfig(dir, "/kubepods"), ""),
  stopPodSandbox: (runtime) => runtime.stopPodSandbox("s"),
  removePodSandbox: (runtime) => runtime.removePodSandbox("s"),
  podSandboxStatus: (runtime) => runtime.podSandboxStatus("s"),
  createContainer: async (runtime, dir) => {
    const sandbox = await sandboxConfig(dir, "/kubepods");
    return await runtime.createContainer("s", await containerConfig(sandbox, "app", "app:1", []), sandbox);
  },
  startContainer: (runtime) => runtime.startContainer("c"),
  stopContainer: (runtime) => runtime.stopContainer("c", 30),
  removeContainer: (runtime) => runtime.removeContainer("c"),
  containerStatus: (runtime) => runtime.containerStatus("c"),
  updateContainerResources: (runtime) => runtime.updateContainerResources("c", { cpuShares: 2, oomScoreAdj: 0 }),
  reopenContainerLog: (runtime) => runtime.reopenContainerLog("c"),
  execSync: (runtime) => runtime.execSync("c", ["true"], 1),
  containerStats: (runtime) => runtime.containerStats(),
  sandboxProcess: (runtime) => runtime.sandboxProcess("s"),
  imageStatus: (runtime) => runtime.images.imageStatus("app:1"),
  listImages: (runtime) => runtime.images.listImages(),
  removeImage: (runtime) => runtime.images.removeImage("app:1"),
};

test("each call on a daemon that answers 500 says what was tried and what the daemon said", async () => {
  const { dir, runtime } = await withBrokenDaemon();
  for (const [name, call] of Object.entries(calls)) {
    const outcome = await call(runtime, dir).catch((err: unknown) => err);
    const message = expect.stringMatching(/^\S.*: .*database is locked$/) as unknown;
    expect.soft(outcome, name).toMatchObject({ name: "AgentError", code: "Internal", message });
  }
});
