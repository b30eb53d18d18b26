import { type Clock, systemClock } from "../../lib/clock.ts";
import { AgentError, hasCode, ifThere } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type {
  ContainerStats,
  ContainerStatus,
  PodSnapshot,
  Runtime,
  RuntimeEvent,
  RuntimeList,
  RuntimeVersion,
  SandboxProcess,
  SandboxStatus,
  StreamingRequest,
} from "../port.ts";
import { takeSnapshot } from "../snapshot.ts";
import { createRuntimeCalls, goneIsFine, type RuntimeCalls } from "./calls.ts";
import { type CRIChannel, openChannel } from "./client.ts";
import {
  containerConfigToWire,
  containerStatus,
  containerSummary,
  podUIDLabel,
  resourcesToWire,
  runtimeStatus,
  sandboxConfigToWire,
  sandboxStatus,
  sandboxSummary,
} from "./convert.ts";
import { createEventSource } from "./event-source.ts";
import { followEvents } from "./events.ts";
import { createWithImageMounts } from "./image-mounts.ts";
import { createImageService } from "./image-service.ts";
import { createImagesInUse } from "./images-in-use.ts";
import { createPlainContainers, type PlainContainers } from "./plain-containers.ts";
import { PodIDs } from "./pod-ids.ts";
import { loadProto, type ProtoPackage } from "../../lib/grpc/proto.ts";
import { containerStats, sandboxProcess } from "./stats.ts";
import type { WireContainerStats, WireStatusResponse, WireVersionResponse } from "./wire.ts";

export interface ConnectCRIOptions {
  /** `unix:///path` or a bare path. */
  runtimeEndpoint: string;
  /** Where images are served; the runtime endpoint unless given. */
  imageEndpoint?: string;
  /** Deadline of an ordinary call in ms: `runtimeRequestTimeout`, 2 min by default. */
  requestTimeoutMs: number;
  log: Logger;
  clock?: Clock;
}

// What CRI v1 has always answered to Version; anything else is another protocol.
const kubeAPIVersion = "0.1.0";

/**
 * Connects to a CRI v1 runtime and checks that it is one.
 *
 * @returns the runtime; `close` ends its connections
 * Rejects with Invalid for an endpoint that is no unix socket, Unavailable if nobody listens, Unimplemented if it
 * speaks another version.
 */
export async function connectCRI(options: ConnectCRIOptions): Promise<Runtime> {
  const { runtimeEndpoint, imageEndpoint, requestTimeoutMs, log, clock = systemClock } = options;
  const proto = await loadProto("runtime.v1.proto");
  const channel = await openChannel(runtimeEndpoint);
  const imageChannel =
    imageEndpoint === undefined || imageEndpoint === "" || imageEndpoint === runtimeEndpoint
      ? channel
      : await openChannel(imageEndpoint);
  const runtime = new CRIRuntime({ channel, imageChannel, proto, requestTimeoutMs, log, clock });
  try {
    await runtime.version();
  } catch (err) {
    await runtime.close();
    if (!hasCode(err, "Unimplemented")) throw err;
    throw new AgentError(
      "Unimplemented",
      `container runtime at ${runtimeEndpoint} does not serve CRI v1: ${err.message}`,
      {
        cause: err,
      },
    );
  }
  return runtime;
}

interface CRIRuntimeOptions {
  channel: CRIChannel;
  imageChannel: CRIChannel;
  proto: ProtoPackage;
  requestTimeoutMs: number;
  log: Logger;
  clock: Clock;
}

class CRIRuntime implements Runtime {
  readonly images: Runtime["images"];
  readonly #options: CRIRuntimeOptions;
  readonly #calls: RuntimeCalls;
  readonly #ids = new PodIDs();
  readonly #plainContainers: PlainContainers;

  constructor(options: CRIRuntimeOptions) {
    this.#options = options;
    this.#calls = createRuntimeCalls(options.channel, options.proto, options.requestTimeoutMs);
    this.#plainContainers = createPlainContainers(this.#calls, options.log);
    this.images = {
      ...createImageService(options.imageChannel, options.proto, options.requestTimeoutMs),
      imagesInUse: createImagesInUse(this.#calls),
    };
  }

  async version(): Promise<RuntimeVersion> {
    const answer = await this.#calls.call<WireVersionResponse>(
      "Version",
      { version: kubeAPIVersion },
      "runtime version",
    );
    if (answer.version !== kubeAPIVersion) {
      throw new AgentError("Unimplemented", `the runtime answers version ${answer.version}, wanted ${kubeAPIVersion}`);
    }
    return {
      runtimeName: answer.runtime_name,
      runtimeVersion: answer.runtime_version,
      runtimeApiVersion: answer.runtime_api_version,
    };
  }

  async status() {
    return runtimeStatus(await this.#calls.call<WireStatusResponse>("Status", {}, "runtime status"));
  }

  async cgroupDriver() {
    try {
      const { linux } = await this.#calls.call<{ linux: { cgroup_driver: string } | null }>(
        "RuntimeConfig",
        {},
        "runtime config",
      );
      if (linux === null) return undefined;
      return linux.cgroup_driver === "CGROUPFS" ? "cgroupfs" : "systemd";
    } catch (err) {
      if (hasCode(err, "Unimplemented")) return undefined;
      throw err;
    }
  }

  async updateRuntimeConfig({ podCIDR }: { podCIDR: string }) {
    const request = { runtime_config: { network_config: { pod_cidr: podCIDR } } };
    await this.#calls.call("UpdateRuntimeConfig", request, `tell the runtime pod CIDR ${podCIDR}`);
  }

  async runPodSandbox(config: Parameters<Runtime["runPodSandbox"]>[0], runtimeHandler: string) {
    const { pod_sandbox_id: id } = await this.#calls.call<{ pod_sandbox_id: string }>(
      "RunPodSandbox",
      { config: sandboxConfigToWire(config), runtime_handler: runtimeHandler },
      `create sandbox of ${config.namespace}/${config.name}`,
      2 * this.#options.requestTimeoutMs, // image and network set-up are in it; kubelet allows twice the time, too
    );
    this.#ids.add(id, { podUID: config.uid, kind: "sandbox" });
    return id;
  }

  async stopPodSandbox(sandboxID: string) {
    await goneIsFine(this.#calls.call("StopPodSandbox", { pod_sandbox_id: sandboxID }, `stop sandbox ${sandboxID}`));
  }

  async removePodSandbox(sandboxID: string) {
    await goneIsFine(
      this.#calls.call("RemovePodSandbox", { pod_sandbox_id: sandboxID }, `remove sandbox ${sandboxID}`),
    );
  }

  async podSandboxStatus(sandboxID: string): Promise<SandboxStatus> {
    return sandboxStatus(await this.#calls.sandboxStatus(sandboxID));
  }

  async createContainer(
    sandboxID: string,
    config: Parameters<Runtime["createContainer"]>[1],
    sandboxConfig: Parameters<Runtime["createContainer"]>[2],
  ) {
    const request = {
      pod_sandbox_id: sandboxID,
      config: containerConfigToWire(config),
      sandbox_config: sandboxConfigToWire(sandboxConfig),
    };
    const what = `create container ${config.name} of ${sandboxConfig.namespace}/${sandboxConfig.name}`;
    const create = async () =>
      (await this.#calls.call<{ container_id: string }>("CreateContainer", request, what)).container_id;
    const id = await createWithImageMounts(config, create, this);
    this.#ids.add(id, { podUID: sandboxConfig.uid, kind: "container" });
    return id;
  }

  async startContainer(containerID: string) {
    await this.#calls.call("StartContainer", { container_id: containerID }, `start container ${containerID}`);
  }

  async stopContainer(containerID: string, graceSeconds: number) {
    const request = { container_id: containerID, timeout: graceSeconds };
    const timeoutMs = this.#options.requestTimeoutMs + graceSeconds * 1000;
    await goneIsFine(this.#calls.call("StopContainer", request, `stop container ${containerID}`, timeoutMs));
  }

  async removeContainer(containerID: string) {
    await goneIsFine(
      this.#calls.call("RemoveContainer", { container_id: containerID }, `remove container ${containerID}`),
    );
  }

  async containerStatus(containerID: string): Promise<ContainerStatus> {
    // CRI's status does not name the sandbox; the list does.
    const [status, [listed]] = await Promise.all([
      this.#calls.containerStatus(containerID),
      this.#calls.listContainers({ id: containerID }),
    ]);
    return containerStatus(status, listed?.pod_sandbox_id ?? "");
  }

  async updateContainerResources(containerID: string, resources: Parameters<Runtime["updateContainerResources"]>[1]) {
    const request = { container_id: containerID, linux: resourcesToWire(resources) };
    await this.#calls.call("UpdateContainerResources", request, `update resources of container ${containerID}`);
  }

  async updatePodSandboxResources(
    sandboxID: string,
    { resources, overhead }: Parameters<Runtime["updatePodSandboxResources"]>[1],
  ) {
    const request = {
      pod_sandbox_id: sandboxID,
      resources: resources === undefined ? null : resourcesToWire(resources),
      overhead: overhead === undefined ? null : resourcesToWire(overhead),
    };
    await this.#calls.call("UpdatePodSandboxResources", request, `update resources of sandbox ${sandboxID}`);
  }

  async reopenContainerLog(containerID: string) {
    await this.#calls.call(
      "ReopenContainerLog",
      { container_id: containerID },
      `reopen log of container ${containerID}`,
    );
  }

  async execSync(containerID: string, command: readonly string[], timeoutSeconds: number, signal?: AbortSignal) {
    const { stdout, stderr, exit_code } = await this.#calls.call<{ stdout: Buffer; stderr: Buffer; exit_code: number }>(
      "ExecSync",
      { container_id: containerID, cmd: [...command], timeout: timeoutSeconds },
      `exec in container ${containerID}`,
      timeoutSeconds === 0 ? Number.POSITIVE_INFINITY : this.#options.requestTimeoutMs + timeoutSeconds * 1000,
      signal,
    );
    return { stdout, stderr, exitCode: exit_code };
  }

  async list(podUID?: string): Promise<RuntimeList> {
    const filter = podUID === undefined ? {} : { label_selector: { [podUIDLabel]: podUID } };
    const [sandboxes, containers] = await Promise.all([
      this.#calls.listSandboxes(filter),
      this.#calls.listContainers(filter),
    ]);
    const list = { sandboxes: sandboxes.map(sandboxSummary), containers: containers.map(containerSummary) };
    for (const { id, podUID: uid } of list.sandboxes) this.#ids.add(id, { podUID: uid, kind: "sandbox" });
    for (const { id, podUID: uid } of list.containers) this.#ids.add(id, { podUID: uid, kind: "container" });
    return list;
  }

  async podSnapshot(podUID: string): Promise<PodSnapshot> {
    return await takeSnapshot(podUID, {
      clock: this.#options.clock,
      list: async (uid) => await this.list(uid),
      sandboxStatus: async ({ id }) => await ifThere(this.podSandboxStatus(id)),
      containerStatus: async ({ id, sandboxID }) => {
        const status = await ifThere(this.#calls.containerStatus(id));
        return status === undefined ? undefined : containerStatus(status, sandboxID);
      },
    });
  }

  async events(onEvent: (event: RuntimeEvent) => void, signal: AbortSignal): Promise<void> {
    const { channel, proto, clock, log } = this.#options;
    const ids = this.#ids;
    const ping = async () => {
      await this.version();
      // Once for each connection. The stream does not wait for it.
      void this.#plainContainers.learn();
    };
    const source = createEventSource({ channel, proto, calls: this.#calls, ids, ping });
    await followEvents({ source, ids, clock, log }, onEvent, signal);
  }

  async containerStats(): Promise<ContainerStats[]> {
    const { stats } = await this.#calls.call<{ stats: WireContainerStats[] }>(
      "ListContainerStats",
      { filter: {} },
      "container statistics",
    );
    return stats.map(containerStats);
  }

  async sandboxProcess(sandboxID: string): Promise<SandboxProcess> {
    const { info } = await this.#calls.call<{ info: Record<string, string> }>(
      "PodSandboxStatus",
      { pod_sandbox_id: sandboxID, verbose: true },
      `process of sandbox ${sandboxID}`,
    );
    return sandboxProcess(info);
  }

  async checkpointContainer(containerID: string, path: string, timeoutSeconds: number): Promise<void> {
    const request = { container_id: containerID, location: path, timeout: timeoutSeconds };
    await this.#calls.call(
      "CheckpointContainer",
      request,
      `checkpoint container ${containerID}`,
      this.#options.requestTimeoutMs + timeoutSeconds * 1000,
    );
  }

  async streamingURL(request: StreamingRequest): Promise<string> {
    const ask = async (method: string, body: object, what: string) => {
      const { url } = await this.#calls.call<{ url: string }>(method, body, what);
      if (url === "") throw new AgentError("Internal", `${what}: the runtime gave no streaming URL`);
      return url;
    };
    switch (request.kind) {
      case "exec": {
        const { containerID, command, tty, stdin, stdout, stderr } = request;
        const body = { container_id: containerID, cmd: command, tty, stdin, stdout, stderr };
        return await ask("Exec", body, `exec in container ${containerID}`);
      }
      case "attach": {
        const { containerID, tty, stdin, stdout, stderr } = request;
        const body = { container_id: containerID, tty, stdin, stdout, stderr };
        return await ask("Attach", body, `attach to container ${containerID}`);
      }
      case "portforward": {
        const { sandboxID, ports } = request;
        return await ask(
          "PortForward",
          { pod_sandbox_id: sandboxID, port: ports },
          `port-forward to sandbox ${sandboxID}`,
        );
      }
    }
  }

  hasPlainContainers(): boolean {
    return this.#plainContainers.isKnown;
  }

  async close(): Promise<void> {
    const { channel, imageChannel } = this.#options;
    channel.close();
    if (imageChannel !== channel) imageChannel.close();
  }
}
