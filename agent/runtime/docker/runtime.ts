import { release } from "node:os";
import type { Pod } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, ifThere, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type {
  ContainerStats,
  ContainerStatus,
  ImageService,
  PodSnapshot,
  Runtime,
  RuntimeCondition,
  RuntimeEvent,
  RuntimeStatus,
  RuntimeVersion,
  SandboxProcess,
  StreamingRequest,
} from "../port.ts";
import { takeSnapshot } from "../snapshot.ts";
import type { DockerClient } from "./client.ts";
import { type ContainerLogs, Containers } from "./containers.ts";
import type { ContextOfDaemon } from "./create-body.ts";
import { followDockerEvents } from "./events.ts";
import type { DockerExecs } from "./exec.ts";
import { execSync } from "./exec-sync.ts";
import { listAllSandboxIDs, listPodObjects } from "./list.ts";
import { hasRecursiveReadOnly } from "./mounts.ts";
import type { SandboxNetwork } from "./network.ts";
import { NetworkCollection } from "./network-collection.ts";
import type { PauseImage } from "./pause-image.ts";
import { unsupported } from "./refusals.ts";
import { Sandboxes } from "./sandboxes.ts";
import { sandboxProcess } from "./stats.ts";

export interface DockerRuntimeOptions {
  client: DockerClient;
  context: ContextOfDaemon;
  network: SandboxNetwork;
  images: ImageService;
  logs: ContainerLogs;
  stats: { containerStats(): Promise<ContainerStats[]> };
  /** Sessions of exec, attach and port-forward. */
  streaming: { url(request: StreamingRequest): string };
  pauseImage: PauseImage;
  /** Deadline of an ordinary call in ms. */
  requestTimeoutMs: number;
  clock: Clock;
  log: Logger;
  execs: DockerExecs;
  /** Ends what the parts keep running, for which they may need the daemon. Never rejects. */
  close(): Promise<void>;
}

/** Pods with a Docker daemon: the verbs of `Runtime`, each in the hands of a part. */
export class DockerRuntime implements Runtime {
  readonly images: ImageService;
  readonly #options: DockerRuntimeOptions;
  readonly #sandboxes: Sandboxes;
  readonly #containers: Containers;
  readonly #collection: NetworkCollection;

  constructor(options: DockerRuntimeOptions) {
    this.#options = options;
    this.images = options.images;
    const containers = new Containers(options);
    this.#containers = containers;
    this.#sandboxes = new Sandboxes({ ...options, removeContainer: async (id) => await containers.remove(id) });
    const listSandboxIDs = async () => await listAllSandboxIDs(options.client);
    this.#collection = new NetworkCollection({ ...options, listSandboxIDs });
  }

  async version(): Promise<RuntimeVersion> {
    const { client } = this.#options;
    const answer: unknown = await client.call(
      "version of the Docker daemon",
      // dockerode's types do not know that it takes options.
      async (abortSignal) => await (client.docker.version as (options: object) => Promise<unknown>)({ abortSignal }),
    );
    const { Version } = typeof answer === "object" && answer !== null ? (answer as { Version?: unknown }) : {};
    return {
      runtimeName: "docker",
      runtimeVersion: typeof Version === "string" ? Version : client.daemon.version,
      runtimeApiVersion: client.daemon.apiVersion,
    };
  }

  async status(): Promise<RuntimeStatus> {
    const [runtimeReady, networkReady] = await Promise.all([this.#ping(), this.#options.network.status()]);
    const { daemon } = this.#options.client;
    return {
      runtimeReady,
      networkReady,
      // "": the daemon's default.
      handlers: ["", ...daemon.runtimes].map((name) => ({
        name,
        recursiveReadOnlyMounts: hasRecursiveReadOnly(name, daemon, release()),
        userNamespaces: false,
      })),
      supplementalGroupsPolicy: false,
    };
  }

  async cgroupDriver(): Promise<"systemd" | "cgroupfs" | undefined> {
    const { cgroupDriver } = this.#options.client.daemon;
    return cgroupDriver === "none" ? undefined : cgroupDriver;
  }

  async updateRuntimeConfig({ podCIDR }: { podCIDR: string }): Promise<void> {
    this.#options.network.setPodCIDRs(podCIDR.split(",").filter((cidr) => cidr !== ""));
  }

  async runPodSandbox(...[config, runtimeHandler, onStep]: Parameters<Runtime["runPodSandbox"]>): Promise<string> {
    return await this.#sandboxes.run(config, runtimeHandler, onStep);
  }

  async stopPodSandbox(sandboxID: string): Promise<void> {
    await this.#sandboxes.stop(sandboxID);
  }

  async removePodSandbox(sandboxID: string): Promise<void> {
    await this.#sandboxes.remove(sandboxID);
  }

  async podSandboxStatus(sandboxID: string): ReturnType<Runtime["podSandboxStatus"]> {
    return await this.#sandboxes.status(sandboxID);
  }

  async createContainer(
    ...[sandboxID, config, sandboxConfig]: Parameters<Runtime["createContainer"]>
  ): Promise<string> {
    return await this.#containers.create(sandboxID, config, sandboxConfig);
  }

  async startContainer(containerID: string): Promise<void> {
    await this.#containers.start(containerID);
  }

  async stopContainer(containerID: string, graceSeconds: number): Promise<void> {
    await this.#containers.stop(containerID, graceSeconds);
  }

  async removeContainer(containerID: string): Promise<void> {
    await this.#containers.remove(containerID);
  }

  async containerStatus(containerID: string): Promise<ContainerStatus> {
    return await this.#containers.status(containerID);
  }

  async updateContainerResources(
    ...[containerID, resources]: Parameters<Runtime["updateContainerResources"]>
  ): Promise<void> {
    await this.#containers.update(containerID, resources);
  }

  async updatePodSandboxResources(sandboxID: string): Promise<void> {
    throw new AgentError("Unimplemented", `sandbox ${sandboxID}: Docker has no use for its pod's resources`);
  }

  async reopenContainerLog(containerID: string): Promise<void> {
    await this.#containers.reopenLog(containerID);
  }

  async execSync(...[containerID, command, timeoutSeconds, signal]: Parameters<Runtime["execSync"]>) {
    const { execs, clock } = this.#options;
    return await execSync(execs, containerID, command, timeoutSeconds, signal, clock);
  }

  async list(podUID?: string): ReturnType<Runtime["list"]> {
    const { client, network, context } = this.#options;
    const networks = {
      ips: async (id: string) => await network.ips(id),
      isLost: (id: string) => this.#sandboxes.isLost(id),
    };
    const list = await listPodObjects(client, networks, { nodeName: context.nodeName, podUID });
    return { ...list, sandboxes: list.sandboxes.filter((sandbox) => !this.#sandboxes.isUnfinished(sandbox)) };
  }

  async podSnapshot(podUID: string): Promise<PodSnapshot> {
    return await takeSnapshot(podUID, {
      clock: this.#options.clock,
      list: async (uid) => await this.list(uid),
      sandboxStatus: async ({ id }) => await ifThere(this.#sandboxes.status(id)),
      containerStatus: async ({ id }) => await ifThere(this.#containers.status(id)),
    });
  }

  async events(onEvent: (event: RuntimeEvent) => void, signal: AbortSignal): Promise<void> {
    const { client, context, network, clock, log } = this.#options;
    const { nodeName } = context;
    const onSandboxGone = (id: string) => {
      this.#sandboxes.forget(id);
      const look = network.isOnRecord(id).then((isOnRecord) => {
        // Those that we removed are not any more.
        if (isOnRecord) this.#collection.wake();
      });
      void look.catch((err: unknown) => {
        log.warn({ sandboxID: id, err: messageOf(err) }, "the network of a removed sandbox cannot be looked at");
      });
    };
    const onOutOfMemory = (id: string) => this.#containers.ranOutOfMemory(id);
    const refresh = async () => await client.refresh();
    await Promise.all([
      followDockerEvents({ client, nodeName, clock, log, onSandboxGone, onOutOfMemory, refresh }, onEvent, signal),
      this.#collection.run(signal),
    ]);
  }

  async containerStats(): Promise<ContainerStats[]> {
    return await this.#options.stats.containerStats();
  }

  async sandboxProcess(sandboxID: string): Promise<SandboxProcess> {
    return await sandboxProcess(this.#options.client, sandboxID);
  }

  async checkpointContainer(containerID: string): Promise<void> {
    throw new AgentError("Unimplemented", `checkpoint container ${containerID}: needs a CRI runtime, this is Docker`);
  }

  async streamingURL(request: StreamingRequest): Promise<string> {
    return this.#options.streaming.url(request);
  }

  /** Another network came into use: what could not be taken down without it can be now. */
  networkChanged(): void {
    this.#collection.wake();
  }

  async drain(): Promise<void> {
    await this.#options.network.close();
  }

  unsupported(pod: Pod): string | undefined {
    return unsupported(pod, this.#options.client.daemon);
  }

  hasPlainContainers(): boolean {
    return this.#options.client.daemon.hasPlainContainers;
  }

  async close(): Promise<void> {
    await this.#options.close();
    this.#options.client.close();
  }

  async #ping(): Promise<RuntimeCondition> {
    const { client } = this.#options;
    try {
      await client.call("ping the Docker daemon", async (abortSignal) => {
        await (client.docker.ping as (options: object) => Promise<unknown>)({ abortSignal });
      });
      return { status: true, reason: "", message: "" };
    } catch (err) {
      return { status: false, reason: "DockerDaemonNotReady", message: `docker: ${messageOf(err)}` };
    }
  }
}
