import { mkdir, readdir, realpath } from "node:fs/promises";
import { join } from "node:path";
import type { ApiClient } from "../kube/port.ts";
import { uidOf, usedVolumes } from "../kube/pod-resources.ts";
import type { PersistentVolume, Pod, ResourceList, Volume } from "../kube/types.ts";
import { backoffMs } from "../lib/backoff.ts";
import type { Clock } from "../lib/clock.ts";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { createTmpfsMounter } from "../lib/tmpfs-mounts.ts";
import { containerDevices, containerMounts } from "./container-volumes.ts";
import { PodDirError, VolumesError } from "./failures.ts";
import { createPersistentVolumeUsers } from "./in-use.ts";
import type { ExpansionDeps, VolumeDeps, VolumeKind } from "./kind.ts";
import { type KindTable, kindTable } from "./kinds.ts";
import type { VolumeMetrics } from "./metrics.ts";
import { refKey, volumeRefs } from "./object-refs.ts";
import { removePodDir } from "./pod-dirs.ts";
import { type MountedVolume, type PodState, PodStates } from "./pod-states.ts";
import type { ObjectSource, PodVolumes } from "./port.ts";
import { type ClaimResolver, type SetUpOutcome, setUpVolume, type VolumeSetUpDeps } from "./set-up.ts";
import { countFound, tearDownVolumes } from "./tear-down.ts";
import { createTmpfsProbe } from "./tmpfs-probe.ts";
import { createTokenManager } from "./tokens.ts";
import { readFileInside } from "./volume-file.ts";
import { isPodUID, podDirOf } from "./pod-paths.ts";

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
  /**
   * Records an event about the pod: a mounted volume whose content could not be brought up to date, and what kinds have to
   * say. What makes `setUp` reject is in its error instead.
   */
  onEvent?(pod: Pod, type: "Normal" | "Warning", reason: string, message: string): void;
  /** Records an event about a PersistentVolume that is not what it is said to be. */
  onVolumeEvent?(volume: PersistentVolume, type: "Normal" | "Warning", reason: string, message: string): void;
  random?: () => number;
  metrics?: VolumeMetrics;
  /** Kinds beside those that need nothing of their own. */
  kinds?: readonly VolumeKind[];
  /** undefined: there is no API server, hence no claims. */
  claims?: ClaimResolver;
  /** Who is told when a volume has grown; undefined: those without a driver stay as large as they are. */
  expansion?: ExpansionDeps;
  /** Told when the set-up of a volume begins. @returns to be called when it has ended, with the error if it failed */
  onSetUp?(pod: Pod, volume: string): (err?: unknown) => void;
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
const never = new AbortController().signal;

/** Makes the {@link PodVolumes} of this node. */
export function createPodVolumes(options: PodVolumesOptions): VolumeManager {
  const { rootDir, objects, clock, log, selinuxEnabled, random = Math.random } = options;
  const tokens = createTokenManager({ client: options.client, clock, log, random });
  const deps: VolumeDeps = {
    objects,
    tokens,
    clock,
    nodeAllocatable: options.nodeAllocatable,
    tmpfsTakesNoswap: createTmpfsProbe(rootDir, log),
    tmpfs: createTmpfsMounter(join(rootDir, ".tmpfs-mounts")),
    ...(options.expansion === undefined ? {} : { expansion: options.expansion }),
  };
  const kinds = kindTable(options.kinds);
  const states = new PodStates();
  const users = createPersistentVolumeUsers(rootDir);
  const listeners = new Set<(podUID: string) => void>();
  const wake = (podUID: string) => {
    for (const listener of listeners) listener(podUID);
  };
  options.metrics?.follow(() => ({
    desired: states.all().flatMap(({ wanted }) => wanted),
    actual: states.all().flatMap(({ mounted }) => [...mounted.values()].map(({ pluginName }) => pluginName)),
  }));
  const timed: VolumeMetrics["time"] = async (of, work) => await (options.metrics?.time(of, work) ?? work());
  const stopListening = [
    objects.onChange((kind, namespace, name) => {
      for (const podUID of states.podsShowing(refKey({ kind, namespace, name }))) wake(podUID);
    }),
    ...(options.kinds ?? []).flatMap((kind) => kind.subscribe?.(wake) ?? []),
  ];
  const setUpDeps: VolumeSetUpDeps = {
    deps,
    kinds,
    claims: options.claims,
    users,
    wake,
    log,
    onEvent: (about, ...event) => {
      if (isPod(about)) options.onEvent?.(about, ...event);
      else options.onVolumeEvent?.(about, ...event);
    },
    onSetUp: (pod, volume) => options.onSetUp?.(pod, volume) ?? (() => {}),
    timed: async (of, work) => await timed({ ...of, operation: "volume_mount" }, work),
  };
  const dirOf = async (podUID: string) => podDirOf(await realpath(rootDir), podUID);

  async function makePodDir(podUID: string): Promise<string> {
    try {
      const podDir = await dirOf(podUID);
      const made = ["volumes", "plugins"].map((name) => mkdir(join(podDir, name), { recursive: true, mode: 0o750 }));
      await Promise.all(made);
      return podDir;
    } catch (err) {
      throw new PodDirError(err);
    }
  }

  async function setUp(pod: Pod, signal: AbortSignal): Promise<void> {
    const podUID = uidOf(pod);
    const podDir = await makePodDir(podUID);
    const volumes = usedVolumes(pod);
    const state = states.track(podUID, new Set(volumeRefs(pod, volumes).map(refKey)));
    state.wanted = volumes.flatMap(
      (volume) => state.mounted.get(volume.name)?.pluginName ?? pluginNameOf(volume, kinds),
    );
    // One that must not go on does not leave the others running behind its back.
    const settled = await Promise.allSettled(
      volumes.map(async (volume) => await setUpVolume({ pod, volume, podDir, state }, setUpDeps, signal)),
    );
    signal.throwIfAborted();
    const outcomes = settled.map((one) => {
      if (one.status === "rejected") throw one.reason;
      return one.value;
    });
    const isBehind = outcomes.some(({ kind }) => kind === "failed" || kind === "stale");
    state.failures = isBehind ? state.failures + 1 : 0;
    state.nextAtMs = isBehind
      ? clock.now() + backoffMs(state.failures, { ...retryBackoff, random })
      : nextRefresh(state, outcomes);
    const failures = outcomes.flatMap((outcome) => (outcome.kind === "failed" ? [outcome.failure] : []));
    if (failures.length > 0) {
      const unmounted = volumes.flatMap(({ name }) => (state.mounted.has(name) ? [] : [name]));
      throw new VolumesError(failures, unmounted);
    }
  }

  function nextRefresh(state: PodState, outcomes: readonly SetUpOutcome[]): number | undefined {
    const times = outcomes.flatMap((outcome) =>
      outcome.kind === "done" && outcome.refreshAtMs !== undefined ? [outcome.refreshAtMs] : [],
    );
    // Also for those without such objects: what they show may have a source that tells us nothing, and a token that is good
    // until a time of day has to be looked at when somebody has set the clock.
    const isAnyRefreshed = [...state.mounted.values()].some(({ isRefreshed }) => isRefreshed);
    if (isAnyRefreshed) times.push(clock.now() + resyncMs * (1 + resyncJitter * random()));
    return times.length === 0 ? undefined : Math.min(...times);
  }

  return {
    setUp,
    async mounts(pod, container, env, context) {
      const podUID = uidOf(pod);
      const { mounted } = states.get(podUID) ?? { mounted: undefined };
      const podDir = await dirOf(podUID);
      return await containerMounts(
        { pod, podDir, mounted, context: { ...context, selinuxEnabled }, log, signal: context.signal ?? never },
        container,
        env,
      );
    },
    devices: (podUID, container) => containerDevices(states.get(podUID)?.mounted, container),
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
      states.untrack(podUID);
      tokens.forget(podUID);
      const podDir = await dirOf(podUID);
      const tearDown = async () => await tearDownVolumes({ podUID, podDir, kinds });
      const work = state === undefined ? countFound(podDir, kinds, tearDown, options.metrics) : tearDown();
      // All go at once: what that took counts for each.
      const mounted = [...(state?.mounted.entries() ?? [])];
      const operation = "volume_unmount";
      await Promise.all(
        mounted.map(async ([volume, { pluginName }]) => {
          await timed({ podUID, volume, pluginName, operation }, async () => await work);
        }),
      );
      await work;
      states.delete(podUID);
      options.metrics?.forget(podUID);
      for (const kind of options.kinds ?? []) kind.forget?.(podUID);
      for (const waiting of users.releaseAll(podUID)) wake(waiting);
    },
    supplementalGroups(podUID) {
      const mounted = [...(states.get(podUID)?.mounted.values() ?? [])];
      return mounted.flatMap(({ supplementalGroup }) => (supplementalGroup === undefined ? [] : [supplementalGroup]));
    },
    async podUIDsOnDisk() {
      const entries = await readdir(join(rootDir, "pods"), { withFileTypes: true }).catch(ignoreErrno("ENOENT"));
      return (entries ?? []).filter((entry) => entry.isDirectory() && isPodUID(entry.name)).map(({ name }) => name);
    },
    async removePodDir(podUID) {
      if (states.get(podUID) !== undefined) {
        throw new AgentError("Internal", `will not remove the directory of pod ${podUID}: its volumes are in use`);
      }
      await removePodDir(await dirOf(podUID));
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

function isPod(object: Pod | PersistentVolume): object is Pod {
  return "containers" in object.spec;
}

/** Empty for kinds that cannot be set up, and for claims: what is behind them is not known before they are resolved. */
function pluginNameOf(volume: Volume, kinds: KindTable): string[] {
  if (volume.persistentVolumeClaim !== undefined || volume.ephemeral !== undefined) return [];
  try {
    return [kinds.kindOf(volume).pluginName];
  } catch {
    return [];
  }
}
