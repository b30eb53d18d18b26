import { type ChildProcess, spawn } from "node:child_process";
import { once } from "node:events";
import { mkdir, open, readFile, statfs, writeFile } from "node:fs/promises";
import { createConnection } from "node:net";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { exec } from "../../../agent/lib/exec.ts";
import { standardImages } from "../images/images.ts";
import { type Image, renderArchive } from "../images/oci.ts";
import { type NodePaths, renderCNIConfig, renderContainerdConfig } from "./containerd-config.ts";
import type { NodeNetwork } from "./network.ts";

const startTimeoutMs = 20_000;
const stopTimeoutMs = 10_000;
const importTimeoutMs = 60_000;
const overlayMagic = 0x794c7630;

/** A process of the node; `stop` sends a signal and waits for the end. */
export interface NodeProcess {
  readonly pid: number;
  /** Resolves with the exit code (null if a signal ended it). Never rejects. */
  readonly exited: Promise<number | null>;
  readonly logPath: string;
  /** Idempotent. SIGKILL follows when it has not ended within `timeoutMs` (10 s). */
  stop(signal?: NodeJS.Signals, timeoutMs?: number): Promise<void>;
}

/** containerd inside one network namespace, with root, state, socket and CNI network of its own. */
export interface TestContainerd {
  readonly socket: string;
  readonly pid: number;
  /** Stops containerd (pods keep running) and starts it again; resolves when it serves. */
  restart(signal?: NodeJS.Signals): Promise<void>;
  stop(signal?: NodeJS.Signals): Promise<void>;
  start(): Promise<void>;
  /** Loads images into the namespace that CRI uses. */
  importImages(images: readonly Image[]): Promise<void>;
}

/** Writes the configuration, starts containerd and loads the standard images. */
export async function startContainerd(network: NodeNetwork, paths: NodePaths): Promise<TestContainerd> {
  for (const dir of [paths.containerdRoot, paths.containerdState, paths.cniConfigDir, paths.registryConfigDir]) {
    await mkdir(dir, { recursive: true, mode: 0o711 });
  }
  const { type } = await statfs(paths.containerdRoot);
  // overlayfs does not stack on itself, which is what a test in a container gets.
  const snapshotter = type === overlayMagic ? "native" : "overlayfs";
  await writeFile(paths.containerdConfig, renderContainerdConfig(paths, snapshotter));
  await writeFile(join(paths.cniConfigDir, "10-nodelet.conflist"), renderCNIConfig(network, paths));

  let running: NodeProcess | undefined;
  const containerd: TestContainerd = {
    socket: paths.containerdSocket,
    get pid() {
      if (running === undefined) throw new Error("containerd is stopped");
      return running.pid;
    },
    start: async () => {
      running = await startInNode(network, paths.logDir, "containerd", ["--config", paths.containerdConfig], {});
      await untilServing(running, paths.containerdSocket);
    },
    stop: async (signal = "SIGTERM") => {
      await running?.stop(signal);
      running = undefined;
    },
    restart: async (signal = "SIGTERM") => {
      await containerd.stop(signal);
      await containerd.start();
    },
    importImages: async (images) => {
      const archive = join(paths.containerdRoot, `import-${process.hrtime.bigint()}.tar`);
      await writeFile(archive, renderArchive(images));
      const args = ["--address", paths.containerdSocket, "--namespace", "k8s.io", "images", "import"];
      const result = await exec("ctr", [...args, "--snapshotter", snapshotter, archive], {
        timeoutMs: importTimeoutMs,
      });
      if (result.failure !== undefined) throw new Error(`loading images: ${result.message}`);
    },
  };
  const [images] = await Promise.all([standardImages(), containerd.start()]);
  await containerd.importImages(images);
  return containerd;
}

/**
 * Starts a program in the node's network namespace, in a process group of its own, its output appended to
 * LOGDIR/NAME.log. It does not end with the test: stop it, or destroy the node.
 */
export async function startInNode(
  network: NodeNetwork,
  logDir: string,
  file: string,
  args: readonly string[],
  options: { name?: string; env?: NodeJS.ProcessEnv; cwd?: string },
): Promise<NodeProcess> {
  const { name = file.replace(/^.*\//, ""), env, cwd } = options;
  await mkdir(logDir, { recursive: true, mode: 0o755 });
  const logPath = join(logDir, `${name}.log`);
  const log = await open(logPath, "a");
  let child: ChildProcess;
  try {
    // nsenter executes the program in its own place, so this PID is the program's.
    child = spawn("nsenter", [`--net=${network.netnsPath}`, "--", file, ...args], {
      stdio: ["ignore", log.fd, log.fd],
      detached: true,
      ...(env === undefined ? {} : { env }),
      ...(cwd === undefined ? {} : { cwd }),
    });
    await once(child, "spawn");
  } finally {
    await log.close();
  }
  const { pid } = child;
  if (pid === undefined) throw new Error(`${file} has no PID`);
  child.unref();
  const { promise: exited, resolve } = Promise.withResolvers<number | null>();
  child.once("exit", resolve);
  const hasExited = () => child.exitCode !== null || child.signalCode !== null;
  return {
    pid,
    exited,
    logPath,
    stop: async (signal = "SIGTERM", timeoutMs = stopTimeoutMs) => {
      if (hasExited()) return;
      child.ref();
      child.kill(signal);
      await Promise.race([exited, sleep(timeoutMs, undefined, { ref: false })]);
      if (!hasExited()) child.kill("SIGKILL");
      await exited;
    },
  };
}

/** The last lines of a log file, for error messages. */
export async function logTail(path: string, lines = 15): Promise<string> {
  const text = await readFile(path, "utf8").catch(() => "");
  return text.trimEnd().split("\n").slice(-lines).join("\n");
}

async function untilServing(containerd: NodeProcess, socket: string): Promise<void> {
  const deadline = performance.now() + startTimeoutMs;
  let ended = false;
  void containerd.exited.then(() => {
    ended = true;
  });
  while (!(await accepts(socket))) {
    if (ended || performance.now() > deadline) {
      throw new Error(`containerd ${ended ? "ended" : "does not serve"}:\n${await logTail(containerd.logPath)}`);
    }
    await sleep(20);
  }
}

async function accepts(socket: string): Promise<boolean> {
  return await new Promise((resolve) => {
    const connection = createConnection(socket);
    connection.once("connect", () => {
      connection.destroy();
      resolve(true);
    });
    connection.once("error", () => resolve(false));
  });
}
