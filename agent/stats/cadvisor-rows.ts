import type { CgroupReading, Observation } from "./observe.ts";
import type { DiskCounters, InterfaceCounters } from "./parse.ts";
import type { FilesystemFigures } from "./filesystem.ts";

/** The six labels of every `container_*` metric; "" where there is nothing to say, so that all series have the same. */
export interface RowLabels extends Record<string, string> {
  container: string;
  /** Path of the cgroup. */
  id: string;
  image: string;
  /** The runtime's ID. */
  name: string;
  namespace: string;
  pod: string;
}

/** One cgroup and what is known of it. */
export interface Row {
  labels: RowLabels;
  reading: CgroupReading;
  /** Sandboxes and the machine. */
  network?: { atMs: number; interfaces: readonly InterfaceCounters[] };
  /** The machine only. */
  filesystems?: readonly DeviceFilesystem[];
  /** Containers only. */
  processes?: ProcessDetails;
}

/** A filesystem on a block device of the machine. */
export interface DeviceFilesystem {
  device: string;
  figures: FilesystemFigures;
  disk?: DiskCounters;
}

/** What the processes of a container hold. */
export interface ProcessDetails {
  fileDescriptors: number;
  /** Absent if there were too many descriptors to look at each. */
  sockets?: number;
  /** Soft limit of the first process; absent if it went meanwhile. */
  maxOpenFiles?: number;
}

export interface RowSources {
  machineNetwork: Row["network"];
  filesystems: readonly DeviceFilesystem[];
  /** By container ID. */
  processes: ReadonlyMap<string, ProcessDetails>;
  /** Names of images by container ID, as far as they are known. */
  images: ReadonlyMap<string, string>;
}

/** The rows of `/metrics/cadvisor`: the machine, cgroups by name, pods with their sandboxes and containers. */
export function cadvisorRows(observation: Observation, sources: RowSources): Row[] {
  const { machineNetwork, filesystems, processes, images } = sources;
  const nothing = { container: "", id: "/", image: "", name: "", namespace: "", pod: "" };
  const rows: Row[] = [
    {
      labels: nothing,
      reading: observation.root,
      filesystems,
      ...(machineNetwork === undefined ? {} : { network: machineNetwork }),
    },
  ];
  for (const [id, reading] of observation.named) rows.push({ labels: { ...nothing, id }, reading });
  for (const pod of [...observation.pods, ...observation.idle]) {
    const { podName, podNamespace, id: sandboxID } = pod.sandbox;
    const labels = { ...nothing, namespace: podNamespace, pod: podName };
    const { cgroup, sandboxCgroup, sandboxImage, network } = pod;
    if (cgroup !== undefined) rows.push({ labels: { ...labels, id: cgroup.path }, reading: cgroup });
    if (sandboxCgroup !== undefined) {
      rows.push({
        labels: { ...labels, id: sandboxCgroup.path, image: sandboxImage, name: sandboxID },
        reading: sandboxCgroup,
        ...(network === undefined ? {} : { network }),
      });
    }
    for (const { container, cgroup: reading } of pod.containers) {
      if (reading === undefined) continue;
      const details = processes.get(container.id);
      rows.push({
        labels: {
          ...labels,
          container: container.name,
          id: reading.path,
          image: images.get(container.id) ?? container.image,
          name: container.id,
        },
        reading,
        ...(details === undefined ? {} : { processes: details }),
      });
    }
  }
  return rows;
}
