import { mkdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import type { Image } from "../images/oci.ts";
import { logTail, type NodeProcess } from "./containerd.ts";
import { renderRegistryHosts } from "./containerd-config.ts";
import type { TestNode } from "./node.ts";

/** Who may pull and push when the registry asks for credentials. */
export const registryUser = { username: "puller", password: "pull-secret" };

// The registry takes bcrypt only, which nothing on the machine makes: this is the hash of the password above.
const htpasswd = "puller:$2b$05$abcdefghijklmnopqrstuuiuhH7Ikupt0NZBlrLOsxuBkm7D98a7C\n";

const port = 5000;
const startTimeoutMs = 10_000;

/** A registry inside a test node, plain http. */
export interface TestRegistry {
  /** Pushes an image under its own name, whose registry part must be `name` of {@link startRegistry}. */
  push(image: Image): Promise<void>;
  /** Stops it, as an outage would. What was pushed stays. */
  stop(): Promise<void>;
  start(): Promise<void>;
}

export interface TestRegistryOptions {
  /** The registry part of the image names that this node's containerd finds here. Default "registry.local". */
  name?: string;
  /** Ask for {@link registryUser}'s credentials. */
  withCredentials?: boolean;
}

/** Starts Debian's docker-registry in the node and tells the node's containerd where it is. */
export async function startRegistry(node: TestNode, options: TestRegistryOptions = {}): Promise<TestRegistry> {
  const { name = "registry.local", withCredentials = false } = options;
  const dir = join(node.dir, "registry");
  const address = `${node.nodeIP}:${port}`;
  await mkdir(dir, { recursive: true });
  await writeFile(join(dir, "htpasswd"), htpasswd);
  await writeFile(join(dir, "config.yml"), renderConfig(dir, address, withCredentials));
  // containerd reads these at each pull.
  await mkdir(join(node.paths.registryConfigDir, name), { recursive: true });
  await writeFile(join(node.paths.registryConfigDir, name, "hosts.toml"), renderRegistryHosts(address));

  const headers: Record<string, string> = withCredentials
    ? { authorization: `Basic ${btoa(`${registryUser.username}:${registryUser.password}`)}` }
    : {};
  let running: NodeProcess | undefined;
  const registry: TestRegistry = {
    start: async () => {
      running ??= await node.start("docker-registry", ["serve", join(dir, "config.yml")], { name: "registry" });
      await untilAnswers(`http://${address}/v2/`, headers, running);
    },
    stop: async () => {
      await running?.stop();
      running = undefined;
    },
    push: async (image) => await pushImage(image, name, `http://${address}`, headers),
  };
  await registry.start();
  return registry;
}

function renderConfig(dir: string, address: string, withCredentials: boolean): string {
  const auth = { htpasswd: { realm: "test", path: join(dir, "htpasswd") } };
  return JSON.stringify({
    version: "0.1",
    log: { level: "warn" },
    storage: { filesystem: { rootdirectory: join(dir, "data") } },
    http: { addr: address },
    ...(withCredentials ? { auth } : {}),
  });
}

async function pushImage(image: Image, registry: string, url: string, headers: Record<string, string>): Promise<void> {
  const [, repository, tag] = /^[^/]+\/(.+):([^:/]+)$/.exec(image.name) ?? [];
  if (repository === undefined || !image.name.startsWith(`${registry}/`)) {
    throw new Error(`cannot push ${image.name} to ${registry}: wanted ${registry}/REPOSITORY:TAG`);
  }
  for (const { digest, bytes } of [image.config, ...image.layers]) {
    const begun = await request(`${url}/v2/${repository}/blobs/uploads/`, { method: "POST", headers });
    const location = new URL(begun.headers.get("location") ?? "", url);
    location.searchParams.set("digest", digest);
    const type = { "content-type": "application/octet-stream" };
    await request(location.href, { method: "PUT", headers: { ...headers, ...type }, body: new Uint8Array(bytes) });
  }
  const { mediaType, bytes } = image.manifest;
  await request(`${url}/v2/${repository}/manifests/${tag}`, {
    method: "PUT",
    headers: { ...headers, "content-type": mediaType },
    body: new Uint8Array(bytes),
  });
}

async function request(url: string, init: RequestInit): Promise<Response> {
  const response = await fetch(url, { ...init, signal: AbortSignal.timeout(startTimeoutMs) });
  const text = await response.text();
  if (!response.ok) throw new Error(`${init.method} ${url}: ${response.status} ${text}`);
  return response;
}

async function untilAnswers(url: string, headers: Record<string, string>, registry: NodeProcess): Promise<void> {
  const deadline = performance.now() + startTimeoutMs;
  for (;;) {
    const answer = await fetch(url, { headers, signal: AbortSignal.timeout(1_000) }).catch(() => undefined);
    await answer?.text();
    if (answer?.ok === true) return;
    if (performance.now() > deadline) {
      throw new Error(`docker-registry does not answer at ${url}:\n${await logTail(registry.logPath)}`);
    }
    await sleep(20);
  }
}
