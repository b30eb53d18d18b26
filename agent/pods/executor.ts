import { mkdir } from "node:fs/promises";
import { join } from "node:path";
import { namespaceOf, uidOf } from "../kube/pod-resources.ts";
import type { Container, LifecycleHandler, Pod } from "../kube/types.ts";
import { AgentError, hasCode, isAbort, messageOf } from "../lib/errors.ts";
import { ImagePullError, type ImageUser } from "../runtime/images.ts";
import { authsFor, type Keyring, keyringFromSecrets } from "../runtime/images-auth.ts";
import type { PodSandboxConfig, PodSnapshot } from "../runtime/port.ts";
import { PodDirError, VolumesError } from "../volumes/failures.ts";
import { buildContainerConfig, nextRestartCount } from "./container-config.ts";
import { removeTerminationLog } from "./container-files.ts";
import { keepLogNumber, linkLog, removeLogs } from "./container-logs.ts";
import { type DNSConfig, podDNS } from "./dns.ts";
import { runHook } from "./hooks.ts";
import { ImageVolumes, imageVolumesOf } from "./image-volumes.ts";
import type { ReadyImage } from "./local.ts";
import {
  graceSecondsOf,
  nodeReference,
  podLogDirName,
  podReference,
  type SpecContainer,
  specContainers,
} from "./names.ts";
import type { PodAction } from "./plan.ts";
import type { PodDeps } from "./port.ts";
import type { PodResizes } from "./resize/port.ts";
import { runResize } from "./resize/run.ts";
import { buildSandboxConfig } from "./sandbox.ts";
import type { IDMappings, UserNamespaces } from "./user-namespaces.ts";

/** Why a step failed, in the words of a container's waiting reason. `retryAtMs`: something will be different then. */
export class StepError extends Error {
  override readonly name = "StepError";
  readonly reason: string;
  readonly retryAtMs: number | undefined;

  constructor(
    reason: string,
    message: string,
    { retryAtMs, cause }: { retryAtMs?: number | undefined; cause?: unknown } = {},
  ) {
    super(message, { cause });
    this.reason = reason;
    this.retryAtMs = retryAtMs;
  }
}

/** Why a pod is turned away whose volumes the node has no room for. */
export const attachLimitReason = "VolumeAttachmentLimitExceeded";

// For calls about sandboxes that an earlier run has made: these have their resolv.conf.
const noDNS: DNSConfig = { servers: [], searches: [], options: [] };

// kubelet's floor for stopping a container: less gives a process no chance to react.
const stopGraceSecondsMin = 2;

/** What the executor reads of the pod's present state, and what it learns. */
export interface StepContext {
  pod: Pod;
  observed: PodSnapshot;
  podIPs: readonly string[];
  images: Map<string, ReadyImage>;
  maskedPaths: readonly string[];
  /** Aborts work that only waits: pulls, volumes, postStart hooks. */
  signal: AbortSignal;
  /** Aborts the hook of a container that has ended. */
  hookSignal: AbortSignal;
}

export interface ExecutorDeps extends PodDeps {
  resizes: Pick<PodResizes, "progress" | "cgroupMade" | "starting" | "completed" | "failed">;
  userNamespaces: Pick<UserNamespaces, "mappings" | "release">;
}

/** Carries out actions of pods. Each call does one step and rejects with a `StepError` that says why it could not. */
export class Executor {
  readonly #deps: ExecutorDeps;
  readonly #imageVolumes = new ImageVolumes();
  /** What the newest sandbox of each pod has in its resolv.conf, by UID: it stays as it is for as long as the sandbox does. */
  readonly #dns = new Map<string, DNSConfig>();

  constructor(deps: ExecutorDeps) {
    this.#deps = deps;
  }

  async execute(action: PodAction, context: StepContext): Promise<void> {
    const { runtime } = this.#deps;
    switch (action.kind) {
      case "SetUpVolumes":
        return await this.#setUpVolumes(context);
      case "CreateSandbox":
        return await this.#createSandbox(action.attempt, context);
      case "EnsureImage":
        return await this.#ensureImage(action.container, context);
      case "ResizePod":
        return await this.#resizePod(context);
      case "StartContainer":
        return await this.#startContainer(action, context);
      case "PreStop":
        return await this.#preStop(action, context);
      case "KillContainer":
        return await this.#killContainer(action, context);
      case "StopSandbox":
        return await this.#stopSandbox(action.sandboxID, context);
      case "RemoveContainer":
        return await this.#removeContainer(action, context);
      case "RemoveSandbox":
        await runtime.stopPodSandbox(action.sandboxID);
        return await runtime.removePodSandbox(action.sandboxID);
      case "TearDownVolumes":
        return await this.#deps.volumes.tearDown(uidOf(context.pod));
      case "CleanUp":
        return await this.#cleanUp(context);
    }
  }

  async #setUpVolumes({ pod, signal }: StepContext): Promise<void> {
    try {
      await this.#deps.volumes.setUp(pod, signal);
    } catch (err) {
      if (signal.aborted) throw err;
      const isTold = err instanceof VolumesError || err instanceof PodDirError;
      const events = isTold ? err.events : [{ reason: "FailedMount", message: messageOf(err) }];
      for (const { reason, message } of events) this.#event(pod, "Warning", reason, message);
      const isFull = err instanceof VolumesError && err.exceedsAttachLimit;
      throw new StepError(isFull ? attachLimitReason : "ContainerCreating", messageOf(err));
    }
  }

  async #createSandbox(attempt: number, { pod, signal }: StepContext): Promise<void> {
    const { cgroups, runtime, runtimeClasses, settings } = this.#deps;
    const uid = uidOf(pod);
    if (attempt > 0) {
      this.#event(pod, "Normal", "SandboxChanged", "Pod sandbox changed, it will be killed and re-created.");
    }
    try {
      await cgroups.ensure(pod);
      this.#deps.resizes.cgroupMade(pod);
    } catch (err) {
      this.#event(
        pod,
        "Warning",
        "FailedCreatePodContainer",
        `unable to ensure pod container exists: ${messageOf(err)}`,
      );
      throw new StepError("ContainerCreating", messageOf(err));
    }
    try {
      const className = pod.spec.runtimeClassName ?? "";
      const runtimeClass = className === "" ? undefined : runtimeClasses.get(className);
      if (className !== "" && runtimeClass === undefined) {
        throw new AgentError("NotFound", `failed to get sandbox runtime: RuntimeClass "${className}" not found`);
      }
      const handler = runtimeClass?.handler ?? "";
      const userns = await this.#userNamespace(pod, handler);
      this.#dns.set(uid, await this.#newDNS(pod));
      const config = this.#sandboxConfig(pod, attempt, userns);
      await mkdir(join(settings.podLogsDir, podLogDirName(pod)), { recursive: true, mode: 0o755 });
      await runtime.runPodSandbox(config, handler);
    } catch (err) {
      if (!signal.aborted) {
        const message = `Failed to create pod sandbox: ${messageOf(err)}`;
        this.#event(pod, "Warning", "FailedCreatePodSandBox", message);
      }
      this.#deps.log.warn({ podUID: uid, err: messageOf(err) }, "sandbox not created");
      throw new StepError("ContainerCreating", messageOf(err));
    }
  }

  // A runtime that knows nothing of user namespaces would leave the pod's root to be the node's.
  async #userNamespace(pod: Pod, handler: string): Promise<IDMappings | undefined> {
    if (pod.spec.hostUsers !== false) return undefined;
    if (!this.#deps.node.hasUserNamespaces(handler)) {
      const which = handler === "" ? "the runtime's default handler" : `runtime handler "${handler}"`;
      throw new AgentError("Invalid", `spec.hostUsers is false, but ${which} does not support user namespaces`);
    }
    return await this.#deps.userNamespaces.mappings(pod);
  }

  /** What a new sandbox of the pod is to have in its resolv.conf. What had to be left out is told. */
  async #newDNS(pod: Pod): Promise<DNSConfig> {
    const { settings, node, recorder } = this.#deps;
    const { clusterDNS, clusterDomain } = settings;
    const host = await settings.readResolvConf();
    const { config, warnings } = podDNS(pod, { clusterDNS, clusterDomain, host, nodeIPs: node.hostIPs() });
    for (const { reason, message, alsoNode } of warnings) {
      this.#event(pod, "Warning", reason, message);
      if (alsoNode) recorder.event(nodeReference(node.nodeName), "Warning", reason, message);
    }
    return config;
  }

  // Pulls and containers carry the configuration of their sandbox; its DNS was settled when that was made.
  #sandboxConfig(pod: Pod, attempt: number, userns?: IDMappings): PodSandboxConfig {
    const { settings, volumes, cgroups } = this.#deps;
    return buildSandboxConfig(pod, attempt, {
      cgroupParent: cgroups.parentFor(pod),
      dns: this.#dns.get(uidOf(pod)) ?? noDNS,
      volumeGroups: volumes.supplementalGroups(uidOf(pod)),
      settings,
      ...(userns === undefined ? {} : { userns }),
    });
  }

  // The container's own image and those of the image volumes that it mounts: it starts with all of them, or waits for all.
  async #ensureImage(name: string, { pod, images, observed, signal }: StepContext): Promise<void> {
    const { container, fieldPath } = find(pod, name);
    const attempt = observed.sandboxes[0]?.attempt ?? 0;
    try {
      const keyring = await this.#keyring(pod);
      const config = this.#sandboxConfig(pod, attempt);
      const ensure = async (user: ImageUser) =>
        await this.#deps.images.ensureImage(pod, user, config, authsFor(user.image ?? "", keyring), signal);
      // What one of them came to says nothing before the other has ended, too: a pull goes on and is not begun again.
      const [own, volumes] = await Promise.allSettled([
        ensure(container),
        this.#imageVolumes.ensure(pod, container, ensure),
      ]);
      if (own.status === "rejected") throw own.reason;
      if (volumes.status === "rejected") throw volumes.reason;
      images.set(name, { ...own.value, wanted: container.image, ofVolumes: volumes.value });
    } catch (err) {
      if (signal.aborted && isAbort(err)) throw err;
      // What is wrong with more than the image is told by the sandbox.
      if (!(err instanceof ImagePullError)) throw new StepError("ContainerCreating", messageOf(err));
      this.#event(pod, "Warning", "Failed", `Error: ${err.reason}`, fieldPath);
      throw new StepError(err.reason, err.message, { retryAtMs: err.retryAtMs });
    }
  }

  /** Of the pod's pull secrets; empty if it names none. */
  async #keyring(pod: Pod): Promise<Keyring[]> {
    const { objects } = this.#deps;
    const names = (pod.spec.imagePullSecrets ?? []).flatMap(({ name = "" }) => (name === "" ? [] : [name]));
    if (names.length === 0) return [];
    const found = await Promise.allSettled(names.map((name) => objects.secret(namespaceOf(pod), name)));
    const missing = names.filter((_, i) => found[i]?.status === "rejected");
    const warn = (why: string) =>
      this.#event(
        pod,
        "Warning",
        "FailedToRetrieveImagePullSecret",
        `Unable to retrieve some image pull secrets (${why}); attempting to pull the image may not succeed.`,
      );
    if (missing.length > 0) warn(missing.join(", "));
    const { keyring, problems } = keyringFromSecrets(
      found.flatMap((result) => (result.status === "fulfilled" ? [result.value] : [])),
    );
    if (problems.length > 0) warn(problems.join(", "));
    return [keyring];
  }

  async #resizePod({ pod, observed }: StepContext): Promise<void> {
    const { resizes } = this.#deps;
    try {
      await runResize(pod, resizes.progress(uidOf(pod))?.from, observed, this.#deps);
      await resizes.completed(pod);
    } catch (err) {
      resizes.failed(pod, messageOf(err));
      throw new StepError("", messageOf(err));
    }
  }

  async #startContainer(action: PodAction & { kind: "StartContainer" }, context: StepContext): Promise<void> {
    const { pod, images } = context;
    const { container, fieldPath } = find(pod, action.container);
    const fail = (reason: string, err: unknown): never => {
      this.#event(pod, "Warning", "Failed", `Error: ${messageOf(err)}`, fieldPath);
      throw new StepError(reason, messageOf(err), { cause: err });
    };
    const image = images.get(container.name);
    images.delete(container.name); // the next start asks anew
    let id = action.createdID;
    if (id !== undefined && imageVolumesOf(pod, container).length > 0) {
      // Whoever made it may have died before it knew whether the runtime has mounted the images.
      await this.#deps.runtime.removeContainer(id).catch((err: unknown) => fail("CreateContainerError", err));
      throw new StepError("ContainerCreating", "was made by an earlier run of the agent and is made anew");
    }
    if (id === undefined) {
      id = await this.#createContainer(container, action.sandboxID, image, context, fail);
      this.#event(pod, "Normal", "Created", `Container created`, fieldPath);
    }
    try {
      await this.#deps.runtime.startContainer(id);
    } catch (err) {
      return fail("RunContainerError", err);
    }
    this.#event(pod, "Normal", "Started", `Container started`, fieldPath);
    await linkLog(pod, container.name, id, this.#deps).catch((err: unknown) => {
      this.#deps.log.warn({ containerID: id, err: messageOf(err) }, "log link not made");
    });
    await this.#postStart(container, id, fieldPath, context);
  }

  // Part of the start: nothing behind it begins before it is over, and a container whose hook fails does not stay.
  async #postStart(container: Container, id: string, fieldPath: string, context: StepContext): Promise<void> {
    const handler = container.lifecycle?.postStart;
    if (handler === undefined) return;
    const { pod, signal } = context;
    try {
      await this.#runHook(handler, container, id, context, signal);
    } catch (err) {
      if (signal.aborted) return; // the pod has to go: how its hook would have ended no longer matters
      this.#deps.log.info({ containerID: id, err: messageOf(err) }, "postStart hook failed");
      this.#event(pod, "Warning", "FailedPostStartHook", "PostStartHook failed", fieldPath);
      await this.#stopAfterHook(container, id, fieldPath, context);
      throw new StepError("PostStartHookError", "PostStartHook failed");
    }
  }

  async #stopAfterHook(container: Container, id: string, fieldPath: string, context: StepContext): Promise<void> {
    const { pod } = context;
    const { clock, runtime } = this.#deps;
    const graceSeconds = graceSecondsOf(pod);
    const beganMs = clock.monotonic();
    const why = "FailedPostStartHook";
    if (container.lifecycle?.preStop === undefined) this.#event(pod, "Normal", "Killing", why, fieldPath);
    else {
      const hook = { kind: "PreStop", containerID: id, container: container.name, graceSeconds, why } as const;
      await this.#preStop(hook, context);
    }
    const spentSeconds = Math.floor((clock.monotonic() - beganMs) / 1_000);
    await runtime.stopContainer(id, Math.max(graceSeconds - spentSeconds, stopGraceSecondsMin));
  }

  // A failed hook holds up nothing: the container has to stop all the same.
  async #preStop(action: PodAction & { kind: "PreStop" }, context: StepContext): Promise<void> {
    const { pod, hookSignal } = context;
    const { container, fieldPath } = find(pod, action.container);
    this.#event(pod, "Normal", "Killing", action.why, fieldPath);
    const handler = container.lifecycle?.preStop;
    if (handler === undefined) return;
    const over = new AbortController();
    const timer = this.#deps.clock.after(action.graceSeconds * 1_000, () => over.abort());
    try {
      const signal = AbortSignal.any([over.signal, hookSignal]);
      await this.#runHook(handler, container, action.containerID, context, signal);
    } catch (err) {
      if (hookSignal.aborted) return;
      this.#deps.log.info({ containerID: action.containerID, err: messageOf(err) }, "preStop hook failed");
      this.#event(pod, "Warning", "FailedPreStopHook", "PreStopHook failed", fieldPath);
    } finally {
      timer.cancel();
    }
  }

  async #runHook(
    handler: LifecycleHandler,
    container: Container,
    containerID: string,
    { pod, podIPs: [podIP = ""] }: StepContext,
    signal: AbortSignal,
  ): Promise<void> {
    const { runtime, clock, metrics } = this.#deps;
    await runHook(
      handler,
      { pod, container, containerID, podIP },
      {
        runtime,
        clock,
        metrics,
        onHTTPFallback: (_pod, { name }, message) =>
          this.#event(pod, "Warning", "LifecycleHTTPFallback", message, find(pod, name).fieldPath),
      },
      signal,
    );
  }

  async #createContainer(
    container: Container,
    sandboxID: string,
    image: ReadyImage | undefined,
    context: StepContext,
    fail: (reason: string, err: unknown) => never,
  ): Promise<string> {
    const { pod, observed, podIPs, maskedPaths, signal } = context;
    const { runtime, settings } = this.#deps;
    const sandbox = observed.sandboxes.find((candidate) => candidate.id === sandboxID);
    if (sandbox === undefined || image === undefined || image.wanted !== container.image) {
      throw new StepError("ContainerCreating", "the pod has changed meanwhile");
    }
    const { config, sandboxConfig } = await (async () => {
      await this.#deps.resizes.starting(pod, container);
      const restartCount = await nextRestartCount(pod, container.name, observed, settings.podLogsDir);
      const userns = await this.#userNamespace(pod, sandbox.runtimeHandler);
      const start = { pod, container, sandbox, observed, image, restartCount, podIPs, maskedPaths, signal };
      const config = await buildContainerConfig({ ...start, ...(userns === undefined ? {} : { userns }) }, this.#deps);
      return { config, sandboxConfig: this.#sandboxConfig(pod, sandbox.attempt, userns) };
    })().catch((err: unknown) => {
      if (signal.aborted && isAbort(err)) throw err;
      return fail("CreateContainerConfigError", err);
    });
    try {
      return await runtime.createContainer(sandboxID, config, sandboxConfig);
    } catch (err) {
      // One that gave no answer may still come to make the container, and then its file is needed.
      if (!hasCode(err, "DeadlineExceeded", "Canceled", "Unavailable")) {
        await removeTerminationLog(pod, container, config.mounts, settings);
      }
      return fail("CreateContainerError", err);
    }
  }

  async #killContainer(action: PodAction & { kind: "KillContainer" }, { pod }: StepContext): Promise<void> {
    const fieldPath = specContainers(pod).find(({ container }) => container.name === action.container)?.fieldPath;
    if (action.isAnnounced !== true) this.#event(pod, "Normal", "Killing", action.why, fieldPath);
    try {
      await this.#deps.runtime.stopContainer(
        action.containerID,
        Math.max(action.timeoutSeconds ?? action.graceSeconds, stopGraceSecondsMin),
      );
    } catch (err) {
      this.#event(pod, "Warning", "FailedKillPod", `error killing pod: ${messageOf(err)}`);
      throw new StepError("", messageOf(err));
    }
  }

  // Mostly the network's plugin that does not let go of it: the pod's end waits for that.
  async #stopSandbox(id: string, { pod }: StepContext): Promise<void> {
    try {
      await this.#deps.runtime.stopPodSandbox(id);
    } catch (err) {
      const why = `failed to "KillPodSandbox" for "${uidOf(pod)}" with KillPodSandboxError: "${messageOf(err)}"`;
      this.#event(pod, "Warning", "FailedKillPod", `error killing pod: ${why}`);
      throw new StepError("", messageOf(err));
    }
  }

  async #removeContainer(
    { containerID, keepsLogs = false }: PodAction & { kind: "RemoveContainer" },
    { observed }: StepContext,
  ): Promise<void> {
    const status = observed.containers.find(({ id }) => id === containerID);
    if (status !== undefined && !keepsLogs) await removeLogs(status, observed.containers, this.#deps);
    await this.#deps.runtime.removeContainer(containerID);
    if (status !== undefined && keepsLogs) await keepLogNumber(status, this.#deps);
  }

  async #cleanUp({ pod }: StepContext): Promise<void> {
    const uid = uidOf(pod);
    const { cgroups, objects, images, userNamespaces } = this.#deps;
    await cgroups.destroy(uid);
    await userNamespaces.release(uid);
    objects.unregister(uid);
    images.forgetPod(uid);
    this.#dns.delete(uid);
  }

  #event(pod: Pod, type: "Normal" | "Warning", reason: string, message: string, fieldPath?: string): void {
    this.#deps.recorder.event(podReference(pod, fieldPath), type, reason, message);
  }
}

function find(pod: Pod, name: string): SpecContainer {
  const found = specContainers(pod).find(({ container }) => container.name === name);
  if (found === undefined) throw new StepError("ContainerCreating", `the pod has no container ${name} any more`);
  return found;
}
