import { join } from "node:path";
import type { ApiClient, Store } from "../../kube/port.ts";
import type { CSIDriver, Node, ObjectReference } from "../../kube/types.ts";
import type { Clock } from "../../lib/clock.ts";
import { AgentError, isAbort, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { abortable } from "../../lib/abortable.ts";
import { expandIfGrown, type Expansion, newSizeState, type SizeState } from "../expand.ts";
import { giveToGroup } from "../fs-group.ts";
import { KeyedLock } from "../keyed-lock.ts";
import type { SetUpResult, TearDownContext, VolumeContext, VolumeKind } from "../kind.ts";

import { waitForAttach } from "./attach.ts";
import { mapForPod, markBlock, unmapFromPod } from "./block.ts";
import { Devices } from "./devices.ts";
import { expansionFailure } from "./errors.ts";
import { readMountTable, takesLabels } from "./mount-table.ts";
import { csiPluginName, uniqueVolumeName } from "./paths.ts";
import type { CSIDriverObjects, CSIDrivers, CSIMap } from "./port.ts";
import { deviceOf, isBegun, publishPathOf, type Published, publishVolume } from "./publish.ts";
import { ReportedVolumes } from "./reported.ts";
import { readSecret, secretsOfVolumes } from "./requests.ts";
import type { SELinuxMetrics } from "./metrics.ts";
import { mountContextOf, readFileContext } from "./selinux.ts";
import { unpublishTarget } from "./tear-down.ts";
import { readVolumeData } from "./volume-data.ts";
import {
  checkLifecycle,
  type CSIVolume,
  needsAttach,
  needsFSGroup,
  readCSIVolume,
  volumeCapability,
} from "./volume.ts";
import { inStep, VolumeStepError } from "../step-error.ts";

export interface CSIVolumesOptions {
  /** kubelet's root directory, resolved. */
  rootDir: string;
  nodeName: string;
  /** undefined: there is no API server. */
  client: ApiClient | undefined;
  drivers: CSIDrivers;
  objects: CSIDriverObjects;
  /** Holds at most one object: the own Node. */
  ownNode: Store<Node>;
  selinuxEnabled: boolean;
  selinux?: SELinuxMetrics;
  /** Asks a driver anew how many volumes the node takes, and writes it into the CSINode. Never rejects. */
  refreshLimit?(driver: string, signal: AbortSignal): Promise<void>;
  /** Records an event about a claim. */
  event(about: ObjectReference, type: "Normal" | "Warning", reason: string, message: string): void;
  clock: Clock;
  log: Logger;
  random?: () => number;
}

/** CSI volumes of this node: the kind for pods' volumes, and what goes on beside it. */
export interface CSIVolumes {
  readonly kind: VolumeKind;
  /** Unique names of the volumes that must not be detached, sorted; undefined while not known. */
  volumesInUse(): string[] | undefined;
  /** Calls `listener` when {@link volumesInUse} may have changed. @returns ends it */
  subscribeInUse(listener: () => void): () => void;
  /** Unstages what no pod uses any more, until `signal` aborts. */
  run(signal: AbortSignal): Promise<void>;
}

// How often a driver that asks for it is told of a volume again: kubelet does so at each pod sync, 1 min × 1–1.5. Sizes are looked at
// as often (see expand.ts).
export const refreshMs = 60_000;
export const refreshJitter = 0.5;

/** What we know of one volume of one pod; all of it can be found again by setting it up. */
interface PodVolume {
  podUID: string;
  driver: string;
  /** Its unique name; undefined for one that only this pod can have. */
  volumeName: string | undefined;
  /** What the driver was told is in place. */
  isPublished: boolean;
  /** It was ready once: its containers may use it. */
  isReady: boolean;
  isFromBefore: boolean | undefined;
  publishContext: CSIMap;
  /** Monotonic ms since when it waits to be attached. */
  attachSinceMs: number | undefined;
  /** Unix ms at which the driver is to be told again. */
  repeatAtMs: number;
  size: SizeState;
  canExpand: boolean;
  /** What it waits for that will be heard of. */
  waitsFor: "driver" | "attach" | undefined;
}

/** Makes the CSI volumes of this node. Nothing is read or asked before something is set up, or `run`. */
export function createCSIVolumes(options: CSIVolumesOptions): CSIVolumes {
  const volumes = new Volumes(options);
  return {
    kind: {
      field: "csi",
      pluginName: csiPluginName,
      isReadOnly: false,
      isRelabelled: false,
      isRefreshed: false,
      takesBlock: true,
      setUp: (context) => volumes.setUp(context),
      tearDown: (context) => volumes.tearDown(context),
      forget: (podUID) => volumes.forget(podUID),
      subscribe: (listener) => volumes.subscribe(listener),
    },
    volumesInUse: () => volumes.reported.list(),
    subscribeInUse: (listener) => volumes.reported.subscribe(listener),
    run: (signal) => volumes.run(signal),
  };
}

class Volumes {
  readonly reported: ReportedVolumes;
  readonly #options: CSIVolumesOptions;
  readonly #devices: Devices;
  readonly #locks = new KeyedLock();
  readonly #states = new Map<string, PodVolume>();
  readonly #random: () => number;
  #stop = new AbortController().signal;
  #fileContext: Promise<string> | undefined;

  constructor(options: CSIVolumesOptions) {
    this.#options = options;
    this.#random = options.random ?? Math.random;
    this.reported = new ReportedVolumes(options.objects, options.log);
    this.#devices = new Devices(options, {
      isWanted: (name) => [...this.#states.values()].some(({ volumeName }) => volumeName === name),
      onSwept: (onDisk) => this.reported.found(onDisk, this.#stop),
    });
  }

  async run(signal: AbortSignal): Promise<void> {
    this.#stop = signal;
    await this.#devices.run(signal);
  }

  /**
   * What a driver was asked is not taken back when the pod is deleted meanwhile: nobody would know what it did. The pod waits
   * no longer, but its tear-down begins only after the driver's answer.
   */
  async setUp(context: VolumeContext): Promise<SetUpResult> {
    const { signal } = context;
    const volume = readCSIVolume(context);
    const key = podVolumeKey(context.podDir, context.specName);
    const state = this.#stateOf(key, context, volume);
    const work = this.#locks.run(key, async () => await this.#setUp(volume, context, { key, state }), signal);
    try {
      const result = await abortable(work, signal);
      state.waitsFor = undefined;
      return result;
    } catch (err) {
      if (signal.aborted) throw err;
      state.waitsFor = waitingFor(err, this.#options.drivers, volume.driver);
      // The driver's "Canceled" is nobody's wish to stop.
      if (isAbort(err)) throw new AgentError("Unavailable", messageOf(err), { cause: err });
      throw err;
    }
  }

  async tearDown(context: TearDownContext): Promise<void> {
    const key = podVolumeKey(context.podDir, context.specName);
    await this.#locks.run(key, async () => {
      const state = this.#states.get(key);
      if (state !== undefined) state.isPublished = false;
      await (context.isBlock ? unmapFromPod : unpublishTarget)(context, this.#options);
      this.#drop(key);
    });
  }

  /** All volumes of a pod are gone, also those that it only wanted. */
  forget(podUID: string): void {
    for (const [key, state] of this.#states) if (state.podUID === podUID) this.#drop(key);
  }

  #drop(key: string): void {
    this.#states.delete(key);
    this.reported.unwant(key);
    this.#devices.wake();
  }

  subscribe(listener: (podUID: string) => void): () => void {
    const wake = (isDue: (state: PodVolume) => boolean) => {
      const due = [...this.#states.values()].filter((state) => state.waitsFor !== undefined && isDue(state));
      for (const podUID of new Set(due.map((state) => state.podUID))) listener(podUID);
    };
    const stops = [
      this.#options.drivers.subscribe((driver) => wake((state) => state.driver === driver)),
      this.#options.objects.subscribe((driver) => wake((state) => state.driver === driver)),
      this.#options.ownNode.subscribe(({ old, object }) => {
        if (attachments(old) !== attachments(object)) wake(({ waitsFor }) => waitsFor === "attach");
      }),
    ];
    return () => {
      for (const stop of stops) stop();
    };
  }

  #stateOf(key: string, { pod }: VolumeContext, { driver, handle, isEphemeral }: CSIVolume): PodVolume {
    const state = this.#states.get(key) ?? {
      podUID: pod.metadata.uid ?? "",
      driver,
      volumeName: isEphemeral ? undefined : uniqueVolumeName(driver, handle),
      isPublished: false,
      isReady: false,
      isFromBefore: undefined,
      publishContext: {},
      attachSinceMs: undefined,
      repeatAtMs: 0,
      size: newSizeState(),
      canExpand: false,
      waitsFor: undefined,
    };
    this.#states.set(key, state);
    return state;
  }

  async #setUp(
    volume: CSIVolume,
    context: VolumeContext,
    { key, state }: { key: string; state: PodVolume },
  ): Promise<SetUpResult> {
    const { objects, clock } = this.#options;
    const { signal, isBlock } = context;
    const object = await objects.csiDriver(volume.driver, signal);
    await inStep("NewMounter initialization", async () => checkLifecycle(volume, object));
    if (!state.isPublished && needsAttach(volume, object)) {
      this.reported.want(key, uniqueVolumeName(volume.driver, volume.handle));
      state.publishContext = await this.#attached(volume, object, state, signal);
    }
    const isRepublished = object?.spec.requiresRepublish === true;
    const label = await this.#labelOf(volume, context, object);
    const isFirst = !state.isPublished;
    if (isFirst || (isRepublished && clock.now() >= state.repeatAtMs)) {
      const published = await this.#publish({ volume, context, object, label }, state);
      if (isBlock) await mapForPod(context, this.#options.rootDir);
      else await this.#giveToGroup(volume, context, object, published);
      state.isPublished = true;
      if (isFirst && state.isFromBefore !== true && label !== undefined) this.#options.selinux?.admitted(volume.driver);
      state.canExpand = published.capabilities.has("EXPAND_VOLUME");
      state.repeatAtMs = Math.min(this.#laterMs(), published.refreshAtMs ?? Number.POSITIVE_INFINITY);
    }
    const expandAgainInMs = await this.#expand(volume, context, state);
    state.isReady = true;
    const times = [
      ...(isRepublished ? [state.repeatAtMs] : []),
      ...(context.bound !== undefined && state.canExpand ? [this.#laterMs()] : []),
      ...(expandAgainInMs === undefined ? [] : [clock.now() + expandAgainInMs]),
    ];
    return {
      hostPath: isBlock ? context.dir : publishPathOf(this.#options.rootDir, context),
      isReadOnly: volume.isReadOnly,
      isRelabelled: !isBlock && label === undefined && !volume.isReadOnly && (await this.#takesLabels(context)),
      isRefreshed: times.length > 0,
      ...(times.length === 0 ? {} : { refreshAtMs: Math.min(...times) }),
    };
  }

  async #attached(
    { driver, handle }: CSIVolume,
    object: CSIDriver | undefined,
    state: PodVolume,
    signal: AbortSignal,
  ): Promise<CSIMap> {
    const { refreshLimit, clock } = this.#options;
    const isLimitKnown = (object?.spec.nodeAllocatableUpdatePeriodSeconds ?? 0) > 0;
    state.attachSinceMs ??= clock.monotonic();
    const awaited = {
      driver,
      handle,
      sinceMs: state.attachSinceMs,
      refreshLimit: isLimitKnown ? async () => await refreshLimit?.(driver, signal) : undefined,
    };
    const publishContext = await waitForAttach(awaited, this.#options, signal);
    state.attachSinceMs = undefined;
    return publishContext;
  }

  async #publish(
    what: { volume: CSIVolume; context: VolumeContext; object: CSIDriver | undefined; label: string | undefined },
    state: PodVolume,
  ): Promise<Published> {
    const { context } = what;
    state.isFromBefore ??= await isBegun(context);
    if (context.isBlock) await markBlock(context, this.#options.rootDir);
    const { isPublished: isRepeated, isFromBefore, publishContext } = state;
    const deps = { ...this.#options, devices: this.#devices };
    return await publishVolume({ ...what, publishContext, isRepeated, isFromBefore }, deps);
  }

  async #labelOf(
    volume: CSIVolume,
    context: VolumeContext,
    object: CSIDriver | undefined,
  ): Promise<string | undefined> {
    if (!this.#options.selinuxEnabled || context.isBlock) return undefined;
    // What it is mounted with stays for as long as the pod has it.
    const known = await readVolumeData(context.dir).catch(() => undefined);
    if (known !== undefined) return known.seLinuxMountContext;
    this.#fileContext ??= readFileContext();
    const fileContext = await this.#fileContext;
    try {
      return mountContextOf(context.pod, context.volume.name, volume, object, fileContext);
    } catch (err) {
      this.#options.selinux?.podMismatch();
      throw err;
    }
  }

  async #takesLabels(context: VolumeContext): Promise<boolean> {
    if (!this.#options.selinuxEnabled) return false;
    return takesLabels(await readMountTable(), publishPathOf(this.#options.rootDir, context));
  }

  async #giveToGroup(
    volume: CSIVolume,
    context: VolumeContext,
    object: CSIDriver | undefined,
    { capabilities }: Published,
  ): Promise<void> {
    const { fsGroup } = context.pod.spec.securityContext ?? {};
    if (fsGroup === undefined || !needsFSGroup(volume, fsGroup, object, capabilities)) return;
    const { clock, log, rootDir } = this.#options;
    await giveToGroup(publishPathOf(rootDir, context), fsGroup, context, clock, (err) => {
      log.debug({ volume: context.specName, err: messageOf(err) }, "fsGroup not applied to an entry");
    });
  }

  /** @returns when to try again what has failed under a running pod */
  async #expand(volume: CSIVolume, context: VolumeContext, state: PodVolume): Promise<number | undefined> {
    const expansion: Expansion = {
      isReadOnly: volume.isReadOnly,
      isPossible: state.canExpand,
      isInUse: state.isReady,
      expand: async (bytes) => await this.#nodeExpand(volume, context, bytes),
      failureOf: expansionFailure,
    };
    return await expandIfGrown(context, expansion, state.size, { ...this.#options, random: this.#random });
  }

  async #nodeExpand(volume: CSIVolume, context: VolumeContext, requiredBytes: number): Promise<void> {
    const { drivers, client, rootDir } = this.#options;
    const { isBlock, signal, specName } = context;
    const driver = drivers.client(volume.driver);
    const capabilities = await driver.nodeGetCapabilities();
    const isStaged = capabilities.has("STAGE_UNSTAGE_VOLUME");
    await driver.nodeExpandVolume({
      volumeID: volume.handle,
      volumePath: publishPathOf(rootDir, context),
      requiredBytes,
      stagingTargetPath: isStaged ? deviceOf(volume, { isBlock, specName }, rootDir).stagingPath : "",
      capability: volumeCapability(volume, capabilities, {
        isBlock,
        fsGroup: context.pod.spec.securityContext?.fsGroup,
        mountFlags: volume.mountOptions,
      }),
      secrets: await readSecret(secretsOfVolumes(client), volume.expandSecret, "NodeExpandSecretRef", signal),
    });
  }

  #laterMs(): number {
    return this.#options.clock.now() + refreshMs * (1 + refreshJitter * this.#random());
  }
}

function podVolumeKey(podDir: string, specName: string): string {
  return join(podDir, specName);
}

/** What an error is about that we hear of when it changes. */
function waitingFor(err: unknown, drivers: CSIDrivers, driver: string): PodVolume["waitsFor"] {
  const step = err instanceof VolumeStepError ? err.step : undefined;
  if (step === "VerifyControllerAttachedVolume" || step === "WaitForAttach") return "attach";
  return step === "NewMounter initialization" || !isRegistered(drivers, driver) ? "driver" : undefined;
}

function isRegistered(drivers: CSIDrivers, driver: string): boolean {
  try {
    drivers.client(driver);
    return true;
  } catch {
    return false;
  }
}

function attachments(node: Node | undefined): string {
  const { volumesAttached = [], volumesInUse = [] } = node?.status ?? {};
  return JSON.stringify([volumesAttached.map(({ name }) => name), volumesInUse]);
}
