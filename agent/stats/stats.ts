import { readFile } from "node:fs/promises";
import { join } from "node:path";
import { qosClass } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import type { MetricFamily } from "../lib/metrics.ts";
import { type CgroupDriver, cgroupComponents, cgroupPath, podComponent, qosComponents } from "../node/cgroup-names.ts";
import type { NodeFacts } from "../node/facts.ts";
import type { ImageService, Runtime } from "../runtime/port.ts";
import type { ServedPods } from "../server/port.ts";
import { cadvisorFamilies } from "./cadvisor-metrics.ts";
import { cadvisorRows } from "./cadvisor-rows.ts";
import { type CgroupMounts, parseOwnCgroup, readCgroupMounts } from "./cgroup-mounts.ts";
import type { SampleLevel } from "./cgroup-sample.ts";
import {
  type DiskUsage,
  filesDirectlyIn,
  type FilesystemFigures,
  filesystemOf,
  fileUsage,
  logsIn,
} from "./filesystem.ts";
import { readDimms } from "./dimms.ts";
import { summaryHandler } from "./handler.ts";
import { readMachineFilesystems } from "./machine-filesystems.ts";
import { type Machine, machineFamilies } from "./machine-metrics.ts";
import {
  nodeFigures,
  nodeStats,
  type NodeStatsOptions,
  type NodeSurroundings,
  readSurroundings,
  type SystemCgroups,
} from "./node-stats.ts";
import { baselineGapMs, createObserver, type Observation, type ObservedPod } from "./observe.ts";
import { parseNetDev, parsePartitions, parseTopology } from "./parse.ts";
import type { Stats, Summary } from "./port.ts";
import { createProcessMeter } from "./process-details.ts";
import { createFileReader, type FileReader, forEachLimited } from "./read.ts";
import { createRemoteFilesystems } from "./remote-filesystem.ts";
import { resourceFamilies } from "./resource-metrics.ts";
import { type PodDisk, podFigures, podStats, sumUsage } from "./summary.ts";
import type { StatsOfVolume } from "./volume-figures.ts";
import { createVolumeMeter, type VolumeMeter } from "./volumes.ts";

export interface StatsDeps {
  nodeName: string;
  /** Unix ms at which the agent started. */
  startedAtMs: number;
  pods: Pick<ServedPods, "list" | "status">;
  runtime: Pick<Runtime, "list" | "containerStats" | "sandboxProcess"> & { images: Pick<ImageService, "fsInfo"> };
  facts: Pick<
    NodeFacts,
    | "machineID"
    | "systemUUID"
    | "bootID"
    | "kernelVersion"
    | "osImage"
    | "cpuCount"
    | "memoryBytes"
    | "swapBytes"
    | "pidsMax"
  >;
  /** Where pods' cgroups are, as `createCgroups` was told. */
  cgroups: { driver: CgroupDriver; cgroupRoot: string; cgroupsPerQOS: boolean };
  /** Cgroups as configured, "" for none; without `kubeletCgroups` the agent finds its own. */
  systemCgroups: { kubeletCgroups: string; runtimeCgroups: string; systemCgroups: string };
  rootDir: string;
  podLogsDir: string;
  volumeStatsAggPeriodMs: number;
  statsOf: StatsOfVolume;
  /** This and `onAbnormal` are as in MeasureDeps. */
  onMeasured?(source: string, seconds: number): void;
  onAbnormal?(pod: Pod, volume: string, message: string): void;
  clock: Clock;
  log: Logger;
  /** Found below /sys/fs/cgroup unless given. */
  mounts?: CgroupMounts;
}

// Pods whose log directories are looked at together.
const concurrency = 8;

/** Makes the {@link Stats}. Reads what does not change, and measures nothing yet. */
export async function createStats(deps: StatsDeps): Promise<Stats> {
  const { clock, log, facts, runtime } = deps;
  const mounts = deps.mounts ?? (await readCgroupMounts());
  const reader = createFileReader();
  const machine = await describeMachine(facts, reader);
  const named = await namedCgroups(deps, mounts);
  const nodeOptions: NodeStatsOptions = { ...deps, systemCgroups: named.system };
  const observer = createObserver({
    runtime,
    pods: deps.pods,
    podCgroup: (pod) => podCgroup(deps, pod),
    namedCgroups: named.at,
    mounts,
    machine: facts,
    reader,
    clock,
    log,
  });
  const filesystems = createRemoteFilesystems(clock);
  const volumes = createVolumeMeter({ ...deps, filesystems, periodMs: deps.volumeStatsAggPeriodMs });
  const processes = createProcessMeter(reader, clock);

  const summary: Stats["summary"] = async ({ onlyCPUAndMemory, signal = new AbortController().signal }) => {
    if (onlyCPUAndMemory) {
      const observation = await observer.observeRates("summary", signal);
      return { node: nodeFigures(observation, nodeOptions), pods: observation.pods.map(podFigures) };
    }
    const [observation, around] = await Promise.all([
      observer.observeRates("summary", signal),
      readSurroundings({
        reader,
        rootDir: deps.rootDir,
        pidsMax: facts.pidsMax,
        fsInfo: () => runtime.images.fsInfo(),
        now: () => clock.now(),
      }),
      volumes.settle(baselineGapMs, signal),
    ]);
    return await fullSummary(observation, around, { deps, nodeOptions, volumes });
  };

  const cadvisor = async (): Promise<MetricFamily[]> => {
    const observation = await observer.observe("all");
    const pids = new Map(
      observation.pods.flatMap(({ containers }) =>
        containers.map(({ container, cgroup }) => [container.id, cgroup?.pids ?? []] as const),
      ),
    );
    const [netDev, partitions, devices, details] = await Promise.all([
      reader.list("/proc/1/net/dev"),
      reader.list("/proc/partitions"),
      readMachineFilesystems(reader, filesystems),
      processes.measure(pids),
    ]);
    const nowMs = clock.now();
    const interfaces = parseNetDev(netDev);
    const machineNetwork = interfaces === undefined ? undefined : { atMs: nowMs, interfaces };
    const rows = cadvisorRows(observation, {
      machineNetwork,
      filesystems: devices,
      processes: details,
      images: imageNames(deps.pods),
    });
    return cadvisorFamilies(rows, { nowMs, deviceNames: parsePartitions(partitions) });
  };

  return {
    run: (signal) => volumes.run(signal),
    summary,
    handler: summaryHandler(summary),
    resourceMetrics: async () => {
      try {
        return resourceFamilies(await observer.observe("usage"));
      } catch (err) {
        log.warn({ err: messageOf(err) }, "nothing could be measured for /metrics/resource");
        return resourceFamilies(undefined);
      }
    },
    cadvisorMetrics: async () => {
      const ofMachine = machineFamilies(machine);
      try {
        return [...ofMachine.slice(0, 1), ...(await cadvisor()), scrapeError(0), ...ofMachine.slice(1)];
      } catch (err) {
        log.warn({ err: messageOf(err) }, "nothing could be measured for /metrics/cadvisor");
        return [...ofMachine, scrapeError(1)];
      }
    },
  };
}

/**
 * Names of containers' images by container ID. The runtime's list of containers has only what each was made with, which is
 * the image's ID; the name that it is known by stands in the pod's status.
 */
function imageNames(pods: StatsDeps["pods"]): Map<string, string> {
  const names = new Map<string, string>();
  for (const pod of pods.list()) {
    const { initContainerStatuses, containerStatuses, ephemeralContainerStatuses } = pods.status(pod) ?? {};
    for (const statuses of [initContainerStatuses, containerStatuses, ephemeralContainerStatuses]) {
      for (const { image, containerID } of statuses ?? []) {
        // `<runtime>://<id>`
        if (image !== "" && containerID !== undefined) names.set(containerID.replace(/^[^/]*:\/\//, ""), image);
      }
    }
  }
  return names;
}

function scrapeError(value: 0 | 1): MetricFamily {
  const help = "1 if the figures could not be measured, else 0";
  return { name: "container_scrape_error", help, type: "gauge", samples: [{ labels: {}, value }] };
}

/** A pod's cgroup as node/cgroups.ts names it. */
function podCgroup({ cgroups: { driver, cgroupRoot, cgroupsPerQOS } }: StatsDeps, pod: Pod): string | undefined {
  if (!cgroupsPerQOS) return undefined;
  const components = [
    ...cgroupComponents(cgroupRoot),
    ...qosComponents(qosClass(pod)),
    podComponent(pod.metadata.uid ?? ""),
  ];
  return cgroupPath(components, driver);
}

interface NamedCgroups {
  system: SystemCgroups;
  at(level: SampleLevel): readonly string[];
}

async function namedCgroups({ cgroups, systemCgroups }: StatsDeps, mounts: CgroupMounts): Promise<NamedCgroups> {
  const { driver, cgroupRoot, cgroupsPerQOS } = cgroups;
  const below = (names: readonly string[]) => cgroupPath([...cgroupComponents(cgroupRoot), ...names], driver);
  const own = parseOwnCgroup(await readFile("/proc/self/cgroup", "utf8").catch(() => ""), mounts.version);
  const system: SystemCgroups = {
    kubelet: absolute(systemCgroups.kubeletCgroups) ?? own,
    runtime: absolute(systemCgroups.runtimeCgroups),
    misc: absolute(systemCgroups.systemCgroups),
    pods: cgroupsPerQOS ? below(["kubepods"]) : undefined,
  };
  const shown = Object.values(system).filter((path): path is string => path !== undefined && path !== "/");
  const classes = cgroupsPerQOS ? [below(qosComponents("Burstable")), below(qosComponents("BestEffort"))] : [];
  const unique = (paths: readonly string[]) => [...new Set(paths)];
  return { system, at: (level) => (level === "all" ? unique([...shown, ...classes]) : unique(shown)) };
}

/** Configured names may come without the slash. */
function absolute(name: string): string | undefined {
  return name === "" ? undefined : `/${name.replace(/^\/+/, "")}`;
}

async function describeMachine(facts: StatsDeps["facts"], reader: FileReader): Promise<Machine> {
  const [cpuinfo, dimms] = await Promise.all([reader.list("/proc/cpuinfo"), readDimms(reader)]);
  const topology = parseTopology(cpuinfo);
  return { ...facts, physicalCores: topology?.cores ?? facts.cpuCount, sockets: topology?.sockets ?? 1, dimms };
}

interface SummaryParts {
  deps: StatsDeps;
  nodeOptions: NodeStatsOptions;
  volumes: VolumeMeter;
}

async function fullSummary(observation: Observation, around: NodeSurroundings, parts: SummaryParts): Promise<Summary> {
  const { deps, nodeOptions, volumes } = parts;
  const { nodeFs, atMs } = around;
  const filesystems = await writableFilesystems(observation.pods);
  const disks = new Map<string, { logs: Map<string, DiskUsage>; other: DiskUsage }>();
  await forEachLimited(observation.pods, concurrency, async (pod) => {
    disks.set(pod.sandbox.id, await podFiles(deps, pod));
  });
  const pods = observation.pods.map((pod) => {
    const { logs, other } = disks.get(pod.sandbox.id) ?? { logs: new Map(), other: { bytes: 0, inodes: 0 } };
    const disk: PodDisk = {
      nodeFs,
      atMs,
      logs,
      other,
      volumes: volumes.of(pod.sandbox.podUID),
      filesystemAt: (mountpoint) => filesystems.get(mountpoint),
    };
    return podStats(pod, disk);
  });
  return { node: nodeStats(observation, around, nodeOptions), pods };
}

/** Filesystems that hold writable layers, by the mount point that the runtime names: few, whatever the number of pods. */
async function writableFilesystems(pods: readonly ObservedPod[]): Promise<Map<string, FilesystemFigures>> {
  const layers = pods.flatMap(({ containers }) => containers.map(({ runtime }) => runtime?.writableLayer?.mountpoint));
  const mountpoints = new Set(layers.filter((mountpoint) => mountpoint !== undefined));
  const found = new Map<string, FilesystemFigures>();
  for (const mountpoint of mountpoints) {
    const figures = await filesystemOf(mountpoint).catch(() => undefined);
    if (figures !== undefined) found.set(mountpoint, figures);
  }
  return found;
}

/** Logs of a pod's containers and the other files that the agent and the runtime keep for it. */
async function podFiles({ podLogsDir, rootDir }: StatsDeps, { sandbox, containers }: ObservedPod) {
  const { podNamespace, podName, podUID } = sandbox;
  const logDir = join(podLogsDir, `${podNamespace}_${podName}_${podUID}`);
  const logs = new Map<string, DiskUsage>();
  for (const { container } of containers) logs.set(container.name, await logsIn(join(logDir, container.name)));
  const other = sumUsage([await filesDirectlyIn(logDir), await fileUsage(join(rootDir, "pods", podUID, "etc-hosts"))]);
  return { logs, other };
}
