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
// An unmount whose server has gone may take minutes. When no removal has ended for this long, the sweep goes on without
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
  async sweep({ sandboxes, containers }: RuntimeList): Promise<boolean> {
    const { volumes, cgroups, metrics } = this.#deps;
    const inRuntime = new Set([...sandboxes, ...containers].map(({ podUID }) => podUID));
    const gone = [...inRuntime].filter((uid) => uid !== "" && !this.#isKnown(uid));
    const problems = await Promise.all(
      gone.map(async (uid) => await this.#removeFromRuntime(uid, { sandboxes, containers })),
    );
    const isLeft = (uid: string) => !this.#isKnown(uid) && !inRuntime.has(uid);
    const dirs = (await volumes.podUIDsOnDisk()).filter(isLeft);
    const remains = new Set([...dirs, ...[...(await cgroups.podUIDsOnDisk()).keys()].filter(isLeft)]);
    const failed = await this.#removeAll(remains);
    metrics?.cleanedVolumes.set({}, dirs.length);
    metrics?.cleanedVolumeErrors.set({}, dirs.filter((uid) => failed.has(uid)).length);
    await this.#removeLogDirs(inRuntime);
    return problems.every((problem) => problem === undefined);
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
      const uids = [...new Set(found)].filter((uid) => !this.#isKnown(uid));
      const problems = await Promise.all(uids.map(async (uid) => await this.#removeFromRuntime(uid, list)));
      return problems.find((problem) => problem !== undefined);
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
    return this.#stopping.get(uid) ?? this.#removals.get(uid);
  }

  /** @returns those of which something is left; what takes long is neither waited for nor among them */
  async #removeAll(uids: ReadonlySet<string>): Promise<ReadonlySet<string>> {
    const failed = new Set<string>();
    const queue = uids.values();
    const over = Promise.withResolvers<void>();
    const lookAgain = () => this.#deps.clock.after(sweepPatienceMs, over.resolve);
    let timer = lookAgain();
    let isOver = false;
    const removeNext = async () => {
      for (const uid of queue) {
        // Others are found again. Meanwhile one may have become somebody's pod.
        if (isOver || this.#isKnown(uid)) continue;
        if (!(await this.removePod(uid))) failed.add(uid);
        timer.cancel();
        if (!isOver) timer = lookAgain();
      }
    };
    const removals = Promise.all(Array.from({ length: Math.min(removalsMax, uids.size) }, removeNext));
    await Promise.race([removals, over.promise]);
    isOver = true;
    timer.cancel();
    return new Set(failed);
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

  // @returns why not all of it has gone
  async #removeFromRuntime(uid: string, list: RuntimeList): Promise<string | undefined> {
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
    await this.removePod(uid);
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
