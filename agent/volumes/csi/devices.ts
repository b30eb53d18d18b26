import { mkdir, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { backoffMs } from "../../lib/backoff.ts";
import type { Clock } from "../../lib/clock.ts";
import { ignoreErrno } from "../../lib/errno.ts";
import { AgentError, messageOf } from "../../lib/errors.ts";
import type { Logger } from "../../lib/log.ts";
import { Loop } from "../../lib/loop.ts";
import { namesIn } from "../../lib/names-in.ts";
import { KeyedLock } from "../keyed-lock.ts";
import { blockLinkOf } from "../pod-paths.ts";
import { unmapFromPod } from "./block.ts";
import type { SELinuxMetrics } from "./metrics.ts";
import { isMountedAt, readMountTable, sameMountsUnder } from "./mount-table.ts";
import {
  blockDirName,
  blockPathsOf,
  csiDirName,
  csiPluginName,
  csiRootOf,
  stagingPathOf,
  uniqueVolumeName,
} from "./paths.ts";
import { type CSIDrivers, isFinalError } from "./port.ts";
import { readVolumeData, removeVolumeData, type VolumeData, writeVolumeData } from "./volume-data.ts";

// kubelet's backoff of one volume's operation.
export const unstageBackoff = { baseMs: 500, maxMs: 122_000 };
// How often what is staged is compared with what is used although nothing was heard.
export const sweepMs = 60_000;
// A device that does not go is looked at again when its turn comes, not when others' come.
const sweepIntervalMsMin = 50;

export interface DevicesDeps {
  /** Resolved. */
  rootDir: string;
  drivers: CSIDrivers;
  clock: Clock;
  log: Logger;
  selinux?: Pick<SELinuxMetrics, "volumeMismatch">;
}

/** One volume as it is, or will be, staged on this node for all pods that use it. */
export interface Device {
  driver: string;
  handle: string;
  /** Of a block volume the PersistentVolume's name, by which its directories are called. */
  blockName: string | undefined;
  /** Holds what is written about it. */
  dataDir: string;
  stagingPath: string;
}

export function deviceKey({ driver, handle }: Pick<Device, "driver" | "handle">): string {
  return uniqueVolumeName(driver, handle);
}

/**
 * What is staged on this node. A volume is staged once, however many pods use it, and unstaged after the last of them. Who uses
 * it is read from the disk each time:
 *
 *   write what it is → NodeStageVolume → (a pod's target is written down → NodePublishVolume …) → … → NodeUnstageVolume → remove
 *
 * so that an agent that was killed between any two steps finds all of it again.
 */
export class Devices {
  readonly #deps: DevicesDeps;
  readonly #locks = new KeyedLock();
  /** Staged by this agent; others that are on the disk are staged again, which is for the driver to notice. */
  readonly #staged = new Set<string>();
  /** Cleaning that goes on, by device. */
  readonly #cleaning = new Map<string, Promise<void>>();
  readonly #failures = new Map<string, { count: number; nextAtMs: number }>();
  /** What is wrong with data that cannot be read, by its directory. */
  #unreadable: ReadonlyMap<string, string> = new Map();
  readonly #loop: Loop;
  /** What pods of this agent want, by pod volume. */
  readonly #isWanted: (key: string) => boolean;
  readonly #onSwept: (onDisk: ReadonlySet<string>) => void;

  /**
   * @param options.isWanted true while some pod is about to use a device
   * @param options.onSwept told after each look at the disk which volumes are there, for pods or staged
   */
  constructor(
    deps: DevicesDeps,
    options: { isWanted(key: string): boolean; onSwept(onDisk: ReadonlySet<string>): void },
  ) {
    this.#deps = deps;
    this.#isWanted = options.isWanted;
    this.#onSwept = options.onSwept;
    this.#loop = new Loop({
      clock: deps.clock,
      pass: (signal) => this.#sweep(signal),
      onError: (err) => deps.log.warn({ err: messageOf(err) }, "cannot look for CSI volumes that are left over"),
      retryMs: (failures) => backoffMs(failures, unstageBackoff),
      resyncMs: sweepMs,
      minIntervalMs: sweepIntervalMsMin,
    });
  }

  /**
   * One at a time for each volume: staging, unstaging, and deciding which of them is due. The directories of a block volume go
   * by its PersistentVolume's name, which may be another volume's by now: what is left of that one is unstaged first.
   * Rejects with code Unavailable while a pod still uses that.
   */
  async locked<T>(device: Device, work: () => Promise<T>, signal: AbortSignal): Promise<T> {
    const lockVolume = async () => await this.#locks.run(deviceKey(device), work, signal);
    const { blockName } = device;
    if (blockName === undefined) return await lockVolume();
    const lockName = async () => {
      await this.#evictOther(device, blockName, signal);
      return await lockVolume();
    };
    return await this.#locks.run(`${blockDirName}/${blockName}`, lockName, signal);
  }

  async #evictOther(device: Device, blockName: string, signal: AbortSignal): Promise<void> {
    const data = await readVolumeData(device.dataDir);
    if (data === undefined || (data.driverName === device.driver && data.volumeHandle === device.handle)) return;
    const other: Device = { ...device, driver: data.driverName, handle: data.volumeHandle };
    const evict = async () => {
      // Not by the links in pods' directories: whoever waits for the new volume has one, too.
      if (this.#isWanted(deviceKey(other)) || (await this.#podsWith(blockName)).size > 0) {
        const which = `volume ${other.handle} of driver ${other.driver}`;
        throw new AgentError("Unavailable", `a pod still has ${which}, which was PersistentVolume ${blockName} before`);
      }
      await this.#unstage(other, signal);
    };
    await this.#locks.run(deviceKey(other), evict, signal);
  }

  /**
   * Stages a volume unless that has been done. To be called under {@link locked}. One that is staged with another SELinux
   * label is unstaged first; while a pod still uses it so, this rejects with code Unavailable.
   * After an error that is final nothing of it is left, unless it may be an earlier agent's; after others it may be staged.
   */
  async stage(
    device: Device,
    label: string | undefined,
    call: () => Promise<void>,
    signal: AbortSignal,
  ): Promise<void> {
    const { dataDir, stagingPath, driver, handle } = device;
    let before = await readVolumeData(dataDir);
    if (before !== undefined && before.seLinuxMountContext !== label) {
      if (await this.#isUsed(device)) {
        this.#deps.selinux?.volumeMismatch(driver);
        throw new AgentError(
          "Unavailable",
          "the volume is still mounted with another SELinux label, waiting for its pod",
        );
      }
      await this.#unstage(device, signal);
      before = undefined;
    }
    if (this.#staged.has(stagingPath)) return;
    const isFromBefore = before !== undefined;
    await mkdir(dataDir, { recursive: true, mode: 0o750 });
    if (!isFromBefore) {
      const data: VolumeData = { volumeHandle: handle, driverName: driver };
      await writeVolumeData(dataDir, label === undefined ? data : { ...data, seLinuxMountContext: label });
    }
    try {
      await mkdir(stagingPath, { recursive: true, mode: 0o750 });
      await call();
      this.#staged.add(stagingPath);
    } catch (err) {
      if (isFinalError(err) && !isFromBefore) await this.#remove(device).catch(() => {}); // the sweep tries again
      throw err;
    }
  }

  /** Asks for a look at what is staged and not used any more. */
  wake(): void {
    this.#loop.wake();
  }

  /** Unstages what nobody uses any more, also what an earlier agent left, until `signal` aborts. */
  async run(signal: AbortSignal): Promise<void> {
    const unsubscribe = this.#deps.drivers.subscribe((driver) => {
      const own = [...this.#failures.keys()].filter((key) => key.startsWith(uniqueVolumeName(driver, "")));
      for (const key of own) this.#failures.delete(key);
      this.wake();
    });
    try {
      await this.#loop.run(signal);
    } finally {
      unsubscribe();
      await Promise.allSettled(this.#cleaning.values());
    }
  }

  async #sweep(signal: AbortSignal): Promise<number> {
    const devices = await this.#list();
    const targets = await this.#targets();
    this.#onSwept(new Set([...devices.map(deviceKey), ...targets.filter(isPersistent).map(targetKey)]));
    const keys = new Set(devices.map(deviceKey));
    for (const key of this.#failures.keys()) if (!keys.has(key)) this.#failures.delete(key);
    const nowMs = this.#deps.clock.now();
    let restMs = sweepMs;
    for (const device of devices) {
      const key = deviceKey(device);
      if (this.#cleaning.has(key)) continue;
      const dueInMs = (this.#failures.get(key)?.nextAtMs ?? nowMs) - nowMs;
      if (dueInMs > 0) restMs = Math.min(restMs, dueInMs);
      else if (await this.#isDirty(device)) this.#clean(device, signal);
    }
    return restMs;
  }

  async #isDirty(device: Device): Promise<boolean> {
    if ((await this.#orphans(device)).length > 0) return true;
    return !this.#isWanted(deviceKey(device)) && !(await this.#isUsed(device));
  }

  /** UIDs of pods that have the device, and no directory any more: nobody else would take it from them. */
  async #orphans({ blockName }: Device): Promise<string[]> {
    if (blockName === undefined) return [];
    const podUIDs = await this.#podsWith(blockName);
    if (podUIDs.size === 0) return [];
    const present = new Set(await namesIn(join(this.#deps.rootDir, "pods")));
    return [...podUIDs.difference(present)];
  }

  /** UIDs of pods that a block volume was published for. */
  async #podsWith(blockName: string): Promise<Set<string>> {
    const { publishDir, mapDir } = blockPathsOf(this.#deps.rootDir, blockName);
    return new Set([...(await namesIn(publishDir)), ...(await namesIn(mapDir))]);
  }

  /** Goes on beside the sweep: a driver that does not answer must not keep others' volumes. */
  #clean(device: Device, signal: AbortSignal): void {
    const { clock, log } = this.#deps;
    const key = deviceKey(device);
    const work = this.#cleanUp(device, signal)
      .then(() => {
        this.#failures.delete(key);
      })
      .catch((err: unknown) => {
        if (signal.aborted) return;
        const count = (this.#failures.get(key)?.count ?? 0) + 1;
        const retryInMs = backoffMs(count, unstageBackoff);
        this.#failures.set(key, { count, nextAtMs: clock.now() + retryInMs });
        log.warn({ volume: key, err: messageOf(err), retryInMs }, "what nobody uses of a CSI volume is still there");
      })
      .finally(() => {
        this.#cleaning.delete(key);
        if (!signal.aborted) this.wake();
      });
    this.#cleaning.set(key, work);
  }

  async #cleanUp(device: Device, signal: AbortSignal): Promise<void> {
    const { rootDir } = this.#deps;
    const { blockName: specName = "" } = device;
    const work = async () => {
      for (const podUID of await this.#orphans(device)) {
        const podDir = join(rootDir, "pods", podUID);
        const dir = blockLinkOf(podDir, csiPluginName, specName);
        await unmapFromPod({ podUID, podDir, specName, dir, isBlock: true }, this.#deps);
      }
      if (!this.#isWanted(deviceKey(device)) && !(await this.#isUsed(device))) await this.#unstage(device, signal);
    };
    await this.locked(device, work, signal);
  }

  async #unstage(device: Device, signal: AbortSignal): Promise<void> {
    const { driver, handle, stagingPath } = device;
    // A pod's that nothing is written of any more; drivers have mounts of their own elsewhere.
    const inPods = sameMountsUnder(await readMountTable(), stagingPath, join(this.#deps.rootDir, "pods"));
    if (inPods.length > 0) throw new AgentError("Internal", `the volume is still mounted at ${inPods.join(", ")}`);
    const client = this.#deps.drivers.client(driver);
    const capabilities = await client.nodeGetCapabilities({ signal });
    this.#staged.delete(stagingPath);
    if (capabilities.has("STAGE_UNSTAGE_VOLUME")) await client.nodeUnstageVolume(handle, stagingPath, { signal });
    await this.#remove(device);
  }

  /** Rejects, removing nothing that matters, if the volume is still staged. */
  async #remove({ stagingPath, dataDir, blockName }: Device): Promise<void> {
    if (isMountedAt(await readMountTable(), stagingPath)) {
      throw new AgentError("Internal", `the driver has not unmounted ${stagingPath}`);
    }
    await rmdir(stagingPath).catch(ignoreErrno("ENOENT"));
    if (blockName !== undefined) {
      const { publishDir, mapDir } = blockPathsOf(this.#deps.rootDir, blockName);
      for (const dir of [publishDir, mapDir]) await rmdir(dir).catch(ignoreErrno("ENOENT"));
    }
    await removeVolumeData(dataDir);
    if (blockName !== undefined) {
      await rmdir(blockPathsOf(this.#deps.rootDir, blockName).ownDir).catch(ignoreErrno("ENOENT"));
    }
  }

  async #list(): Promise<Device[]> {
    const base = csiRootOf(this.#deps.rootDir);
    const found: Device[] = [];
    const unreadable = new Map<string, string>();
    for (const driver of await namesIn(base)) {
      if (driver === blockDirName) continue;
      for (const name of await namesIn(join(base, driver))) {
        const dataDir = join(base, driver, name);
        const data = await this.#read(dataDir, unreadable);
        if (data === undefined) continue;
        const stagingPath = stagingPathOf(dataDir);
        found.push({ driver: data.driverName, handle: data.volumeHandle, blockName: undefined, dataDir, stagingPath });
      }
    }
    for (const blockName of await namesIn(join(base, blockDirName))) {
      const { dataDir, stagingPath } = blockPathsOf(this.#deps.rootDir, blockName);
      const data = await this.#read(dataDir, unreadable);
      if (data === undefined) continue;
      found.push({ driver: data.driverName, handle: data.volumeHandle, blockName, dataDir, stagingPath });
    }
    this.#unreadable = unreadable;
    return found;
  }

  /** What cannot be read is nobody's to take away, and noted in `unreadable`. It is told once. */
  async #read(dir: string, unreadable: Map<string, string>): Promise<VolumeData | undefined> {
    return await readVolumeData(dir).catch((err: unknown) => {
      const why = messageOf(err);
      if (this.#unreadable.get(dir) !== why) this.#deps.log.warn({ err: why }, "a CSI volume is left as it is");
      unreadable.set(dir, why);
      return undefined;
    });
  }

  /** Read anew each time, under the volume's lock where it decides: pods may have come and gone. */
  async #isUsed(device: Device): Promise<boolean> {
    const { rootDir } = this.#deps;
    if (device.blockName === undefined) {
      return (await this.#targets()).some(
        (target) =>
          target === "unknown" || (target.driverName === device.driver && target.volumeHandle === device.handle),
      );
    }
    if ((await this.#podsWith(device.blockName)).size > 0) return true;
    for (const podUID of await namesIn(join(rootDir, "pods"))) {
      const links = await namesIn(join(rootDir, "pods", podUID, "volumeDevices", csiDirName));
      if (links.includes(device.blockName)) return true;
    }
    return false;
  }

  /** Pods' volumes; "unknown" for one that says not what it is, so that it may be any. */
  async #targets(): Promise<Target[]> {
    const podsDir = join(this.#deps.rootDir, "pods");
    const found: Target[] = [];
    for (const podUID of await namesIn(podsDir)) {
      const dir = join(podsDir, podUID, "volumes", csiDirName);
      for (const name of await namesIn(dir)) {
        // Without a file nothing was published; one that cannot be understood may stand for anything.
        const data = await readVolumeData(join(dir, name)).catch(() => "unknown" as const);
        if (data !== undefined) found.push(data);
      }
    }
    return found;
  }
}

type Target = Exclude<Awaited<ReturnType<typeof readVolumeData>>, undefined> | "unknown";
type KnownTarget = Exclude<Target, "unknown">;

function isPersistent(target: Target): target is KnownTarget {
  return target !== "unknown" && target.volumeLifecycleMode !== "Ephemeral";
}

function targetKey({ driverName, volumeHandle }: KnownTarget): string {
  return uniqueVolumeName(driverName, volumeHandle);
}
