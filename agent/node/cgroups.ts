import { basename } from "node:path";
import type { Clock } from "../lib/clock.ts";
import { AgentError, hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { type Amounts, cpuSharesMin, podRequests, qosClass } from "../kube/pod-resources.ts";
import type { Pod, QOSClass } from "../kube/types.ts";
import {
  type CgroupDriver,
  cgroupComponents,
  cgroupPath,
  podComponent,
  podUIDOf,
  qosComponents,
} from "./cgroup-names.ts";
import type { CgroupTree } from "./cgroup-tree.ts";
import {
  burstableShares,
  type CgroupValues,
  hugePagesUnlimited,
  kubepodsValues,
  type PodCgroupOptions,
  podCgroupValues,
} from "./cgroup-values.ts";
import type { SliceManager } from "./systemd.ts";

const qosClasses: readonly QOSClass[] = ["Guaranteed", "Burstable", "BestEffort"];
// Tries to empty and remove a pod's cgroup, and the pause between them: killed processes need a moment to leave.
const destroyTriesMax = 5;
const destroyPauseMs = { first: 5, max: 100 };

export interface CgroupOptions extends PodCgroupOptions {
  driver: CgroupDriver;
  /** "" and "/" are the visible root. */
  cgroupRoot: string;
  cgroupsPerQOS: boolean;
  /** Whole machine, see capacity.ts. */
  capacity: Amounts;
  /** systemReserved + kubeReserved if enforceNodeAllocatable has "pods"; else empty. */
  enforcedReserved: Amounts;
  /** Most process IDs that the kernel hands out. */
  pidsMax: number;
}

export interface CgroupDeps {
  tree: CgroupTree;
  /** Needed with the systemd driver. */
  slices?: SliceManager;
  clock: Clock;
  log: Logger;
  /** Sends SIGKILL; replaced by tests. */
  kill?: (pid: number) => void;
}

/** What an in-place resize changes of a pod's cgroup. What is left out is not limited. */
export interface PodCgroupLimits {
  cpuShares: number;
  /** µs per period. */
  cpuQuotaUs?: number;
  cpuPeriodUs?: number;
  memoryBytes?: number;
}

/**
 * The cgroups that pods live in. Calls for one pod come one after another; calls for different pods run in parallel.
 *
 *   <cgroupRoot>/kubepods                     all pods
 *   <cgroupRoot>/kubepods/pod<uid>            a Guaranteed pod
 *   <cgroupRoot>/kubepods/burstable/pod<uid>
 *   <cgroupRoot>/kubepods/besteffort/pod<uid>
 */
export interface PodCgroups {
  /** Checks the root and makes the cgroups above the pods. Rejects with what an operator must change. */
  setUp(): Promise<void>;
  /** CRI `cgroup_parent` of the pod's sandbox. */
  parentFor(pod: Pod): string;
  /** Makes the pod's cgroup and weighs its QoS class anew. An existing one keeps its limits. Idempotent. */
  ensure(pod: Pod): Promise<void>;
  /** CPU and memory limits that the pod's cgroup has, made for the resources in the pod's spec. */
  limitsOf(pod: Pod): PodCgroupLimits;
  /** Changes limits of the pod's cgroup; what is left out stays. */
  setLimits(pod: Pod, limits: Partial<PodCgroupLimits>): Promise<void>;
  /** True if the pod's cgroup is there. */
  exists(pod: Pod): Promise<boolean>;
  /** Kills what is left in the pod's cgroup and removes it. Idempotent; rejects with Unavailable if something stays. */
  destroy(podUID: string): Promise<void>;
  /** Pods that have a cgroup, by UID. */
  podUIDsOnDisk(): Promise<Map<string, QOSClass>>;
  /** Weighs the Burstable class by the pods that are active. Call it now and then. */
  refreshQOS(activePods: Iterable<Pod>): Promise<void>;
}

/** Makes the pods' cgroups; nothing is touched before `setUp`. */
export function createCgroups(options: CgroupOptions, deps: CgroupDeps): PodCgroups {
  if (!options.cgroupsPerQOS) return flatCgroups(options);
  if (options.driver === "systemd" && deps.slices === undefined) {
    throw new AgentError("Invalid", "cgroupDriver systemd needs a connection to systemd");
  }
  return new QOSCgroups(options, deps);
}

/** Without a QoS tree the runtime puts pods below the root by itself. */
function flatCgroups({ cgroupRoot }: CgroupOptions): PodCgroups {
  const nothing = async () => {};
  return {
    setUp: nothing,
    parentFor: () => (cgroupRoot === "" ? "/" : cgroupRoot),
    ensure: nothing,
    limitsOf: () => ({ cpuShares: cpuSharesMin }),
    setLimits: nothing,
    exists: async () => true,
    destroy: nothing,
    podUIDsOnDisk: async () => new Map(),
    refreshQOS: nothing,
  };
}

class QOSCgroups implements PodCgroups {
  readonly #options: CgroupOptions;
  readonly #deps: CgroupDeps;
  readonly #root: readonly string[];
  /** milli-CPU requested by each Burstable pod that we know of. */
  readonly #burstable = new Map<string, number>();
  #burstableShares = 0;

  constructor(options: CgroupOptions, deps: CgroupDeps) {
    this.#options = options;
    this.#deps = deps;
    this.#root = cgroupComponents(options.cgroupRoot);
  }

  async setUp(): Promise<void> {
    const { tree, log } = this.#deps;
    const rootPath = this.#path([]);
    await tree.checkRoot(rootPath);
    if (!tree.controllers.has("pids") && this.#options.podPidsLimit > 0) {
      log.warn(
        { podPidsLimit: this.#options.podPidsLimit },
        "the pids cgroup controller is missing: podPidsLimit has no effect",
      );
    }
    const cpus = await tree.cpus(rootPath);
    await this.#create(["kubepods"], { ...kubepodsValues(this.#options), ...(cpus === "" ? {} : { cpus }) });
    const hugePages = this.#options.hugePageSizes.map((pageBytes) => ({ pageBytes, limitBytes: hugePagesUnlimited }));
    await this.#create(qosComponents("Burstable"), { cpuShares: cpuSharesMin, hugePages });
    await this.#create(qosComponents("BestEffort"), { cpuShares: cpuSharesMin, hugePages });
    this.#burstableShares = cpuSharesMin;
  }

  parentFor(pod: Pod): string {
    return this.#path(this.#podComponents(pod));
  }

  async ensure(pod: Pod): Promise<void> {
    const podUID = pod.metadata.uid ?? "";
    const components = this.#podComponents(pod);
    // Limits of a pod that runs are an in-place resize's to change. Before the runtime has put anything below, they are
    // written again: an agent that was killed may have made the directories and no more.
    if (!(await this.#hasStarted(components))) await this.#create(components, podCgroupValues(pod, this.#options));
    if (qosClass(pod) !== "Burstable" || this.#burstable.has(podUID)) return;
    this.#burstable.set(podUID, podRequests(pod).cpu ?? 0);
    await this.#weighBurstable();
  }

  limitsOf(pod: Pod): PodCgroupLimits {
    const { cpuShares = cpuSharesMin, cpuQuotaUs, cpuPeriodUs, memoryBytes } = podCgroupValues(pod, this.#options);
    const isLimited = cpuQuotaUs !== undefined && cpuQuotaUs > 0;
    return {
      cpuShares,
      ...(isLimited ? { cpuQuotaUs, ...(cpuPeriodUs === undefined ? {} : { cpuPeriodUs }) } : {}),
      ...(memoryBytes === undefined ? {} : { memoryBytes }),
    };
  }

  async setLimits(pod: Pod, limits: Partial<PodCgroupLimits>): Promise<void> {
    const path = this.parentFor(pod);
    await this.#deps.slices?.set(basename(path), limits);
    await this.#deps.tree.write(path, limits);
    if (limits.cpuShares === undefined || qosClass(pod) !== "Burstable") return;
    this.#burstable.set(pod.metadata.uid ?? "", podRequests(pod).cpu ?? 0);
    await this.#weighBurstable();
  }

  async exists(pod: Pod): Promise<boolean> {
    return this.#deps.tree.exists(this.parentFor(pod));
  }

  async destroy(podUID: string): Promise<void> {
    this.#burstable.delete(podUID);
    // The class is not asked for: an orphan's is unknown, and looking in all three places is as quick.
    for (const qos of qosClasses) await this.#remove([...qosComponents(qos), podComponent(podUID)]);
  }

  async podUIDsOnDisk(): Promise<Map<string, QOSClass>> {
    const found = new Map<string, QOSClass>();
    for (const qos of qosClasses) {
      for (const name of await this.#deps.tree.children(this.#path(qosComponents(qos)))) {
        const podUID = podUIDOf(name, this.#options.driver);
        if (podUID !== undefined) found.set(podUID, qos);
      }
    }
    return found;
  }

  async refreshQOS(activePods: Iterable<Pod>): Promise<void> {
    this.#burstable.clear();
    for (const pod of activePods) {
      if (qosClass(pod) === "Burstable") this.#burstable.set(pod.metadata.uid ?? "", podRequests(pod).cpu ?? 0);
    }
    await this.#weighBurstable();
  }

  async #weighBurstable(): Promise<void> {
    const cpuShares = burstableShares(this.#burstable.values());
    if (cpuShares === this.#burstableShares) return;
    const path = this.#path(qosComponents("Burstable"));
    this.#burstableShares = cpuShares; // before the await: two pods at once must not both see the old value
    try {
      await this.#deps.slices?.set(basename(path), { cpuShares });
      await this.#deps.tree.write(path, { cpuShares });
    } catch (err) {
      this.#burstableShares = 0;
      // Only the share between classes is off, and the next refresh repairs it: no reason to hold up a pod.
      this.#deps.log.warn({ cgroup: path, err: messageOf(err) }, "cannot set the CPU weight of the Burstable class");
    }
  }

  async #hasStarted(components: readonly string[]): Promise<boolean> {
    const { tree } = this.#deps;
    const path = this.#path(components);
    return (await tree.exists(path)) && (await tree.children(path)).length > 0;
  }

  /** True if any hierarchy has it: systemd makes a slice only in those that it uses itself. */
  async #isAnywhere(components: readonly string[]): Promise<boolean> {
    const siblings = await this.#deps.tree.children(this.#path(components.slice(0, -1)));
    return siblings.includes(basename(this.#path(components)));
  }

  async #create(components: readonly string[], values: CgroupValues): Promise<void> {
    const { tree, slices } = this.#deps;
    const path = this.#path(components);
    const parent = this.#path(components.slice(0, -1));
    if (slices !== undefined) {
      await slices.start(basename(path), parent === "/" ? undefined : basename(parent), values, () =>
        this.#isAnywhere(components),
      );
    }
    await tree.create(path, values);
  }

  async #remove(components: readonly string[]): Promise<void> {
    const { tree, clock, slices, kill = killProcess } = this.#deps;
    const path = this.#path(components);
    if (slices !== undefined && (await this.#isAnywhere(components))) {
      await slices.stop(basename(path)).catch((err: unknown) => {
        this.#deps.log.debug(
          { cgroup: path, err: messageOf(err) },
          "systemd did not stop the slice; removing its cgroup",
        );
      });
    }
    for (let attempt = 1, pauseMs = destroyPauseMs.first; ; attempt += 1) {
      for (const pid of await tree.pids(path)) kill(pid);
      try {
        await tree.remove(path);
        return;
      } catch (err) {
        if (!hasCode(err, "Unavailable") || attempt >= destroyTriesMax) throw err;
      }
      await clock.sleep(pauseMs);
      pauseMs = Math.min(pauseMs * 2, destroyPauseMs.max);
    }
  }

  #podComponents(pod: Pod): string[] {
    return [...qosComponents(qosClass(pod)), podComponent(pod.metadata.uid ?? "")];
  }

  #path(components: readonly string[]): string {
    return cgroupPath([...this.#root, ...components], this.#options.driver);
  }
}

function killProcess(pid: number): void {
  try {
    process.kill(pid, "SIGKILL");
  } catch (err) {
    if (!(err instanceof Error && "code" in err && err.code === "ESRCH")) throw err; // gone already
  }
}
