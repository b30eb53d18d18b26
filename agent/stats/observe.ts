import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { hasCode, messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { ContainerStats, ContainerSummary, Runtime, SandboxProcess } from "../runtime/port.ts";
import type { CgroupMounts } from "./cgroup-mounts.ts";
import { createCgroupPlaces } from "./cgroup-places.ts";
import {
  type CgroupSample,
  cgroupCreatedAt,
  completeRoot,
  type MachineSize,
  sampleCgroup,
  type SampleLevel,
  sampleLevels,
} from "./cgroup-sample.ts";
import { idlePods, type RunningPod, runningPods } from "./inventory.ts";
import { type InterfaceCounters, parseBootTime, parseNetDev } from "./parse.ts";
import { type FileReader, forEachLimited } from "./read.ts";
import { moveBase, rateWindowMsMax, rateWindowMsMin, type UsagePoint, usageNanoCores } from "./usage-rate.ts";

/** Everything that was measured in one round. */
export interface Observation {
  /** Unix ms at which the round began. */
  atMs: number;
  level: SampleLevel;
  /** Of the whole machine. */
  root: CgroupReading;
  pods: ObservedPod[];
  /** Ready sandboxes without a running container, whose cgroups and interfaces are there all the same. At level "all". */
  idle: ObservedPod[];
  /** By path: the cgroups asked for by name, those that are there. */
  named: ReadonlyMap<string, CgroupReading>;
}

/** One cgroup's figures and what follows from comparing them with earlier ones. */
export interface CgroupReading extends CgroupSample {
  path: string;
  /** Absent at the first sight of the cgroup. */
  usageNanoCores?: number;
  /** Unix ms: what the runtime says of the container or sandbox, else a guess from the cgroup's files. */
  createdAtMs?: number;
}

export interface ObservedPod {
  sandbox: RunningPod["sandbox"];
  cgroup?: CgroupReading;
  /** The sandbox's own process. From level "all" on. */
  sandboxCgroup?: CgroupReading;
  sandboxImage: string;
  containers: ObservedContainer[];
  /** From level "summary" on, where the runtime tells the sandbox's process. */
  network?: { atMs: number; interfaces: InterfaceCounters[] };
}

export interface ObservedContainer {
  container: ContainerSummary;
  cgroup?: CgroupReading;
  /** From level "summary" on; before only if there is no cgroup. */
  runtime?: ContainerStats;
}

export interface ObserverDeps {
  runtime: Pick<Runtime, "list" | "containerStats" | "sandboxProcess">;
  pods: { list(): readonly Pod[] };
  /** Path of a pod's cgroup; undefined where pods have none. */
  podCgroup(pod: Pod): string | undefined;
  /** Further cgroups to read at the level. */
  namedCgroups(level: SampleLevel): readonly string[];
  mounts: CgroupMounts;
  machine: MachineSize;
  reader: FileReader;
  clock: Clock;
  log: Logger;
}

/** Measures when somebody asks. */
export interface Observer {
  /**
   * What is now, at least at `level`: an observation that is younger than {@link freshMs} is given again, and requests that
   * come together share one round. Rejects if the runtime does not answer or the root cgroup cannot be read.
   */
  observe(level: SampleLevel): Promise<Observation>;
  /**
   * As `observe`, with how much CPU is being used. Nothing is measured while nobody asks, so that the first request after
   * minutes of silence takes a sample of CPU time, waits for {@link baselineGapMs}, and then measures: its answer is right
   * too. Rejects when `signal` aborts meanwhile.
   */
  observeRates(level: SampleLevel, signal: AbortSignal): Promise<Observation>;
}

// How old figures may be. The reference's are 10 to 15 s old; scrapers ask each 15 s or less often.
export const freshMs = 5_000;
// Between the two samples of a first request: 20 periods of a CPU quota, so that a throttled container is right within 5 %.
export const baselineGapMs = 2_000;
// Cgroups read at a time. Four threads do the reading; with more waiting behind them they are woken less often, which is
// what most of a read's time goes into.
const concurrency = 16;

export function createObserver(deps: ObserverDeps): Observer {
  const { runtime, mounts, machine, reader, clock, log } = deps;
  const places = createCgroupPlaces(mounts);
  const points = new Map<string, { last: UsagePoint; base: UsagePoint | undefined; createdAtMs: number | undefined }>();
  const processes = new Map<string, SandboxProcess>();
  const podCgroups = new Map<string, string>();
  const context = { mounts, reader, now: () => clock.now() };
  let bootedAtMs: number | undefined;
  let latest: Observation | undefined;
  let baseline: Promise<void> | undefined;
  const running = new Map<SampleLevel, Promise<Observation>>();

  /** What is where: from one list of the runtime. */
  const locate = async (level: SampleLevel) => {
    const list = await runtime.list();
    const idle = idlePods(list);
    const pods = [...runningPods(list), ...(level === "all" ? idle : [])];
    const byUID = new Map(deps.pods.list().map((pod) => [pod.metadata.uid, pod]));
    const ids = new Set<string>();
    const located = [];
    for (const { sandbox, containers } of pods) {
      const pod = byUID.get(sandbox.podUID);
      // Remembered, because a pod that the API server has forgotten may still run for a while.
      const path = (pod === undefined ? undefined : deps.podCgroup(pod)) ?? podCgroups.get(sandbox.podUID);
      const own = [sandbox.id, ...containers.map(({ id }) => id)];
      for (const id of own) ids.add(id);
      if (path !== undefined) podCgroups.set(sandbox.podUID, path);
      const cgroups = path === undefined ? new Map<string, string>() : await places.find(path, own);
      located.push({ sandbox, containers, path, cgroups });
    }
    for (const { sandbox } of idle) ids.add(sandbox.id); // what is known of them stays known
    places.keep(ids);
    for (const id of processes.keys()) if (!ids.has(id)) processes.delete(id);
    const uids = new Set([...pods, ...idle].map(({ sandbox }) => sandbox.podUID));
    for (const uid of podCgroups.keys()) if (!uids.has(uid)) podCgroups.delete(uid);
    return located;
  };

  type Located = Awaited<ReturnType<typeof locate>>;

  /** What to read: path, and when its use of CPU began at nothing, where that is known. */
  const pathsOf = (located: Located, level: SampleLevel): Map<string, number | undefined> => {
    const paths = new Map<string, number | undefined>(
      ["/", ...deps.namedCgroups(level)].map((path) => [path, undefined]),
    );
    for (const { sandbox, containers, path, cgroups } of located) {
      // A pod's cgroup outlives its sandbox: the next one finds what the first had used.
      if (path !== undefined) paths.set(path, sandbox.attempt === 0 ? sandbox.createdAtMs : undefined);
      for (const { id, createdAtMs } of [...(level === "all" ? [sandbox] : []), ...containers]) {
        const cgroup = cgroups.get(id);
        if (cgroup !== undefined) paths.set(cgroup, createdAtMs);
      }
    }
    return paths;
  };

  const read = async (
    path: string,
    bornAtMs: number | undefined,
    level: SampleLevel,
  ): Promise<CgroupReading | undefined> => {
    const sample = await sampleCgroup(context, path, level);
    if (sample === undefined) return undefined;
    const known = points.get(path);
    bootedAtMs ??= parseBootTime(await reader.list("/proc/stat")) ?? 0;
    const createdAtMs = bornAtMs ?? known?.createdAtMs ?? (await cgroupCreatedAt(mounts, path, bootedAtMs));
    const reading: CgroupReading = { ...sample, path, ...(createdAtMs === undefined ? {} : { createdAtMs }) };
    if (sample.cpu === undefined) return reading;
    const next = { atMs: sample.atMs, usageNs: sample.cpu.usageNs };
    // What is younger than the window began with nothing used: its birth is as good as a sample. The cgroup's own files
    // do not tell it: after a restart of the agent, hours of CPU time would have been used in the moment since then.
    const birth = bornAtMs !== undefined && bornAtMs < next.atMs ? { atMs: bornAtMs, usageNs: 0 } : undefined;
    const base = moveBase(known?.base ?? birth, known?.last, next);
    // Only points that are a window apart are kept: else frequent requests would leave nothing to compare with.
    const isStep = known === undefined || next.atMs - known.last.atMs >= rateWindowMsMin;
    points.set(path, { last: isStep ? next : known.last, base, createdAtMs });
    const rate = usageNanoCores(base, next);
    return { ...reading, ...(rate === undefined ? {} : { usageNanoCores: rate }) };
  };

  const networkOf = async (sandboxID: string): Promise<ObservedPod["network"]> => {
    const { pid } = processes.get(sandboxID) ?? {};
    if (pid === undefined) return undefined;
    const interfaces = parseNetDev(await reader.list(`/proc/${pid}/net/dev`));
    return interfaces === undefined ? undefined : { atMs: clock.now(), interfaces };
  };

  const askProcess = async (sandboxID: string): Promise<void> => {
    try {
      if (!processes.has(sandboxID)) processes.set(sandboxID, await runtime.sandboxProcess(sandboxID));
    } catch (err) {
      // It went meanwhile, or the next round asks again.
      if (!hasCode(err, "NotFound")) log.debug({ sandboxID, err: messageOf(err) }, "no process of the sandbox");
    }
  };

  const runtimeStats = async (isNeeded: boolean): Promise<Map<string, ContainerStats>> => {
    if (!isNeeded) return new Map();
    try {
      return new Map((await runtime.containerStats()).map((stats) => [stats.containerID, stats]));
    } catch (err) {
      // Figures of cgroups are worth more than none at all.
      log.warn({ err: messageOf(err) }, "the runtime gives no container statistics: root filesystems are left out");
      return new Map();
    }
  };

  const round = async (level: SampleLevel): Promise<Observation> => {
    const atMs = clock.now();
    const located = await locate(level);
    const paths = pathsOf(located, level);
    for (const [path, { last }] of points) if (atMs - last.atMs > rateWindowMsMax) points.delete(path);
    const readings = new Map<string, CgroupReading>();
    const isPartial = located.some(({ containers, cgroups }) => containers.some(({ id }) => !cgroups.has(id)));
    const ofRuntime = runtimeStats(level !== "usage" || isPartial);
    await forEachLimited(paths, concurrency, async ([path, bornAtMs]) => {
      const reading = await read(path, bornAtMs, level);
      if (reading !== undefined) readings.set(path, reading);
    });
    const networks = new Map<string, ObservedPod["network"]>();
    if (level !== "usage") {
      await forEachLimited(located, concurrency, async ({ sandbox: { id } }) => {
        await askProcess(id);
        networks.set(id, await networkOf(id));
      });
    }
    const root = readings.get("/");
    if (root === undefined) throw new Error("the root cgroup cannot be read");
    const stats = await ofRuntime;
    const readingOf = (path: string | undefined) => (path === undefined ? undefined : readings.get(path));
    const pods = located.map(({ sandbox, containers, path, cgroups }): ObservedPod => {
      const cgroup = readingOf(path);
      const sandboxCgroup = readingOf(cgroups.get(sandbox.id));
      const network = networks.get(sandbox.id);
      return {
        sandbox,
        sandboxImage: processes.get(sandbox.id)?.image ?? "",
        ...(cgroup === undefined ? {} : { cgroup }),
        ...(sandboxCgroup === undefined ? {} : { sandboxCgroup }),
        ...(network === undefined ? {} : { network }),
        containers: containers.map((container): ObservedContainer => {
          const own = readingOf(cgroups.get(container.id));
          const figures = stats.get(container.id);
          return {
            container,
            ...(own === undefined ? {} : { cgroup: own }),
            ...(figures === undefined ? {} : { runtime: figures }),
          };
        }),
      };
    });
    const named = new Map(
      deps.namedCgroups(level).flatMap((path) => {
        const reading = readings.get(path);
        return reading === undefined ? [] : [[path, reading] as const];
      }),
    );
    return {
      atMs,
      level,
      root: { ...root, ...(await completeRoot(root, context, machine)) },
      pods: pods.filter(({ containers }) => containers.length > 0),
      idle: pods.filter(({ containers }) => containers.length === 0),
      named,
    };
  };

  const baselineAtMs = (): number | undefined => {
    const root = points.get("/");
    const point = [root?.base, root?.last].find(
      (each) => each !== undefined && clock.now() - each.atMs < rateWindowMsMax,
    );
    return point?.atMs;
  };

  const takeBaseline = async () => {
    const paths = pathsOf(await locate("summary"), "summary");
    await forEachLimited(paths, concurrency, async ([path, bornAtMs]) => void (await read(path, bornAtMs, "usage")));
  };

  const shared = async (level: SampleLevel): Promise<Observation> => {
    const sufficient = sampleLevels.slice(sampleLevels.indexOf(level));
    for (const each of sufficient) {
      const one = running.get(each);
      if (one !== undefined) return await one;
    }
    const started = round(level);
    running.set(level, started);
    try {
      latest = await started;
      return latest;
    } finally {
      running.delete(level);
    }
  };

  return {
    observe: async (level) => {
      const sufficient = sampleLevels.slice(sampleLevels.indexOf(level));
      const isFresh = latest !== undefined && clock.now() - latest.atMs < freshMs;
      return latest !== undefined && isFresh && sufficient.includes(latest.level) ? latest : await shared(level);
    },
    observeRates: async (level, signal) => {
      const sufficient = sampleLevels.slice(sampleLevels.indexOf(level));
      const isFresh = latest !== undefined && clock.now() - latest.atMs < freshMs;
      if (latest !== undefined && isFresh && sufficient.includes(latest.level) && hasRates(latest)) return latest;
      if (baselineAtMs() === undefined) {
        baseline ??= takeBaseline().finally(() => {
          baseline = undefined;
        });
        await baseline;
      }
      const leftMs = (baselineAtMs() ?? 0) + baselineGapMs - clock.now();
      if (leftMs > 0) await clock.sleep(leftMs, signal);
      const observation = await shared(level);
      // It may have begun before the baseline was there; a second round cannot have.
      return hasRates(observation) ? observation : await shared(level);
    },
  };
}

function hasRates({ root }: Observation): boolean {
  return root.usageNanoCores !== undefined;
}
