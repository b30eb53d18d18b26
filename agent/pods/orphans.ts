import { rm, readdir } from "node:fs/promises";
import { join } from "node:path";
import { configSourceAnnotation } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import { messageOf } from "../lib/errors.ts";
import type { RuntimeList, SandboxSummary } from "../runtime/port.ts";
import type { PodDeps } from "./port.ts";
import type { UserNamespaces } from "./user-namespaces.ts";

// Grace of containers of which nobody knows anything: kubelet's 1 s, below CRI's usable minimum of 2 s.
const orphanGraceSeconds = 2;
// Pods whose remains are removed at the same time: what one of them waits for should not keep the others.
export const removalsMax = 8;
// An unmount whose server has gone may take minutes, and so may a runtime. When nothing has ended for this long, the sweep goes on without
// those that are under way; they are not begun again.
export const sweepPatienceMs = 5_000;

export interface OrphansDeps extends PodDeps {
  userNamespaces: Pick<UserNamespaces, "release">;
}

/**
 * Removes what belongs to no pod: containers and sandboxes, directories, logs, cgroups. It is left over when the agent
 * was killed, or when pods went away while it did not run.
 */
export class Orphans {
  readonly #deps: OrphansDeps;
  readonly #isKnown: (podUID: string) => boolean;
  readonly #removals = new Map<string, Promise<boolean>>();
  readonly #stopping = new Map<string, Promise<string | undefined>>();

  /** @param isKnown true for UIDs that have a worker; those are the worker's business */
  constructor(deps: OrphansDeps, isKnown: (podUID: string) => boolean) {
    this.#deps = deps;
    this.#isKnown = isKnown;
  }

  /**
   * One sweep. Call it only when all pods of the node are known. Failures are logged; the next sweep tries again.
   *
   * @returns true if nothing runs any more that belongs to no pod
   */
  async sweep(list: RuntimeList): Promise<boolean> {
    const { volumes, cgroups, metrics } = this.#deps;
    const inRuntime = new Set([...list.sandboxes, ...list.containers].map(({ podUID }) => podUID));
    const gone = new Set([...inRuntime].filter((uid) => uid !== "" && !this.#isKnown(uid)));
    const problems = await this.#each(gone, async (uid) => await this.#removeFromRuntime(uid, list));
    const stopped = [...gone].filter((uid) => problems.has(uid) && problems.get(uid) === undefined);
    for (const uid of stopped) inRuntime.delete(uid);
    const isLeft = (uid: string) => !this.#isKnown(uid) && !inRuntime.has(uid);
    const dirs = (await volumes.podUIDsOnDisk()).filter(isLeft);
    const ofCgroups = [...(await cgroups.podUIDsOnDisk()).keys()].filter(isLeft);
    const outcomes = await this.#removeAll(new Set([...dirs, ...ofCgroups, ...stopped]));
    metrics?.cleanedVolumes.set({}, dirs.length);
    metrics?.cleanedVolumeErrors.set({}, dirs.filter((uid) => outcomes.get(uid) === false).length);
    await this.#removeLogDirs(inRuntime);
    return stopped.length === gone.size;
  }

  /**
   * Removes static pods that ran under this one's name before this agent: their manifest was edited meanwhile, or another
   * agent gave them their UID. They are in its way, and need not wait for the API server. Never rejects.
   *
   * @returns why some of it may still run; undefined if none does
   */
  async removePredecessors(pod: Pod): Promise<string | undefined> {
    try {
      const list = await this.#deps.runtime.list();
      const found = list.sandboxes.filter((sandbox) => isPredecessor(pod, sandbox)).map(({ podUID }) => podUID);
      const uids = new Set(found.filter((uid) => !this.#isKnown(uid)));
      // Whatever a runtime takes: until they have stopped, they are in the way.
      const problems = await Promise.all([...uids].map(async (uid) => await this.#removeFromRuntime(uid, list)));
      const problem = problems.find((one) => one !== undefined);
      if (problem === undefined) await this.#removeAll(uids);
      return problem;
    } catch (err) {
      return `the runtime does not say what it has: ${messageOf(err)}`;
    }
  }

  /**
   * Removes directories and cgroup of one pod that is gone from API server and runtime; joins a removal that is under way.
   * Never rejects.
   *
   * @returns whether all of it went
   */
  async removePod(uid: string): Promise<boolean> {
    const underWay = this.#removals.get(uid);
    if (underWay !== undefined) return await underWay;
    const removal = this.#remove(uid);
    this.#removals.set(uid, removal);
    try {
      return await removal;
    } finally {
      this.#removals.delete(uid);
    }
  }

  /**
   * The removal of what this pod left, if one is under way: a pod may come back with the UID that it had, and must not
   * begin among what is being removed. Never rejects.
   */
  underWay(uid: string): Promise<unknown> | undefined {
    const stopping = this.#stopping.get(uid);
    return stopping === undefined ? this.#removals.get(uid) : this.#removeAfter(uid, stopping);
  }

  // The sweep that began it may be over by then.
  async #removeAfter(uid: string, stopping: Promise<string | undefined>): Promise<void> {
    if ((await stopping) === undefined) await this.removePod(uid);
  }

  /** @returns by UID whether all of it went; without what takes long */
  async #removeAll(uids: ReadonlySet<string>): Promise<ReadonlyMap<string, boolean>> {
    return await this.#each(uids, async (uid) => await this.removePod(uid));
  }

  /**
   * Does `work`, which never rejects, for these UIDs, a few at a time.
   *
   * @returns what it came to; what takes long is neither waited for nor among it, nor is what has become somebody's pod and
   *   what is under way already
   */
  async #each<T>(uids: ReadonlySet<string>, work: (uid: string) => Promise<T>): Promise<ReadonlyMap<string, T>> {
    const outcomes = new Map<string, T>();
    const queue = uids.values();
    const over = Promise.withResolvers<void>();
    const lookAgain = () => this.#deps.clock.after(sweepPatienceMs, over.resolve);
    let timer = lookAgain();
    let isOver = false;
    const next = async () => {
      for (const uid of queue) {
        // Others are found again. Meanwhile one may have become somebody's pod. What hangs since an earlier sweep keeps nobody
        // from their turn.
        if (isOver || this.#isKnown(uid) || this.#stopping.has(uid) || this.#removals.has(uid)) continue;
        outcomes.set(uid, await work(uid));
        timer.cancel();
        if (!isOver) timer = lookAgain();
      }
    };
    await Promise.race([Promise.all(Array.from({ length: Math.min(removalsMax, uids.size) }, next)), over.promise]);
    isOver = true;
    timer.cancel();
    return new Map(outcomes);
  }

  async #remove(uid: string): Promise<boolean> {
    const { volumes, cgroups, userNamespaces, log } = this.#deps;
    try {
      await volumes.tearDown(uid);
      await cgroups.destroy(uid);
      await userNamespaces.release(uid);
      await volumes.removePodDir(uid);
      await this.#removeLogDirsOf(uid);
      return true;
    } catch (err) {
      log.warn({ podUID: uid, err: messageOf(err) }, "remains of a pod not removed, trying again later");
      return false;
    }
  }

  // Joins what is under way. @returns why some of it may still run. Never rejects.
  async #removeFromRuntime(uid: string, list: RuntimeList): Promise<string | undefined> {
    const underWay = this.#stopping.get(uid);
    if (underWay !== undefined) return await underWay;
    const stopping = this.#stop(uid, list);
    this.#stopping.set(uid, stopping);
    try {
      return await stopping;
    } finally {
      this.#stopping.delete(uid);
    }
  }

  async #stop(uid: string, { sandboxes, containers }: RuntimeList): Promise<string | undefined> {
    const { runtime, log, metrics } = this.#deps;
    log.info({ podUID: uid }, "removing containers of a pod that is gone");
    metrics?.orphanedPods.inc({});
    try {
      const own = containers.filter(({ podUID }) => podUID === uid);
      await Promise.all(
        own.map(async ({ id, state }) => {
          if (state === "running" || state === "unknown") await runtime.stopContainer(id, orphanGraceSeconds);
          await runtime.removeContainer(id);
        }),
      );
      for (const { id } of sandboxes.filter(({ podUID }) => podUID === uid)) {
        await runtime.stopPodSandbox(id);
        await runtime.removePodSandbox(id);
      }
    } catch (err) {
      const message = messageOf(err);
      log.warn({ podUID: uid, err: message }, "containers of a pod that is gone not removed, trying again later");
      return `containers of pod ${uid} not removed: ${message}`;
    }
    return undefined;
  }

  async #removeLogDirs(inRuntime: ReadonlySet<string>): Promise<void> {
    for (const name of await this.#logDirs()) {
      const uid = uidOfLogDir(name);
      if (uid !== undefined && !this.#isKnown(uid) && !inRuntime.has(uid)) await this.#removeLogDir(name);
    }
  }

  async #removeLogDirsOf(uid: string): Promise<void> {
    for (const name of await this.#logDirs()) if (uidOfLogDir(name) === uid) await this.#removeLogDir(name);
  }

  async #logDirs(): Promise<string[]> {
    return await readdir(this.#deps.settings.podLogsDir).catch((): string[] => []);
  }

  async #removeLogDir(name: string): Promise<void> {
    await rm(join(this.#deps.settings.podLogsDir, name), { recursive: true, force: true });
  }
}

function isPredecessor({ metadata }: Pod, { podName, podNamespace, podUID, annotations }: SandboxSummary): boolean {
  const source = annotations[configSourceAnnotation] ?? "api";
  return (
    source !== "api" && podName === metadata.name && podNamespace === metadata.namespace && podUID !== metadata.uid
  );
}

// `<namespace>_<name>_<uid>`: neither part can hold an underscore.
function uidOfLogDir(name: string): string | undefined {
  const parts = name.split("_");
  return parts.length === 3 ? parts[2] : undefined;
}
