import { lstat } from "node:fs/promises";
import { allContainers, uidOf } from "../kube/pod-resources.ts";
import type { PersistentVolume, Pod, Volume } from "../kube/types.ts";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError, isAbort, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { listMountsBlindly } from "../lib/mount.ts";
import { namesIn } from "../lib/names-in.ts";
import { awaiting } from "./awaits.ts";
import { hasPublishedContent } from "./atomic-writer.ts";
import { describeFailure, podFields, type VolumeFailure } from "./failures.ts";
import { inlineToCSI } from "./in-tree.ts";
import type { PersistentVolumeUsers } from "./in-use.ts";
import type { BoundClaim, VolumeContext, VolumeDeps, VolumeKind } from "./kind.ts";
import type { KindTable } from "./kinds.ts";
import type { VolumeOperation } from "./metrics.ts";
import { mountOptionsOf } from "./mount-options.ts";
import { mountedVolume, type PodState } from "./pod-states.ts";
import { VolumeStepError } from "./step-error.ts";
import { blockLinkOf, volumeDirOf } from "./pod-paths.ts";

/** Finds the PersistentVolume behind a pod's `persistentVolumeClaim` or `ephemeral` volume. */
export interface ClaimResolver {
  /** Rejects with an `AgentError` that says in one line what is wrong with the claim, and names it. */
  resolve(pod: Pod, volume: Volume, signal: AbortSignal): Promise<BoundClaim>;
  /** May this node use the volume, by the volume's node affinity? */
  isReachable(bound: BoundClaim): boolean;
}

export interface VolumeSetUpDeps {
  deps: VolumeDeps;
  kinds: KindTable;
  claims: ClaimResolver | undefined;
  users: PersistentVolumeUsers;
  log: Logger;
  onEvent(about: Pod | PersistentVolume, type: "Normal" | "Warning", reason: string, message: string): void;
  /** The pod may succeed now. */
  wake(podUID: string): void;
  /** Told when a set-up begins. @returns to be called when it has ended */
  onSetUp(pod: Pod, volume: string): (err?: unknown) => void;
  /** Measures the first set-up of a volume. */
  timed<T>(of: Omit<VolumeOperation, "operation">, work: () => Promise<T>): Promise<T>;
}

export type SetUpOutcome =
  /** It was there. */
  | { kind: "present" }
  | { kind: "done"; refreshAtMs: number | undefined }
  /** Its content is there, but could not be brought up to date. */
  | { kind: "stale" }
  | { kind: "failed"; failure: VolumeFailure };

/** What a volume is made from, looked up anew each time: a claim may have grown since. */
interface Resolved {
  kind: VolumeKind;
  specName: string;
  bound: BoundClaim | undefined;
  isBlock: boolean;
}

/** Sets up one volume of a pod, and notes in `state` that it is there. Rejects only when `signal` aborts. */
export async function setUpVolume(
  { pod, volume, podDir, state }: { pod: Pod; volume: Volume; podDir: string; state: PodState },
  options: VolumeSetUpDeps,
  signal: AbortSignal,
): Promise<SetUpOutcome> {
  const last = state.mounted.get(volume.name);
  if (last?.isRefreshed === false) return { kind: "present" };
  const onEnd = options.onSetUp(pod, volume.name);
  let resolved: Resolved | undefined;
  try {
    resolved = await resolve(pod, volume, options, signal);
    const { kind, bound, specName, isBlock } = resolved;
    const otherPods = bound === undefined ? [] : await reserve(bound, pod, kind, options, last === undefined);
    const { pluginName } = kind;
    const dir = placeOf(resolved, podDir);
    const event: VolumeContext["event"] = (type, reason, message, about = "pod") =>
      options.onEvent(about === "volume" && bound !== undefined ? bound.volume : pod, type, reason, message);
    const of = { pod, volume, specName, bound, isBlock, otherPods, podDir, dir };
    const work = async () => await kind.setUp({ ...of, deps: options.deps, event, signal });
    const result = await (last === undefined
      ? options.timed({ podUID: uidOf(pod), volume: volume.name, pluginName }, work)
      : work());
    state.mounted.set(volume.name, mountedVolume({ pluginName, specName, bound, isBlock }, kind, result));
    onEnd();
    return { kind: "done", refreshAtMs: result.refreshAtMs };
  } catch (err) {
    onEnd(err);
    if (signal.aborted || isAbort(err)) throw err;
    const known = resolved ?? last;
    const failure: VolumeFailure = {
      name: volume.name,
      specName: known?.specName ?? volume.name,
      isBlock: known?.isBlock ?? false,
      isUnresolved: resolved === undefined,
      err,
    };
    // Content that is there, perhaps from before a restart, is served on: what it came from may only be out of reach.
    if (last === undefined && !(await adopt(volume, podDir, resolved, state))) {
      if (resolved?.bound !== undefined) await release(resolved, uidOf(pod), podDir, options);
      return { kind: "failed", failure };
    }
    const fields = { ...podFields(pod), volume: volume.name, err: messageOf(err) };
    if (resolved === undefined && last?.bound !== undefined) {
      // Nothing is wrong with the volume: it cannot be asked about only, as while the API server is away.
      options.log.warn(fields, "cannot look up the claim of a volume, which stays as it is");
      return { kind: "stale" };
    }
    options.log.warn(fields, "volume content is not up to date");
    const { reason, message } = describeFailure(failure);
    options.onEvent(pod, "Warning", reason, message);
    return { kind: "stale" };
  }
}

/** Where a volume is, or, of a block volume, the link to it. */
function placeOf({ kind: { pluginName }, specName, isBlock }: Resolved, podDir: string): string {
  return isBlock ? blockLinkOf(podDir, pluginName, specName) : volumeDirOf(podDir, pluginName, specName);
}

/** Lets another pod have a PersistentVolume of which this one has nothing in place after it failed. */
async function release(
  resolved: Resolved,
  podUID: string,
  podDir: string,
  { users, wake }: VolumeSetUpDeps,
): Promise<void> {
  // What cannot be looked at may be anything.
  if (await isInPlace(placeOf(resolved, podDir)).catch(() => true)) return;
  for (const waiting of users.release(resolved.specName, podUID)) wake(waiting);
}

async function isInPlace(place: string): Promise<boolean> {
  // First of all: what is mounted may hang.
  if ((await listMountsBlindly(place)).length > 0) return true;
  const found = await lstat(place).catch(ignoreErrno("ENOENT", "ENOTDIR"));
  return found !== undefined && (!found.isDirectory() || (await namesIn(place)).length > 0);
}

async function resolve(
  pod: Pod,
  volume: Volume,
  { claims, kinds }: VolumeSetUpDeps,
  signal: AbortSignal,
): Promise<Resolved> {
  const isBlock = isUsedAsBlock(pod, volume.name);
  const ofPersistent = (bound: BoundClaim): Resolved => {
    return { kind: kinds.kindOfPersistent(bound.volume), specName: bound.volume.metadata.name, bound, isBlock };
  };
  if (volume.persistentVolumeClaim === undefined && volume.ephemeral === undefined) {
    if (isBlock) throw new AgentError("Invalid", `volume "${volume.name}" is no claim, volumeDevices cannot have it`);
    const inline = inlineToCSI(volume);
    if (inline !== undefined) return ofPersistent(inline);
    return { kind: kinds.kindOf(volume), specName: volume.name, bound: undefined, isBlock };
  }
  if (claims === undefined) {
    throw new AgentError("Invalid", "a PersistentVolumeClaim needs an API server, and this node has none");
  }
  return ofPersistent(await claims.resolve(pod, volume, signal));
}

/** Checks that this pod may use the PersistentVolume here, and notes that it does. @returns the other pods that do */
async function reserve(
  bound: BoundClaim,
  pod: Pod,
  kind: VolumeKind,
  { claims, users }: VolumeSetUpDeps,
  isNew: boolean,
): Promise<string[]> {
  const { volume } = bound;
  const { name } = volume.metadata;
  if (volume.spec.volumeMode === "Block" && kind.takesBlock !== true) {
    const why = `${kind.pluginName} has no block devices, the PersistentVolume must have volumeMode Filesystem`;
    throw new AgentError("Invalid", why);
  }
  if (isNew && claims?.isReachable(bound) === false) {
    throw new VolumeStepError(
      "NodeAffinity check",
      new AgentError("Invalid", `no term of the node affinity of PersistentVolume ${name} matches this node`),
    );
  }
  if (kind.refusesMountOptions === true && mountOptionsOf(volume).length > 0) {
    const why = `mount options are not supported by ${kind.pluginName}`;
    throw new VolumeStepError("MountOptionSupport check", new AgentError("Invalid", why));
  }
  const podUID = uidOf(pod);
  const { others, isFirst } = await users.add(name, podUID);
  const { accessModes = [] } = volume.spec;
  if (!isFirst && accessModes.length === 1 && accessModes[0] === "ReadWriteOncePod") {
    users.refuse(name, podUID);
    const why = "volume uses the ReadWriteOncePod access mode and is already in use by another pod";
    throw new AgentError("Conflict", why, awaiting("other pod"));
  }
  return others;
}

/** Takes content that an earlier run has written for what it is. @returns false: there is none */
async function adopt(
  volume: Volume,
  podDir: string,
  resolved: Resolved | undefined,
  state: PodState,
): Promise<boolean> {
  if (resolved?.kind.isRefreshed !== true || resolved.bound !== undefined) return false;
  const { kind } = resolved;
  const { pluginName } = kind;
  const dir = volumeDirOf(podDir, pluginName, volume.name);
  if (!(await hasPublishedContent(dir))) return false;
  const about = { pluginName, specName: volume.name, bound: undefined, isBlock: false };
  state.mounted.set(volume.name, mountedVolume(about, kind, { hostPath: dir }));
  return true;
}

function isUsedAsBlock(pod: Pod, volumeName: string): boolean {
  return allContainers(pod).some(({ volumeDevices = [] }) => volumeDevices.some(({ name }) => name === volumeName));
}
