import { mkdir, writeFile } from "node:fs/promises";
import { createServer, type Server, type Socket } from "node:net";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import type { Pod } from "../../agent/kube/types.ts";
import { systemClock } from "../../agent/lib/clock.ts";
import { hasCode } from "../../agent/lib/errors.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { createImageManager } from "../../agent/runtime/images.ts";
import { openPullRecords } from "../../agent/runtime/images-records.ts";
import type { PodSandboxConfig, Runtime } from "../../agent/runtime/port.ts";
import { customImage } from "../support/images/images.ts";
import { renderRegistryHosts } from "../support/node/containerd-config.ts";
import { createTestNode, type TestNode } from "../support/node/node.ts";
import { startRegistry } from "../support/node/registry.ts";
import { sandboxConfig } from "../support/runtime/configs.ts";
import { connectRuntime } from "../support/runtime/connect.ts";

let node: TestNode;
let runtime: Runtime;
let sandbox: PodSandboxConfig;
let server: Server;
const connections = new Set<Socket>();
const never = new AbortController().signal;

beforeAll(async () => {
  node = await createTestNode();
  const registry = await startRegistry(node, { name: "works.local" });
  await registry.push(await customImage({ name: "works.local/app:1" }));
  runtime = await connectRuntime(node);
  sandbox = await sandboxConfig(node.dir, node.cgroupRoot);
  const address = await startHanging(node.network.hostIP);
  await mkdir(join(node.paths.registryConfigDir, "hangs.local"), { recursive: true });
  await writeFile(join(node.paths.registryConfigDir, "hangs.local", "hosts.toml"), renderRegistryHosts(address));
});
afterAll(async () => {
  await runtime?.close();
  for (const socket of connections) socket.destroy();
  await new Promise((resolve) => (server === undefined ? resolve(undefined) : server.close(resolve)));
  await node?.destroy();
});

// Takes connections and never says anything.
async function startHanging(host: string): Promise<string> {
  server = createServer((socket) => {
    connections.add(socket);
    socket.on("error", () => {}).on("close", () => connections.delete(socket));
    socket.resume();
  });
  await new Promise<void>((resolve) => void server.listen(0, host, resolve));
  const address = server.address();
  if (address === null || typeof address === "string") throw new Error("no port");
  return `${host}:${address.port}`;
}

const podOf = (name: string): Pod => ({ metadata: { name, namespace: "ns", uid: name }, spec: { containers: [] } });

test("one pull at a time: others wait for a registry that hangs, until its pod goes", async () => {
  const records = await openPullRecords({
    dir: join(node.dir, "image_manager"),
    policy: { kind: "NeverVerifyPreloadedImages" },
    now: () => Date.now(),
    log: silentLogger,
  });
  const manager = createImageManager({
    images: runtime.images,
    clock: systemClock,
    log: silentLogger,
    onEvent: () => {},
    serializeImagePulls: true,
    registryPullQPS: 5,
    registryBurst: 10,
    records,
  });
  const gone = new AbortController();
  const ensure = async (pod: string, image: string, signal: AbortSignal) =>
    await manager.ensureImage(podOf(pod), { name: "c", image }, sandbox, [], signal);

  const hanging = ensure("a", "hangs.local/app:1", gone.signal).catch((err: unknown) => err);
  await expect.poll(() => connections.size, { timeout: 10_000 }).toBeGreaterThan(0);
  let isPulled = false;
  const next = ensure("b", "works.local/app:1", never).finally(() => {
    isPulled = true;
  });
  // What is there needs no turn.
  expect(await ensure("c", "registry.local/busybox:1", never)).toMatchObject({
    imageRef: expect.any(String) as string,
  });
  expect(isPulled).toBe(false);

  gone.abort();
  expect(hasCode(await hanging, "Canceled")).toBe(true);
  const { imageRef } = await next;
  expect(imageRef).toMatch(/^sha256:/);
  // The runtime was told, too: it does not wait for an answer any more.
  await expect.poll(() => connections.size, { timeout: 10_000 }).toBe(0);
  // The record is found by the name that the runtime gives the image later.
  const present = await runtime.images.imageStatus("works.local/app:1");
  expect(await records.mustPull("works.local/app:1", present?.id ?? "", async () => [])).toBe(false);
  expect(await records.mustPull("elsewhere.local/app:1", present?.id ?? "", async () => [])).toBe(true);
});
