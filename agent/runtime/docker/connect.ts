import { createCNI } from "../../../cni/index.ts";
import { type Clock, systemClock } from "../../lib/clock.ts";
import { messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { ImageCredential } from "../images-auth.ts";
import type { Runtime } from "../port.ts";
import { type DockerClient, openDocker } from "./client.ts";
import { DockerExecs } from "./exec.ts";
import { createDockerDisk, type MeasureTree } from "./fs-usage.ts";
import { readKernelFacts, reportOOMScoreAdjMin } from "./host-limits.ts";
import { createDockerImages } from "./images.ts";
import { createLogDriver, type DockerLogOptions, linkLog, unlinkLog } from "./logs.ts";
import { createCNINetwork } from "./network.ts";
import { createPauseImage } from "./pause-image.ts";
import { DockerRuntime } from "./runtime.ts";
import { createDockerStats } from "./stats.ts";
import { createSandboxDialers } from "./streaming/dialers.ts";
import { startDockerStreaming } from "./streaming/server.ts";

export interface ConnectDockerOptions {
  /** Absolute path of the daemon's unix socket. */
  socketPath: string;
  /** Containers of other nodes on the same daemon are left alone. */
  nodeName: string;
  /** Image of the sandboxes' pause containers; pulled when it is not there. */
  pauseImage: string;
  /** What the node has for that; without any it is pulled anonymously. Never rejects. */
  pauseImageCredentials?(): Promise<readonly ImageCredential[]>;
  /** How Docker is to rotate the containers' logs. */
  logs: DockerLogOptions;
  cni: CNIDirectories;
  /** How to measure what a directory takes: agent/stats' way. */
  measureTree: MeasureTree;
  /** Deadline of an ordinary call in ms: `runtimeRequestTimeout`, 2 min by default. */
  requestTimeoutMs: number;
  /** A session of exec, attach or port-forward ends when nothing was said for this many ms. */
  streamingIdleMs?: number;
  log: Logger;
  clock?: Clock;
}

/** Where CNI finds what it needs. */
export interface CNIDirectories {
  /** `/etc/cni/net.d` */
  confDir: string;
  /** `/opt/cni/bin` and the like; searched in this order. */
  binDirs: readonly string[];
  /** `/var/lib/cni/cache` */
  cacheDir: string;
}

/**
 * Connects to a Docker daemon and makes a pod runtime of it.
 *
 * @returns the runtime; `close` ends its sessions, its commands in containers, and its connections
 * Rejects with Unavailable if nobody answers, Invalid if what answers cannot run pods (too old, rootless, not Linux).
 */
export async function connectDocker(options: ConnectDockerOptions): Promise<Runtime> {
  const { socketPath, nodeName, pauseImage, requestTimeoutMs, log, clock = systemClock } = options;
  const client = await openDocker({ socketPath, requestTimeoutMs, clock });
  try {
    report(client, log);
    const kernel = await readKernelFacts();
    reportOOMScoreAdjMin(kernel, log);
    const context = {
      get daemon() {
        return client.daemon;
      },
      nodeName,
      ...kernel,
    };
    const cni = createCNI({ ...options.cni, log, clock });
    const disk = createDockerDisk(client, { measureTree: options.measureTree, clock, log });
    const execs = new DockerExecs(client, clock);
    const streaming = await startDockerStreaming({
      ...{ client, execs, dialers: createSandboxDialers(client), clock },
      ...(options.streamingIdleMs === undefined ? {} : { idleMs: options.streamingIdleMs }),
    });
    const stop = new AbortController();
    const failed = (what: string) => (err: unknown) => log.error({ err: messageOf(err) }, what);
    const close = async () => {
      stop.abort();
      disk.close();
      await Promise.all([
        cni.close().catch(failed("ending CNI failed")),
        streaming.close().catch(failed("ending the streaming server failed")),
        execs.close(),
      ]);
    };
    const images = createDockerImages(client, { pauseImage, disk, clock });
    const credentials = options.pauseImageCredentials ?? (async () => []);
    const runtime = new DockerRuntime({
      client,
      context,
      network: createCNINetwork(cni),
      images,
      logs: Object.assign(createLogDriver(options.logs, log), { link: linkLog, unlink: unlinkLog }),
      stats: createDockerStats(client, { disk, nodeName, clock }),
      streaming,
      execs,
      pauseImage: createPauseImage({ image: pauseImage, images, credentials, clock, log }),
      requestTimeoutMs,
      clock,
      log,
      close,
    });
    const followed = cni.watch(stop.signal, () => runtime.networkChanged());
    void followed.catch(failed("following the CNI configuration failed"));
    return runtime;
  } catch (err) {
    client.close();
    throw err;
  }
}

/** Says what the daemon is, and warns of what will hurt. */
function report({ daemon }: DockerClient, log: Logger): void {
  const { version, apiVersion, cgroupDriver, cgroupVersion, storageDriver, liveRestore } = daemon;
  log.info({ version, apiVersion, cgroupDriver, cgroupVersion, storageDriver, liveRestore }, "using the Docker daemon");
  if (storageDriver === "vfs") {
    log.warn("Docker's storage driver vfs copies each image for each container: starts are slow and disks fill up");
  }
  if (!liveRestore) log.info("Docker's live-restore is off: a restart of the daemon ends all containers");
}
