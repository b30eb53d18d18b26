import { AgentError, hasCode, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { ContainerConfig, ContainerStatus, ImageService, LinuxResources, PodSandboxConfig } from "../port.ts";
import type { DockerClient } from "./client.ts";
import { containerCreateBody } from "./container-config.ts";
import { createNamed, inspectContainer, removeForced } from "./create.ts";
import type { ContextOfDaemon, LogConfig } from "./create-body.ts";
import { alreadyIsFine, ifThere, isUnchanged } from "./errors.ts";
import { writeCgroupFiles } from "./host-limits.ts";
import { containerStatus, isOfPod, isRunning } from "./inspect.ts";
import { cgroupWritesOf, readContainer, readSandbox, withCgroupWrites } from "./labels.ts";
import { makeMissingSources } from "./mounts.ts";
import { cgroupWrites, dockerResources } from "./resources.ts";
import { readSeccompProfile } from "./seccomp-profile.ts";
import type { WireInspect } from "./wire.ts";

/** Where a container's log is found in its pod's log directory. */
export interface ContainerLogs {
  readonly config: LogConfig;
  /** True if the daemon refused to create a container for `config`, which is another one from then on. */
  giveWay(err: unknown): boolean;
  /** Makes the log of a container that was started visible at its pod's log path. Idempotent. */
  link(container: WireInspect): Promise<void>;
  /** Takes that away again; idempotent. @param logPath as the container's label has it */
  unlink(logPath: string): Promise<void>;
}

export interface ContainersOptions {
  client: DockerClient;
  context: ContextOfDaemon;
  images: Pick<ImageService, "imageStatus">;
  logs: ContainerLogs;
  /** Deadline of an ordinary call in ms. */
  requestTimeoutMs: number;
  log: Logger;
}

// IDs of some 64 bytes. When they are forgotten, links that are there are looked at once more.
const linkedMax = 16_384;

// Image IDs with the digests that registries know them by; a node has some dozens.
const imageRefsMax = 1_024;

/** App containers with Docker. */
export class Containers {
  readonly #options: ContainersOptions;
  readonly #imageRefs = new Map<string, string>();
  /** Containers whose logs were linked, or are about to be: none of these rejects. */
  readonly #links = new Map<string, Promise<void>>();

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
    if (!isOfPod(sandbox, "sandbox")) throw new AgentError("NotFound", `${what}: ${sandboxID} is no pod's sandbox`);
    if (!isRunning(sandbox.State)) throw new AgentError("Conflict", `${what}: sandbox ${sandboxID} does not run`);
    const { runtimeHandler } = readSandbox(sandbox.Config?.Labels ?? {});
    const writes = cgroupWrites(what, config.resources, context.daemon.cgroupVersion);
    const make = async () => {
      const inputs = { logConfig: logs.config, seccompProfile, runtimeHandler };
      const body = containerCreateBody(sandboxID, config, sandboxConfig, context, inputs);
      return await createNamed(client, what, { ...body, Labels: withCgroupWrites(body.Labels ?? {}, writes) });
    };
    try {
      return await make();
    } catch (err) {
      if (!logs.giveWay(err)) throw err;
      return await make();
    }
  }

  async start(id: string): Promise<void> {
    const { client } = this.#options;
    const what = `start container ${id}`;
    try {
      await client.call(what, async (abortSignal) => {
        await client.docker.getContainer(id).start({ abortSignal });
      });
    } catch (err) {
      if (isUnchanged(err)) return;
      // Why a program cannot be run is no fault of the request, for which Docker takes it.
      throw hasCode(err, "Invalid") ? new AgentError("Internal", err.message, { cause: err }) : err;
    }
    const inspect = await ifThere(inspectContainer(client, what, id));
    if (inspect !== undefined) await Promise.all([this.#limit(what, inspect), this.#linkLog(inspect)]);
  }

  /** The stop signal, then SIGKILL after the grace, both by the daemon, which goes on if the agent ends meanwhile. */
  async stop(id: string, graceSeconds: number): Promise<void> {
    const { client, requestTimeoutMs } = this.#options;
    const stop = client.call(
      `stop container ${id}`,
      async (abortSignal) => {
        await client.docker.getContainer(id).stop({ t: graceSeconds, abortSignal });
      },
      { timeoutMs: requestTimeoutMs + graceSeconds * 1000 },
    );
    await alreadyIsFine(stop);
  }

  async remove(id: string): Promise<void> {
    const { client, logs } = this.#options;
    const inspect = await ifThere(inspectContainer(client, `look at container ${id}`, id));
    this.#links.delete(id);
    if (inspect === undefined) return;
    await removeForced(client, `remove container ${id}`, id);
    const { logPath } = readContainer(inspect.Config?.Labels ?? {});
    if (logPath !== "") await logs.unlink(logPath);
  }

  /** Rejects with NotFound, also for what is no pod's container. */
  async status(id: string): Promise<ContainerStatus> {
    const { client } = this.#options;
    const what = `status of container ${id}`;
    const inspect = await inspectContainer(client, what, id);
    if (!isOfPod(inspect, "container")) throw new AgentError("NotFound", `${what}: the container is no pod's`);
    const status = containerStatus(inspect, await this.#imageRef(inspect.Image ?? ""));
    // The agent that started it may have ended before it made the link. Who hears of its end may look for its last words there.
    if (status.startedAtMs > 0 && status.reason !== "ContainerCannotRun") await this.#linkLog(inspect);
    return status;
  }

  /** Changes what Docker has words for by Docker, and the rest in the container's cgroup. */
  async update(id: string, resources: LinuxResources): Promise<void> {
    const { client, context } = this.#options;
    const { cgroupVersion } = context.daemon;
    const what = `update resources of container ${id}`;
    const change = dockerResources(what, resources);
    const writes = cgroupWrites(what, resources, cgroupVersion);
    if (Object.keys(change).length > 0) {
      await client.call(what, async (abortSignal) => {
        await client.docker.getContainer(id).update({ ...change, abortSignal });
      });
    }
    if (writes.length === 0) return;
    const { State } = await inspectContainer(client, what, id);
    if (isRunning(State)) await writeCgroupFiles(writes, { what, pid: State?.Pid ?? 0, version: cgroupVersion });
  }

  async reopenLog(id: string): Promise<void> {
    await this.#options.logs.link(await inspectContainer(this.#options.client, `look at container ${id}`, id));
  }

  /** Sets the limits that Docker has no word for. A container that cannot have them must not run. */
  async #limit(what: string, { Id, Config, State }: WireInspect): Promise<void> {
    const writes = cgroupWritesOf(Config?.Labels ?? {});
    if (writes.length === 0 || !isRunning(State)) return;
    const { cgroupVersion } = this.#options.context.daemon;
    try {
      await writeCgroupFiles(writes, { what, pid: State?.Pid ?? 0, version: cgroupVersion });
    } catch (err) {
      await this.stop(Id, 0);
      throw err;
    }
  }

  /** Once for each container. Never rejects: the container runs and its log is kept; only the path that people know would lack it. */
  async #linkLog(inspect: WireInspect): Promise<void> {
    const { logs, log } = this.#options;
    if (this.#links.size > linkedMax) this.#links.clear();
    let link = this.#links.get(inspect.Id);
    if (link === undefined) {
      link = logs.link(inspect).catch((err: unknown) => {
        const message = "a container's log cannot be linked into its pod's directory";
        log.warn({ containerID: inspect.Id, err: messageOf(err) }, message);
      });
      this.#links.set(inspect.Id, link);
    }
    await link;
  }

  /** The image by its digest in a registry, as `imageID` of a container's status shows it; its ID if it has none. */
  async #imageRef(id: string): Promise<string> {
    const known = this.#imageRefs.get(id);
    if (known !== undefined || id === "") return known ?? id;
    const image = await this.#options.images.imageStatus(id).catch(() => undefined);
    const [digest] = image?.repoDigests ?? [];
    // An image that was loaded from a file may get its digest later, by a pull.
    if (digest === undefined) return id;
    if (this.#imageRefs.size >= imageRefsMax) this.#imageRefs.clear();
    this.#imageRefs.set(id, digest);
    return digest;
  }
}
