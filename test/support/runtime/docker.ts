import { chmod, mkdir, statfs, writeFile } from "node:fs/promises";
import { request } from "node:http";
import { join } from "node:path";
import { Readable } from "node:stream";
import { setTimeout as sleep } from "node:timers/promises";
import { silentLogger } from "../../../agent/lib/log.ts";
import { type ConnectDockerOptions, connectDocker } from "../../../agent/runtime/docker/connect.ts";
import type { Runtime } from "../../../agent/runtime/port.ts";
import { directoryUsage } from "../../../agent/stats/directory-usage.ts";
import { pauseImageName, standardImages } from "../images/images.ts";
import type { Image } from "../images/oci.ts";
import { renderTar } from "../images/tar.ts";
import { logTail, type NodeProcess } from "../node/containerd.ts";
import { cniPluginDir, renderCNIConfig } from "../node/containerd-config.ts";
import { createTestNode, type TestNode } from "../node/node.ts";

/** Debian's dockerd in a test node of its own, with a containerd, root, state and socket of its own. */
export interface TestDocker {
  readonly node: TestNode;
  readonly socketPath: string;
  /** Where CNI of this node is configured; its plugins run in the node's network namespace. */
  readonly cni: ConnectDockerOptions["cni"];
  /** The registry part of names that this daemon pulls over plain http: for `startRegistry`. */
  readonly registryName: string;
  /** The running daemon's process. */
  readonly pid: number;
  /** A runtime on this daemon; close it. */
  connect(change?: Partial<ConnectDockerOptions>): Promise<Runtime>;
  /** Resolves when the daemon serves. */
  start(): Promise<void>;
  stop(signal?: NodeJS.Signals): Promise<void>;
  /** Loads images, as `docker load` does. */
  load(images: readonly Image[]): Promise<void>;
  /** One call to the daemon's API behind the runtime's back. Rejects unless it answers 2xx. */
  api(method: string, path: string, body?: unknown): Promise<unknown>;
  destroy(): Promise<void>;
  [Symbol.asyncDispose](): Promise<void>;
}

export interface TestDockerOptions {
  /** Containers outlive the daemon. Default true. */
  liveRestore?: boolean;
}

const startTimeoutMs = 30_000;
const stopTimeoutMs = 30_000;
const requestTimeoutMs = 120_000;
const overlayMagic = 0x794c7630;
const registryPort = 5000;
const plugins = ["bridge", "host-local", "portmap", "loopback", "firewall", "bandwidth", "tuning", "ptp"];

/** Starts dockerd in a new test node and loads the standard images; needs root and Debian's docker.io. */
export async function startTestDocker({ liveRestore = true }: TestDockerOptions = {}): Promise<TestDocker> {
  const node = await createTestNode({ containerd: false });
  try {
    const root = join(node.dir, "docker");
    const exec = join(node.dir, "x"); // short: sockets lie in it
    const socketPath = join(node.dir, "docker.sock");
    await mkdir(root, { recursive: true });
    const { type } = await statfs(root);
    const registryName = `${node.nodeIP}:${registryPort}`;
    const args = [
      ...["--data-root", root, "--exec-root", exec, "--pidfile", join(node.dir, "docker.pid")],
      ...["--config-file", join(node.dir, "daemon.json"), "--host", `unix://${socketPath}`],
      // Without CAP_SYS_RESOURCE nothing may lower an oom_score_adj.
      ...["--oom-score-adjust", "0", "--iptables=false", "--ip6tables=false", "--bridge=none"],
      // overlayfs does not stack on itself, which is what a test in a container gets.
      ...["--storage-driver", type === overlayMagic ? "vfs" : "overlay2"],
      ...["--insecure-registry", registryName, "--insecure-registry", `${node.network.hostIP}/32`],
      ...["--containerd", node.paths.containerdSocket],
      ...(liveRestore ? ["--live-restore"] : []),
    ];
    await writeFile(join(node.dir, "daemon.json"), "{}");
    const cni = await prepareCNI(node);
    await startPlainContainerd(node);
    let running: NodeProcess | undefined;
    const docker: TestDocker = {
      node,
      socketPath,
      cni,
      registryName,
      get pid() {
        if (running === undefined) throw new Error("dockerd is stopped");
        return running.pid;
      },
      connect: async (change = {}) =>
        await connectDocker({
          socketPath,
          nodeName: "node-1",
          pauseImage: pauseImageName,
          logs: { maxSizeBytes: 10 << 20, maxFiles: 5 },
          cni,
          measureTree: directoryUsage,
          requestTimeoutMs,
          log: silentLogger,
          ...change,
        }),
      start: async () => {
        running = await node.start("dockerd", args, { name: "dockerd" });
        await untilServing(docker, running);
      },
      stop: async (signal = "SIGTERM") => {
        await running?.stop(signal, stopTimeoutMs);
        running = undefined;
      },
      load: async (images) => {
        const answer = await call(socketPath, "POST", "/images/load?quiet=1", renderDockerArchive(images));
        if (answer.includes("error")) throw new Error(`loading images: ${answer}`);
      },
      api: async (method, path, body) => {
        const text = await call(socketPath, method, path, body === undefined ? undefined : JSON.stringify(body));
        return text === "" ? undefined : (JSON.parse(text) as unknown);
      },
      destroy: async () => await node.destroy(),
      [Symbol.asyncDispose]: async () => await node.destroy(),
    };
    const [images] = await Promise.all([standardImages(), docker.start()]);
    await docker.load(images);
    return docker;
  } catch (err) {
    await node.destroy();
    throw err;
  }
}

/** A containerd for dockerd alone, as distributions have it: it outlives dockerd, and so do the containers if they may. */
async function startPlainContainerd(node: TestNode): Promise<void> {
  const { containerdConfig, containerdRoot, containerdState, containerdSocket } = node.paths;
  await writeFile(
    containerdConfig,
    [
      "version = 2",
      `root = ${JSON.stringify(containerdRoot)}`,
      `state = ${JSON.stringify(containerdState)}`,
      "oom_score = 0",
      'disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.tracing.processor.v1.otlp"]',
      `[grpc]\n  address = ${JSON.stringify(containerdSocket)}`,
    ].join("\n"),
  );
  await node.start("containerd", ["--config", containerdConfig]);
}

/**
 * The node's bridge network. The tests' process is not in the node's network namespace, but plugins must be: each has a
 * script in its place that enters it.
 */
async function prepareCNI(node: TestNode): Promise<TestDocker["cni"]> {
  const { network, paths } = node;
  const binDir = join(node.dir, "cni-bin");
  for (const dir of [binDir, paths.cniConfigDir, paths.cniDataDir]) await mkdir(dir, { recursive: true });
  await writeFile(join(paths.cniConfigDir, "10-nodelet.conflist"), renderCNIConfig(network, paths));
  for (const plugin of plugins) {
    const script = `#!/bin/sh\nexec nsenter --net=${network.netnsPath} -- ${cniPluginDir}/${plugin}\n`;
    await writeFile(join(binDir, plugin), script);
    await chmod(join(binDir, plugin), 0o755);
  }
  return { confDir: paths.cniConfigDir, binDirs: [binDir], cacheDir: join(node.dir, "cni-cache") };
}

/** An archive as `docker save` writes it. */
function renderDockerArchive(images: readonly Image[]): Buffer {
  const blobPath = (digest: string) => `blobs/${digest.replace(":", "/")}`;
  const blobs = new Map(images.flatMap(({ config, layers }) => [config, ...layers].map((b) => [b.digest, b.bytes])));
  const manifest = images.map(({ name, config, layers }) => ({
    Config: blobPath(config.digest),
    RepoTags: [name],
    Layers: layers.map(({ digest }) => blobPath(digest)),
  }));
  return renderTar([
    { kind: "file", path: "manifest.json", content: JSON.stringify(manifest) },
    { kind: "dir", path: "blobs" },
    { kind: "dir", path: "blobs/sha256" },
    ...[...blobs].map(([digest, content]) => ({ kind: "file" as const, path: blobPath(digest), content })),
  ]);
}

async function untilServing(docker: Pick<TestDocker, "socketPath">, daemon: NodeProcess): Promise<void> {
  const deadline = performance.now() + startTimeoutMs;
  let ended = false;
  void daemon.exited.then(() => {
    ended = true;
  });
  for (;;) {
    const answer = await call(docker.socketPath, "GET", "/_ping").catch(() => "");
    if (answer === "OK") return;
    if (ended || performance.now() > deadline) {
      throw new Error(`dockerd ${ended ? "ended" : "does not serve"}:\n${await logTail(daemon.logPath)}`);
    }
    await sleep(30);
  }
}

/** The answer's text. */
async function call(socketPath: string, method: string, path: string, body?: string | Buffer): Promise<string> {
  const { promise, resolve, reject } = Promise.withResolvers<string>();
  const type = Buffer.isBuffer(body) ? "application/x-tar" : "application/json";
  const outgoing = request({ socketPath, method, path, headers: { "Content-Type": type } }, (response) => {
    const chunks: Buffer[] = [];
    response.on("data", (chunk: Buffer) => chunks.push(chunk));
    response.on("error", reject);
    response.on("end", () => {
      const text = Buffer.concat(chunks).toString();
      const { statusCode = 0 } = response;
      if (statusCode >= 200 && statusCode < 300) resolve(text);
      else reject(new Error(`${method} ${path}: ${statusCode} ${text}`));
    });
  });
  outgoing.on("error", reject);
  if (body === undefined) outgoing.end();
  else Readable.from([body]).pipe(outgoing);
  return await promise;
}
