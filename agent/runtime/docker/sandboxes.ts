import type { Clock } from "../../lib/clock.ts";
import { AgentError, hasCode, ifThere, messageOf, withContext } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import type { PodSandboxConfig, SandboxStatus } from "../port.ts";
import { containersIn } from "./answers.ts";
import type { DockerClient } from "./client.ts";
import { createNamed, inspectContainer, removeForced } from "./create.ts";
import type { ContextOfDaemon } from "./create-body.ts";
import { alreadyIsFine } from "./errors.ts";
import { hasEnded, isListedRunning, isRunning, sandboxStatus } from "./inspect.ts";
import { readSandbox, sandboxContainersFilter } from "./labels.ts";
import type { NetworkTarget, SandboxNetwork } from "./network.ts";
import { kindOfInspected, kindOfListed } from "./ownership.ts";
import type { PauseImage } from "./pause-image.ts";
import { writeResolvConf } from "./resolv-conf.ts";
import { sandboxCreateBody } from "./sandbox-config.ts";
import type { WireContainer, WireInspect } from "./wire.ts";

export interface SandboxesOptions {
  client: DockerClient;
  context: ContextOfDaemon;
  network: SandboxNetwork;
  pauseImage: PauseImage;
  /** Removes an app container, with what is kept of it on the node. */
  removeContainer(containerID: string): Promise<void>;
  /** Deadline of an ordinary call in ms. */
  requestTimeoutMs: number;
  clock: Clock;
  log: Logger;
}

// As the contract of `Runtime` has it: the image may have to be pulled.
const runTimeoutFactor = 2;

const pauseImageStep = "the pause image";

/** A `run` under way. */
interface Making {
  /** Called with what it is at, for people. */
  at(step: string): void;
  /** Aborts at its deadline. */
  readonly signal: AbortSignal;
}

/** A pod's sandbox with Docker: a pause container that holds the namespaces, and CNI's network in one of them. */
export class Sandboxes {
  readonly #options: SandboxesOptions;
  /** Pod and attempt of those that `run` has not finished. */
  readonly #unfinished = new Set<string>();
  /** IDs of those whose process was seen to have ended. */
  readonly #lost = new Set<string>();

  constructor(options: SandboxesOptions) {
    this.#options = options;
  }

  /**
   * Container, resolv.conf, network: in this order. A sandbox that could not be finished is removed again; one that an agent
   * left unfinished has no addresses, and is seen as not ready.
   */
  async run(
    config: PodSandboxConfig,
    runtimeHandler: string,
    onStep: (step: string) => void = () => {},
  ): Promise<string> {
    const { clock, requestTimeoutMs } = this.#options;
    const key = keyOf(config.uid, config.attempt);
    const timeoutMs = runTimeoutFactor * requestTimeoutMs;
    const deadline = new AbortController();
    const late = Promise.withResolvers<never>();
    let step = "";
    const at = (next: string) => {
      step = next;
      // What hangs goes on when nobody waits for it any more.
      if (!deadline.signal.aborted) onStep(step);
    };
    const making: Making = { at, signal: deadline.signal };
    const timer = clock.after(timeoutMs, () => {
      const what = `run sandbox of ${config.namespace}/${config.name}`;
      late.reject(
        new AgentError("DeadlineExceeded", `${what}: not done within ${timeoutMs / 1000} s; it came to: ${step}`),
      );
      deadline.abort();
    });
    this.#unfinished.add(key);
    try {
      // What hangs may do so for longer. Whatever it made is removed when it ends.
      return await Promise.race([this.#make(config, runtimeHandler, making), late.promise]);
    } finally {
      timer.cancel();
      this.#unfinished.delete(key);
    }
  }

  /** True while `run` makes it: to all others it is not there yet, as with CRI. A look at it then would find it not ready. */
  isUnfinished({ podUID, attempt }: Pick<SandboxStatus, "podUID" | "attempt">): boolean {
    return this.#unfinished.has(keyOf(podUID, attempt));
  }

  /** True once `status` saw that its process had ended: a list does not tell that of one that was started again. */
  isLost(id: string): boolean {
    return this.#lost.has(id);
  }

  /** The sandbox is no more. */
  forget(id: string): void {
    this.#lost.delete(id);
  }

  async #make(config: PodSandboxConfig, runtimeHandler: string, making: Making): Promise<string> {
    const { context, pauseImage } = this.#options;
    const client = endedBy(making.signal, this.#options.client);
    const pod = `${config.namespace}/${config.name}`;
    const body = sandboxCreateBody(config, pauseImage.name, runtimeHandler, context);
    const create = async () => {
      making.at("create");
      return await createNamed(client, `create sandbox of ${pod}`, body);
    };
    const id = await create().catch(async (err: unknown) => {
      if (!hasCode(err, "NotFound")) throw err;
      // Asked for only now: it is there for every pod but a node's first.
      making.at(pauseImageStep);
      await pauseImage.ensure(config, making.signal, ({ layers, layersDone }) =>
        making.at(`${pauseImageStep}: ${layersDone} of ${layers} layers done`),
      );
      return await create();
    });
    try {
      making.at("start");
      await client.call(`start sandbox of ${pod}`, async (abortSignal) => {
        await client.docker.getContainer(id).start({ abortSignal });
      });
      await this.#furnish(id, config, making);
      making.signal.throwIfAborted();
      return id;
    } catch (err) {
      await this.#discard(id);
      throw err;
    }
  }

  /** Ends the sandbox's containers and takes its network down, then ends the pause container. */
  async stop(id: string): Promise<void> {
    const { client } = this.#options;
    const [inspect, containers] = await Promise.all([ifThere(this.#inspect(id)), this.#containersOf(id)]);
    if (inspect === undefined) return;
    await Promise.all(containers.filter(isListedRunning).map(async (container) => await this.#kill(container)));
    await this.#takeNetworkDown(inspect);
    // The pause program has nothing to say before its end.
    await alreadyIsFine(
      client.call(`stop sandbox ${id}`, async (abortSignal) => {
        await client.docker.getContainer(id).stop({ t: 0, abortSignal });
      }),
    );
  }

  /** With its containers, running or not. */
  async remove(id: string): Promise<void> {
    const { client } = this.#options;
    const [inspect, containers] = await Promise.all([ifThere(this.#inspect(id)), this.#containersOf(id)]);
    await Promise.all(containers.map(async ({ Id }) => await this.#options.removeContainer(Id)));
    if (inspect === undefined) return;
    await this.#takeNetworkDown(inspect);
    await removeForced(client, `remove sandbox ${id}`, id);
  }

  async status(id: string): Promise<SandboxStatus> {
    const { network } = this.#options;
    const [inspect, ips] = await Promise.all([this.#inspect(id), network.ips(id)]);
    if (hasEnded(inspect)) this.#lost.add(id);
    return sandboxStatus(inspect, ips);
  }

  /** Rejects with NotFound, also for what is no sandbox. */
  async #inspect(id: string, client = this.#options.client): Promise<WireInspect> {
    const what = `status of sandbox ${id}`;
    const inspect = await inspectContainer(client, what, id);
    if (kindOfInspected(inspect, this.#options.context.nodeName) !== "sandbox") {
      throw new AgentError("NotFound", `${what}: it is no sandbox of a pod of this node`);
    }
    return inspect;
  }

  async #furnish(id: string, config: PodSandboxConfig, making: Making): Promise<void> {
    const { client, network } = this.#options;
    const pod = `${config.namespace}/${config.name}`;
    const inspect = await this.#inspect(id, endedBy(making.signal, client));
    const pid = inspect.State?.Pid ?? 0;
    if (!isRunning(inspect.State) || pid === 0) {
      const { ExitCode = 0, Error: why = "" } = inspect.State ?? {};
      throw new AgentError(
        "Internal",
        `sandbox of ${pod} ended at once with exit code ${ExitCode}${why && `: ${why}`}`,
      );
    }
    if (config.dns !== undefined) {
      // Without it the pod would have no names, or the node's.
      if (!inspect.ResolvConfPath) {
        throw new AgentError("Internal", `sandbox of ${pod}: the Docker daemon made no resolv.conf for it`);
      }
      await writeResolvConf(inspect.ResolvConfPath, config.dns);
    }
    if (config.securityContext.namespaceOptions.network === "NODE") return;
    making.at("set up its network");
    const target = {
      ...targetOf(inspect),
      dns: config.dns,
      ...(config.cgroupParent === "" ? {} : { cgroupPath: config.cgroupParent }),
    };
    try {
      await network.setUp(target, making.signal);
    } catch (err) {
      throw withContext(err, `set up network of ${pod}`);
    }
  }

  /** After a failure: whatever goes wrong here, the failure before it is what people must hear of. */
  async #discard(id: string): Promise<void> {
    try {
      await this.remove(id);
    } catch (err) {
      this.#options.log.warn({ sandboxID: id, err: messageOf(err) }, "an unfinished sandbox could not be removed");
    }
  }

  async #takeNetworkDown(inspect: WireInspect): Promise<void> {
    const { network } = this.#options;
    if (inspect.HostConfig?.NetworkMode === "host") return;
    await network.tearDown(targetOf(inspect));
  }

  async #containersOf(id: string): Promise<WireContainer[]> {
    const { client, context } = this.#options;
    const filters = sandboxContainersFilter(id);
    const what = `list containers of sandbox ${id}`;
    const answer: unknown = await client.call(
      what,
      async (abortSignal) => await client.docker.listContainers({ all: true, filters, abortSignal }),
    );
    // What was made of an image that somebody committed from one of them has its labels.
    return containersIn(answer, what).filter((one) => kindOfListed(one, context.nodeName) === "container");
  }

  async #kill({ Id }: WireContainer): Promise<void> {
    const { client } = this.#options;
    const call = client.call(`kill container ${Id}`, async (abortSignal) => {
      await client.docker.getContainer(Id).kill({ signal: "SIGKILL", abortSignal });
    });
    await alreadyIsFine(call).catch((err: unknown) => {
      // It ended between the list and this.
      if (!hasCode(err, "Conflict")) throw err;
    });
  }
}

/** The client, whose calls end with a signal, too. */
function endedBy(signal: AbortSignal, client: DockerClient): DockerClient {
  const call: DockerClient["call"] = async (what, run, options) => await client.call(what, run, { ...options, signal });
  return { ...client, call };
}

function keyOf(podUID: string, attempt: number): string {
  return `${podUID}/${attempt}`;
}

function targetOf(inspect: WireInspect): NetworkTarget {
  const { podName, podNamespace, podUID, portMappings, annotations } = readSandbox(inspect.Config?.Labels ?? {});
  const pid = isRunning(inspect.State) ? (inspect.State?.Pid ?? 0) : 0;
  return {
    containerID: inspect.Id,
    netnsPath: pid === 0 ? "" : `/proc/${pid}/ns/net`,
    podName,
    podNamespace,
    podUID,
    portMappings,
    annotations,
  };
}
