import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, ifThere, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { ContainerConfig, ContainerStatus, ImageService, LinuxResources, PodSandboxConfig } from "../port.ts";
import type { DockerClient } from "./client.ts";
import { containerCreateBody } from "./container-config.ts";
import { createNamed, inspectContainer, removeForced } from "./create.ts";
import type { ContextOfDaemon, LogConfig } from "./create-body.ts";
import { isUnchanged } from "./errors.ts";
import { writeCgroupFiles } from "./host-limits.ts";
import { containerStatus, isRunning } from "./inspect.ts";
import { cgroupWritesOf, readSandbox, withCgroupWrites } from "./labels.ts";
import { makeMissingSources } from "./mounts.ts";
import { kindOfInspected } from "./ownership.ts";
import { cgroupWrites, dockerResources } from "./resources.ts";
import { readSeccompProfile } from "./seccomp-profile.ts";
import { stopContainer } from "./stop.ts";
import type { WireInspect } from "./wire.ts";

/** Where a container's log is found in its pod's log directory. */
export interface ContainerLogs {
  readonly config: LogConfig;
  /** True if the daemon refused to create a container for `config`, which is another one from then on. */
  giveWay(err: unknown): boolean;
  /** Makes the log of a container that was started visible at its pod's log path. Idempotent. */
  link(container: WireInspect): Promise<void>;
  /** Takes that away again; idempotent. */
  unlink(container: WireInspect): Promise<void>;
}

export interface ContainersOptions {
  client: DockerClient;
  context: ContextOfDaemon;
  images: Pick<ImageService, "imageStatus">;
  logs: ContainerLogs;
  /** Deadline of an ordinary call in ms. */
  requestTimeoutMs: number;
  clock: Clock;
  log: Logger;
}

// IDs of some 64 bytes. When they are forgotten, links and limits that are there are looked at once more.
const linkedMax = 16_384;

// Image IDs with the digests that registries know them by; a node has some dozens.
const imageRefsMax = 1_024;

// Images that were loaded or built have no digest; without this each look at one of their containers would ask again.
const noDigestMs = 10_000;

// 128 + SIGKILL: what a shell says of a program that was killed, and Docker of a container.
const killedExitCode = 137;
// Containers that somebody else removes are never forgotten otherwise.
const outOfMemoryMax = 1_000;

// The daemon tells of the end of memory right after that of the container, or right before: so long it may take when busy.
const killNewsMs = 500;
// Of a container that was killed longer ago all has been told.
const killNewsAgeMsMax = 10_000;

/** App containers with Docker. */
export class Containers {
  readonly #options: ContainersOptions;
  /** What images are called, and until when (monotonic ms) nobody asks again. */
  readonly #imageRefs = new Map<string, { ref: string; untilMs: number }>();
  /** Containers whose logs were linked, or are about to be: none of these rejects. */
  readonly #links = new Map<string, Promise<void>>();
  /** IDs of those whose logs could not be linked yet. */
  readonly #unlinked = new Set<string>();
  /** Containers whose limits are set, with the instant of the start since which they are. */
  readonly #limited = new Map<string, string>();
  /** Containers made here that were not removed yet. */
  readonly #created = new Set<string>();
  /** Containers that the kernel ended a process of for want of memory, as events told; the oldest first. */
  readonly #outOfMemory = new Set<string>();
  /** Containers that were killed by somebody else, the oldest first: `told` resolves when the reason is known, or will not be. */
  readonly #killNews = new Map<string, { told: Promise<void>; tell: () => void }>();
  /** Containers that were told to end here and were not removed yet. */
  readonly #stopped = new Set<string>();

  constructor(options: ContainersOptions) {
    this.#options = options;
  }

  /** Rejects with NotFound if there is no such sandbox, Conflict if it does not run. */
  async create(sandboxID: string, config: ContainerConfig, sandboxConfig: PodSandboxConfig): Promise<string> {
    const { client, context, logs } = this.#options;
    const pod = `${sandboxConfig.namespace}/${sandboxConfig.name}`;
    const what = `create container ${config.name} of ${pod}`;
    const [sandbox, seccompProfile] = await Promise.all([
      inspectContainer(client, what, sandboxID),
      readSeccompProfile(what, config.securityContext.seccomp),
      makeMissingSources(what, config.mounts),
    ]);
    if (kindOfInspected(sandbox, context.nodeName) !== "sandbox") {
      throw new AgentError("NotFound", `${what}: ${sandboxID} is no sandbox of a pod of this node`);
    }
    if (!isRunning(sandbox.State)) throw new AgentError("Conflict", `${what}: sandbox ${sandboxID} does not run`);
    const { runtimeHandler } = readSandbox(sandbox.Config?.Labels ?? {});
    const writes = cgroupWrites(what, config.resources, context.daemon.cgroupVersion);
    const make = async () => {
      const inputs = { logConfig: logs.config, seccompProfile, runtimeHandler };
      const body = containerCreateBody(sandboxID, config, sandboxConfig, context, inputs);
      return await createNamed(client, what, { ...body, Labels: withCgroupWrites(body.Labels ?? {}, writes) });
    };
    const id = await make().catch(async (err: unknown) => {
      if (!logs.giveWay(err)) throw err;
      return await make();
    });
    if (this.#created.size > linkedMax) this.#created.clear();
    this.#created.add(id);
    return id;
  }

  async start(id: string): Promise<void> {
    const { client } = this.#options;
    const what = `start container ${id}`;
    // What was made here needs no look whose it is.
    if (!this.#created.has(id)) await this.#look(what, id);
    try {
      await client.call(what, async (abortSignal) => {
        await client.docker.getContainer(id).start({ abortSignal });
      });
    } catch (err) {
      if (!isUnchanged(err)) {
        // Why a program cannot be run is no fault of the request, for which Docker takes it.
        throw hasCode(err, "Invalid") ? new AgentError("Internal", err.message, { cause: err }) : err;
      }
    }
    const inspect = await ifThere(this.#look(what, id));
    if (inspect !== undefined) await Promise.all([this.#limit(what, inspect), this.#linkLog(inspect)]);
  }

  /** The stop signal, then SIGKILL after the grace. What is no pod's container is left alone, as what is not there. */
  async stop(id: string, graceSeconds: number): Promise<void> {
    const { client, requestTimeoutMs } = this.#options;
    const what = `stop container ${id}`;
    const inspect = await ifThere(this.#look(what, id));
    if (inspect === undefined || !isRunning(inspect.State)) return;
    if (this.#stopped.size > linkedMax) this.#stopped.clear();
    this.#stopped.add(id);
    await stopContainer(client, inspect, { what, graceSeconds, requestTimeoutMs });
  }

  /** What is no pod's container is left alone, as what is not there. */
  async remove(id: string): Promise<void> {
    const { client, logs } = this.#options;
    const inspect = await ifThere(this.#look(`remove container ${id}`, id));
    this.#outOfMemory.delete(id);
    this.#killNews.delete(id);
    this.#stopped.delete(id);
    this.#links.delete(id);
    this.#unlinked.delete(id);
    this.#limited.delete(id);
    this.#created.delete(id);
    if (inspect === undefined) return;
    await removeForced(client, `remove container ${id}`, id);
    await logs.unlink(inspect);
  }

  /** The daemon has told that the kernel ended a process of it for want of memory. */
  ranOutOfMemory(id: string): void {
    this.#outOfMemory.add(id);
    forgetOldest(this.#outOfMemory);
    this.#killNews.get(id)?.tell();
  }

  /** Waits a moment for the news that it was memory which a container was killed for. */
  async #hearOfKill(id: string, finishedAtMs: number): Promise<void> {
    const { clock } = this.#options;
    if (this.#outOfMemory.has(id) || this.#stopped.has(id)) return;
    if (clock.now() - finishedAtMs > killNewsAgeMsMax) return;
    let news = this.#killNews.get(id);
    if (news === undefined) {
      const { promise: told, resolve } = Promise.withResolvers<void>();
      const timer = clock.after(killNewsMs, resolve);
      const tell = () => {
        timer.cancel();
        resolve();
      };
      news = { told, tell };
      this.#killNews.set(id, news);
      forgetOldest(this.#killNews);
    }
    await news.told;
  }

  /** Rejects with NotFound, also for what is no pod's container. */
  async status(id: string): Promise<ContainerStatus> {
    const what = `status of container ${id}`;
    const inspect = await this.#look(what, id);
    const told = containerStatus(inspect, await this.#imageRef(inspect.Image ?? ""));
    const isKilled = told.reason === "Error" && told.exitCode === killedExitCode;
    if (isKilled) await this.#hearOfKill(id, told.finishedAtMs);
    // The daemon itself forgets it if it heard of the end before.
    const status = isKilled && this.#outOfMemory.has(id) ? { ...told, reason: "OOMKilled" } : told;
    // The agent that started it may have ended before it did the rest. Who hears of its end may look for its last words by the link.
    if (status.startedAtMs > 0 && status.reason !== "ContainerCannotRun") {
      await Promise.all([this.#limit(what, inspect, { isOnlyUnset: true }), this.#linkLog(inspect)]);
    }
    return status;
  }

  /** Changes what Docker has words for by Docker, and the rest in the container's cgroup. */
  async update(id: string, resources: LinuxResources): Promise<void> {
    const { client, context } = this.#options;
    const { cgroupVersion } = context.daemon;
    const what = `update resources of container ${id}`;
    const { State } = await this.#look(what, id);
    const change = dockerResources(what, resources);
    const writes = cgroupWrites(what, resources, cgroupVersion);
    if (Object.keys(change).length > 0) {
      await client.call(what, async (abortSignal) => {
        await client.docker.getContainer(id).update({ ...change, abortSignal });
      });
    }
    if (isRunning(State)) await writeCgroupFiles(writes, { what, pid: State?.Pid ?? 0, version: cgroupVersion });
  }

  async reopenLog(id: string): Promise<void> {
    await this.#options.logs.link(await this.#look(`look at container ${id}`, id));
  }

  /** Rejects with NotFound, also for what is no pod's container: nothing here touches that. */
  async #look(what: string, id: string): Promise<WireInspect> {
    const { client, context } = this.#options;
    const inspect = await inspectContainer(client, what, id);
    if (kindOfInspected(inspect, context.nodeName) !== "container") {
      throw new AgentError("NotFound", `${what}: it is no container of a pod of this node`);
    }
    return inspect;
  }

  /**
   * Sets the limits that Docker has no word for, once for each run. A container that cannot have them must not run.
   * `isOnlyUnset`: what was set already, and perhaps changed since by another agent, stays.
   */
  async #limit(
    what: string,
    { Id, Config, State }: WireInspect,
    { isOnlyUnset = false }: { isOnlyUnset?: boolean } = {},
  ): Promise<void> {
    const writes = cgroupWritesOf(Config?.Labels ?? {});
    if (writes.length === 0 || !isRunning(State)) return;
    const startedAt = State?.StartedAt ?? "";
    if (this.#limited.get(Id) === startedAt) return;
    const { cgroupVersion } = this.#options.context.daemon;
    try {
      await writeCgroupFiles(writes, { what, pid: State?.Pid ?? 0, version: cgroupVersion, isOnlyUnset });
    } catch (err) {
      await this.stop(Id, 0);
      throw err;
    }
    if (this.#limited.size > linkedMax) this.#limited.clear();
    this.#limited.set(Id, startedAt);
  }

  /** Once for each container. Never rejects: the container runs and its log is kept; only the path that people know would lack it. */
  async #linkLog(inspect: WireInspect): Promise<void> {
    if (this.#links.size > linkedMax) this.#links.clear();
    let link = this.#links.get(inspect.Id);
    if (link === undefined) {
      link = this.#tryLink(inspect);
      this.#links.set(inspect.Id, link);
    }
    await link;
  }

  /** Never rejects. What failed is tried again with the next look at the container, and told of once. */
  async #tryLink(inspect: WireInspect): Promise<void> {
    const { logs, log } = this.#options;
    try {
      await logs.link(inspect);
      this.#unlinked.delete(inspect.Id);
    } catch (err) {
      this.#links.delete(inspect.Id);
      if (this.#unlinked.has(inspect.Id)) return;
      if (this.#unlinked.size > linkedMax) this.#unlinked.clear();
      this.#unlinked.add(inspect.Id);
      const message = "a container's log cannot be linked into its pod's directory";
      log.warn({ containerID: inspect.Id, err: messageOf(err) }, message);
    }
  }

  /** The image by its digest in a registry, as `imageID` of a container's status shows it; its ID if it has none. */
  async #imageRef(id: string): Promise<string> {
    const { images, clock } = this.#options;
    const known = this.#imageRefs.get(id);
    const nowMs = clock.monotonic();
    if (id === "" || (known !== undefined && nowMs < known.untilMs)) return known?.ref ?? id;
    try {
      const [digest] = (await images.imageStatus(id))?.repoDigests ?? [];
      if (this.#imageRefs.size >= imageRefsMax) this.#imageRefs.clear();
      // An image that was loaded from a file may get its digest later, by a pull.
      const untilMs = digest === undefined ? nowMs + noDigestMs : Infinity;
      this.#imageRefs.set(id, { ref: digest ?? id, untilMs });
      return digest ?? id;
    } catch {
      return known?.ref ?? id;
    }
  }
}

function forgetOldest(ids: Pick<Map<string, unknown>, "size" | "keys" | "delete">): void {
  for (const oldest of ids.keys()) {
    if (ids.size <= outOfMemoryMax) return;
    ids.delete(oldest);
  }
}
