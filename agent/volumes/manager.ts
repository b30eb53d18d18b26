import { mkdir, open, readdir, realpath } from "node:fs/promises";
import { join, posix } from "node:path";
import type { ApiClient } from "../kube/port.ts";
import { allContainers } from "../kube/pod-resources.ts";
import type { Container, Pod, ResourceList, Volume } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { Mount } from "../runtime/port.ts";
import { hasPublishedContent } from "./atomic-writer.ts";
import { buildImageMount, imageKind } from "./image.ts";
import { type BoundClaim, blockLinkOf, type SetUpResult, type VolumeDeps, type VolumeKind } from "./kind.ts";
import { type KindTable, kindTable } from "./kinds.ts";
import type { VolumeMetrics } from "./metrics.ts";
import { buildMount } from "./mounts.ts";
import { refKey, volumeRefs } from "./object-refs.ts";
import { podDirOf, removePodDir, subPathTargetOf, volumeDirOf } from "./pod-dirs.ts";
import type { BlockDevice, MountContext, ObjectSource, PodVolumes } from "./port.ts";
import { fdPath, openInside } from "./safe-path.ts";
import { prepareSubPath, subPathOf } from "./sub-path.ts";
import { tearDownVolumes } from "./tear-down.ts";
import { createTmpfsProbe } from "./tmpfs-probe.ts";
import { createTokenManager } from "./tokens.ts";

export interface PodVolumesOptions {
  /** kubelet's root directory; exists (see prepareRoot). */
  rootDir: string;
  /** undefined: no API server, hence no tokens. */
  client: ApiClient | undefined;
  objects: ObjectSource;
  clock: Clock;
  log: Logger;
  /** Allocatable resources as last reported; empty while unknown. */
  nodeAllocatable(): ResourceList;
  selinuxEnabled: boolean;
  /** Records an event about the pod: a mounted volume whose content could not be brought up to date. */
  onEvent?(pod: Pod, type: "Warning", reason: "FailedMount", message: string): void;
  random?: () => number;
  metrics?: VolumeMetrics;
  /** Kinds beside those that need nothing of their own. */
  kinds?: readonly VolumeKind[];
  /** Finds the PersistentVolume behind a pod's `persistentVolumeClaim` or `ephemeral` volume; undefined: there is no API server. */
  claims?: ClaimResolver;
  /** Told when the set-up of a volume begins. @returns to be called when it has ended, with the error if it failed */
  onSetUp?(pod: Pod, volume: string): (err?: unknown) => void;
}

export interface ClaimResolver {
  /** Rejects with an `AgentError` that says in one line what is wrong with the claim, and names it. */
  resolve(pod: Pod, volume: Volume, signal: AbortSignal): Promise<BoundClaim>;
}

/** The volumes of all pods. */
export interface VolumeManager extends PodVolumes {
  /**
   * Text of a file in a volume that is mounted, found without leaving the volume; for environment files.
   * Rejects with NotFound if volume or file are not there, Invalid if it is no file or too long.
   */
  readVolumeFile(podUID: string, volumeName: string, path: string): Promise<string>;
  /** A volume that is mounted; undefined while it is not. */
  mounted(podUID: string, volumeName: string): MountedVolume | undefined;
  /** Stops listening to `objects`. Volumes stay as they are. */
  close(): void;
}

// kubelet's backoff of one volume's operation.
export const retryBackoff = { baseMs: 500, maxMs: 122_000 };
// How often content is compared with its source although nothing was heard: kubelet does at each pod sync, 1 min × 1–1.5.
export const resyncMs = 60_000;
export const resyncJitter = 0.5;
// What an environment file may weigh: more than the environment of a process can hold anyway.
export const volumeFileBytesMax = 1 << 20;

/** A volume of a pod, ready to be given to its containers. */
export interface MountedVolume {
  pluginName: string;
  specName: string;
  bound: BoundClaim | undefined;
  isBlock: boolean;
  /** Absolute; of a block volume the link to its device. */
  hostPath: string;
  isReadOnly: boolean;
  isRelabelled: boolean;
  isRefreshed: boolean;
  supplementalGroup: number | undefined;
}

/** What we know of a pod between calls; all of it can be found again by calling `setUp`. */
interface PodState {
  /** Plugins of the volumes that containers use, one entry a volume. */
  wanted: readonly string[];
  mounted: Map<string, MountedVolume>;
  /** PersistentVolumes that are in use, or about to be. */
  persistentVolumes: Set<string>;
  /** Keys of the objects whose content is in the volumes. */
  refs: Set<string>;
  failures: number;
  /** Unix ms at which `setUp` should be called again. */
  nextAtMs: number | undefined;
}

/** Makes the {@link PodVolumes} of this node. */
export function createPodVolumes(options: PodVolumesOptions): VolumeManager {
  const { rootDir, objects, clock, log, selinuxEnabled, random = Math.random } = options;
  const tokens = createTokenManager({ client: options.client, clock, log, random });
  const deps: VolumeDeps = {
    objects,
    tokens,
    clock,
    nodeAllocatable: options.nodeAllocatable,
    tmpfsTakesNoswap: createTmpfsProbe(rootDir),
  };
  const kinds = kindTable(options.kinds);
  const states = new Map<string, PodState>();
  const podsOfRef = new Map<string, Set<string>>();
  const listeners = new Set<(podUID: string) => void>();
  options.metrics?.follow(() => ({
    desired: [...states.values()].flatMap(({ wanted }) => wanted),
    actual: [...states.values()].flatMap(({ mounted }) => [...mounted.values()].map(({ pluginName }) => pluginName)),
  }));
  const timed: VolumeMetrics["time"] = async (pluginName, operation, work) =>
    await (options.metrics?.time(pluginName, operation, work) ?? work());

  const tell = (podUID: string) => {
    for (const listener of listeners) listener(podUID);
  };
  const stopListening = [
    objects.onChange((kind, namespace, name) => {
      for (const podUID of podsOfRef.get(refKey({ kind, namespace, name })) ?? []) tell(podUID);
    }),
    ...(options.kinds ?? []).flatMap((kind) => kind.subscribe?.(tell) ?? []),
  ];

  /** Known before anything is read: a change in between must not be missed. */
  function track(podUID: string, refs: Set<string>): PodState {
    const state = states.get(podUID) ?? newState();
    states.set(podUID, state);
    untrackRefs(podUID, state);
    for (const key of refs) {
      const podUIDs = podsOfRef.get(key) ?? new Set();
      podsOfRef.set(key, podUIDs.add(podUID));
    }
    state.refs = refs;
    return state;
  }

  function untrackRefs(podUID: string, state: PodState): void {
    for (const key of state.refs) {
      const podUIDs = podsOfRef.get(key);
      podUIDs?.delete(podUID);
      if (podUIDs?.size === 0) podsOfRef.delete(key);
    }
  }

  /** What `volume` is made from, looked up anew each time: a claim may have grown since. */
  async function resolve(pod: Pod, volume: Volume, state: PodState, signal: AbortSignal): Promise<Resolved> {
    const isBlock = isUsedAsBlock(pod, volume.name);
    if (volume.persistentVolumeClaim === undefined && volume.ephemeral === undefined) {
      return { kind: kinds.kindOf(volume), specName: volume.name, bound: undefined, isBlock, otherPods: [] };
    }
    if (options.claims === undefined) {
      throw new AgentError("Invalid", "a PersistentVolumeClaim needs an API server, and this node has none");
    }
    const bound = await options.claims.resolve(pod, volume, signal);
    const specName = bound.volume.metadata.name;
    state.persistentVolumes.add(specName); // before anybody else looks
    const others = [...states].filter(([, other]) => other !== state && other.persistentVolumes.has(specName));
    return { kind: kinds.kindOf(bound.volume.spec), specName, bound, isBlock, otherPods: others.map(([uid]) => uid) };
  }

  async function setUpVolume(pod: Pod, volume: Volume, podDir: string, state: PodState, signal: AbortSignal) {
    const last = state.mounted.get(volume.name);
    if (last?.isRefreshed === false) return undefined;
    const onEnd = options.onSetUp?.(pod, volume.name);
    let dir: string | undefined;
    let isRefreshed = last !== undefined;
    try {
      const { kind, ...resolved } = await resolve(pod, volume, state, signal);
      const { isBlock, specName, bound } = resolved;
      const { pluginName } = kind;
      if (isBlock && kind.takesBlock !== true) {
        throw new AgentError("Invalid", `${pluginName} cannot be used through volumeDevices`);
      }
      dir = isBlock ? blockLinkOf(podDir, pluginName, specName) : volumeDirOf(podDir, pluginName, specName);
      isRefreshed ||= kind.isRefreshed;
      const context = { pod, volume, podDir, dir, deps, signal, ...resolved };
      const work = async () => await kind.setUp(context);
      const result = await (last === undefined ? timed(pluginName, "volume_mount", work) : work());
      state.mounted.set(volume.name, {
        pluginName,
        specName,
        bound,
        isBlock,
        hostPath: result.hostPath,
        isReadOnly: result.isReadOnly ?? kind.isReadOnly,
        isRelabelled: result.isRelabelled ?? kind.isRelabelled,
        isRefreshed: result.isRefreshed ?? kind.isRefreshed,
        supplementalGroup: result.supplementalGroup,
      });
      onEnd?.();
      return result;
    } catch (err) {
      onEnd?.(err);
      // Content that is there, perhaps from before a restart, is served on: what it came from may only be out of reach.
      if (signal.aborted || isAbort(err) || !isRefreshed) throw err;
      if (last === undefined) {
        const kind = kinds.kindOf(volume);
        if (dir === undefined || !(await hasPublishedContent(dir))) throw err;
        const { pluginName, isReadOnly, isRelabelled } = kind;
        state.mounted.set(volume.name, {
          pluginName,
          specName: volume.name,
          bound: undefined,
          isBlock: false,
          hostPath: dir,
          isReadOnly,
          isRelabelled,
          isRefreshed,
          supplementalGroup: undefined,
        });
      }
      const message = failedMount(volume, err);
      log.warn({ ...podFields(pod), volume: volume.name, err: messageOf(err) }, "volume content is not up to date");
      options.onEvent?.(pod, "Warning", "FailedMount", message);
      return "stale";
    }
  }

  async function setUp(pod: Pod, signal: AbortSignal): Promise<void> {
    const podUID = pod.metadata.uid ?? "";
    const podDir = podDirOf(await realpath(rootDir), podUID);
    const volumes = usedVolumes(pod);
    const state = track(podUID, new Set(volumeRefs(pod, volumes).map(refKey)));
    state.wanted = volumes.flatMap((volume) => pluginNameOf(volume, kinds));
    await Promise.all(
      ["volumes", "plugins"].map((name) => mkdir(join(podDir, name), { recursive: true, mode: 0o750 })),
    );
    const outcomes = await Promise.allSettled(volumes.map((volume) => setUpVolume(pod, volume, podDir, state, signal)));
    signal.throwIfAborted();
    const errors: AgentError[] = [];
    const results: (SetUpResult | "stale" | undefined)[] = [];
    outcomes.forEach((outcome, at) => {
      const volume = volumes[at];
      if (outcome.status === "fulfilled") results.push(outcome.value);
      else if (volume !== undefined) errors.push(volumeError(volume, outcome.reason));
    });
    const isBehind = errors.length > 0 || results.includes("stale");
    state.failures = isBehind ? state.failures + 1 : 0;
    state.nextAtMs = isBehind
      ? clock.now() + backoffMs(state.failures, { ...retryBackoff, random })
      : nextRefresh(state, results);
    const [first] = errors;
    if (first !== undefined) {
      throw new AgentError(first.code, errors.map(messageOf).join("; "), { cause: first });
    }
  }

  function nextRefresh(state: PodState, results: readonly (SetUpResult | "stale" | undefined)[]): number | undefined {
    const times = results.flatMap((result) =>
      typeof result === "object" && result.refreshAtMs !== undefined ? [result.refreshAtMs] : [],
    );
    if (state.refs.size > 0) times.push(clock.now() + resyncMs * (1 + resyncJitter * random()));
    return times.length === 0 ? undefined : Math.min(...times);
  }

  async function mounts(
    pod: Pod,
    container: Container,
    env: ReadonlyMap<string, string>,
    context: MountContext,
  ): Promise<Mount[]> {
    const podUID = pod.metadata.uid ?? "";
    const podDir = podDirOf(await realpath(rootDir), podUID);
    const mounted = states.get(podUID)?.mounted;
    const result: Mount[] = [];
    for (const [index, mount] of (container.volumeMounts ?? []).entries()) {
      const volume = mounted?.get(mount.name);
      if (volume === undefined) {
        throw new AgentError(
          "Invalid",
          `cannot find volume "${mount.name}" to mount into container "${container.name}"`,
        );
      }
      if (volume.pluginName === imageKind.pluginName) {
        const image = context.images?.get(mount.name);
        result.push(buildImageMount(mount, image, subPathOf(mount, env), { ...context, selinuxEnabled }));
        continue;
      }
      const built = buildMount(mount, volume, volume.hostPath, { ...context, selinuxEnabled });
      const subPath = subPathOf(mount, env);
      if (subPath !== undefined) {
        const target = subPathTargetOf(podDir, mount.name, container.name, index);
        const errorContext = ` for volumeMount "${mount.name}" of container "${container.name}"`;
        try {
          await prepareSubPath({ volumePath: volume.hostPath, subPath, target, errorContext });
        } catch (err) {
          // The event is kept from showing the node's paths to the pod's author; the log has them.
          const cause = err instanceof Error ? messageOf(err.cause) : "";
          log.warn(
            { ...podFields(pod), container: container.name, volume: mount.name, subPath, cause },
            "subPath failed",
          );
          throw err;
        }
        built.hostPath = target;
      }
      result.push(built);
    }
    return result;
  }

  function devices(podUID: string, container: Container): BlockDevice[] {
    const mounted = states.get(podUID)?.mounted;
    return (container.volumeDevices ?? []).flatMap(({ name, devicePath }) => {
      if (!posix.isAbsolute(devicePath)) {
        throw new AgentError("Invalid", `volumeDevice "${name}": devicePath "${devicePath}" must be absolute`);
      }
      const volume = mounted?.get(name);
      if (volume?.isBlock !== true) {
        throw new AgentError("Invalid", `cannot find volume "${name}" to pass into container "${container.name}"`);
      }
      const permissions = volume.isReadOnly ? "r" : "mrw";
      return volume.hostPath === "" ? [] : [{ hostPath: volume.hostPath, containerPath: devicePath, permissions }];
    });
  }

  return {
    setUp,
    mounts,
    devices,
    refreshInMs(podUID) {
      const at = states.get(podUID)?.nextAtMs;
      return at === undefined ? undefined : Math.max(0, at - clock.now());
    },
    onChange(listener) {
      listeners.add(listener);
      return () => listeners.delete(listener);
    },
    async tearDown(podUID) {
      const state = states.get(podUID);
      if (state !== undefined) untrackRefs(podUID, state);
      tokens.forget(podUID);
      const work = tearDownVolumes({ podUID, podDir: podDirOf(await realpath(rootDir), podUID), kinds });
      // All go at once: what that took counts for each.
      const mounted = [...(state?.mounted.values() ?? [])];
      await Promise.all(mounted.map(({ pluginName }) => timed(pluginName, "volume_unmount", async () => await work)));
      await work;
      states.delete(podUID);
    },
    supplementalGroups(podUID) {
      const mounted = [...(states.get(podUID)?.mounted.values() ?? [])];
      return mounted.flatMap(({ supplementalGroup }) => (supplementalGroup === undefined ? [] : [supplementalGroup]));
    },
    async podUIDsOnDisk() {
      const entries = await readdir(join(rootDir, "pods"), { withFileTypes: true }).catch(ignoreErrno("ENOENT"));
      return (entries ?? []).filter((entry) => entry.isDirectory()).map((entry) => entry.name);
    },
    async removePodDir(podUID) {
      if (states.has(podUID)) {
        throw new AgentError("Internal", `will not remove the directory of pod ${podUID}: its volumes are in use`);
      }
      await removePodDir(podDirOf(await realpath(rootDir), podUID));
    },
    async readVolumeFile(podUID, volumeName, path) {
      const volume = states.get(podUID)?.mounted.get(volumeName);
      if (volume === undefined) throw new AgentError("NotFound", `volume "${volumeName}" is not mounted`);
      return readFileInside(volume.hostPath, path);
    },
    mounted: (podUID, volumeName) => states.get(podUID)?.mounted.get(volumeName),
    close() {
      for (const stop of stopListening) stop();
    },
  };
}

/** Volumes that some container mounts; others are ignored, even if they could not be set up. */
export function usedVolumes(pod: Pod): Volume[] {
  const names = new Set(
    allContainers(pod).flatMap(({ volumeMounts = [], volumeDevices = [] }) =>
      [...volumeMounts, ...volumeDevices].map(({ name }) => name),
    ),
  );
  return (pod.spec.volumes ?? []).filter(({ name }) => names.has(name));
}

interface Resolved {
  kind: VolumeKind;
  specName: string;
  bound: BoundClaim | undefined;
  isBlock: boolean;
  otherPods: readonly string[];
}

function isUsedAsBlock(pod: Pod, volumeName: string): boolean {
  return allContainers(pod).some(({ volumeDevices = [] }) => volumeDevices.some(({ name }) => name === volumeName));
}

function newState(): PodState {
  return {
    wanted: [],
    mounted: new Map(),
    persistentVolumes: new Set(),
    refs: new Set(),
    failures: 0,
    nextAtMs: undefined,
  };
}

/** Empty for kinds that cannot be set up. */
function pluginNameOf(volume: Volume, kinds: KindTable): string[] {
  try {
    return [kinds.kindOf(volume).pluginName];
  } catch {
    return [];
  }
}

async function readFileInside(base: string, path: string): Promise<string> {
  const handle = await openInside(base, path);
  try {
    const stat = await handle.stat();
    if (!stat.isFile()) throw new AgentError("Invalid", `"${path}" is not a file`);
    if (stat.size > volumeFileBytesMax) {
      throw new AgentError("Invalid", `"${path}" is larger than ${volumeFileBytesMax} bytes`);
    }
    const file = await open(fdPath(handle), "r");
    try {
      return await file.readFile("utf8");
    } finally {
      await file.close();
    }
  } finally {
    await handle.close();
  }
}

function failedMount(volume: Volume, err: unknown): string {
  return `MountVolume.SetUp failed for volume "${volume.name}" : ${messageOf(err)}`;
}

function volumeError(volume: Volume, err: unknown): AgentError {
  return new AgentError(err instanceof AgentError ? err.code : "Internal", failedMount(volume, err), { cause: err });
}

function podFields(pod: Pod): { pod: string; podUID: string } {
  return { pod: `${pod.metadata.namespace ?? ""}/${pod.metadata.name}`, podUID: pod.metadata.uid ?? "" };
}
