import { ifThere } from "../../lib/errors.ts";
import { readFile } from "node:fs/promises";
import { isAbsolute } from "node:path";
import type { Clock } from "../../lib/clock.ts";
import type { ContainerStats, FilesystemUsage, SandboxProcess } from "../port.ts";
import { containersIn, fieldsOf, textOf } from "./answers.ts";
import { type ContainerCgroup, findContainerCgroup, readContainerCgroup } from "./cgroup-figures.ts";
import type { DockerClient } from "./client.ts";
import { inspectContainer } from "./create.ts";
import type { DockerDisk } from "./fs-usage.ts";
import { runningContainersFilter } from "./labels.ts";
import { forEachOf } from "./lanes.ts";
import { kindOfListed } from "./ownership.ts";
import type { WireInspect } from "./wire.ts";

// Containers that are looked at together: a look costs the daemon some 2 ms, reading a cgroup less.
const looksAtOnce = 8;

/** What does not change while a container runs. */
interface KnownContainer {
  cgroup: ContainerCgroup | undefined;
  /** The directory with what it wrote; undefined where the storage driver has none. */
  upperDir: string | undefined;
}

export interface DockerStats {
  /** Of every running container of a pod: one list, a look at each new one, and the kernel's own files. */
  containerStats(): Promise<ContainerStats[]>;
}

/**
 * Figures of containers. They are read from their cgroups, as the daemon itself would do, but it would take a second for each
 * and do one after the other. What containers wrote is measured in the background.
 */
export function createDockerStats(
  client: DockerClient,
  options: { disk: DockerDisk; nodeName: string; clock: Clock },
): DockerStats {
  const { disk, nodeName, clock } = options;
  const known = new Map<string, KnownContainer>();
  const layers = disk.layers(() => [...known.values()].flatMap(({ upperDir }) => upperDir ?? []));
  const sizes = disk.sizes();

  const look = async (id: string, mountinfo: () => Promise<string>): Promise<KnownContainer | undefined> => {
    const answer = await ifThere(inspectContainer(client, `inspect container ${id}`, id));
    if (answer === undefined) return undefined;
    const pid = pidOf(answer);
    const text = pid === undefined ? "" : await readFile(`/proc/${pid}/cgroup`, "utf8").catch(() => "");
    const cgroup = findContainerCgroup(await mountinfo(), text, id, client.daemon.cgroupVersion);
    return { cgroup, upperDir: upperDirOf(answer) };
  };

  const writableLayer = async ({ upperDir }: KnownContainer, id: string): Promise<FilesystemUsage | undefined> => {
    const mountpoint = await disk.root();
    if (upperDir === undefined) {
      const figure = await sizes.latest();
      const usedBytes = figure?.value.get(id);
      return figure === undefined || usedBytes === undefined
        ? undefined
        : { timestampMs: figure.atMs, mountpoint, usedBytes };
    }
    const figure = await layers.latest();
    const usage = figure?.value.get(upperDir);
    return figure === undefined || usage === undefined
      ? undefined
      : { timestampMs: figure.atMs, mountpoint, usedBytes: usage.bytes, inodesUsed: usage.inodes };
  };

  return {
    containerStats: async () => {
      const ids = await runningContainers(client, nodeName);
      const present = new Set(ids);
      for (const id of known.keys()) if (!present.has(id)) known.delete(id);
      let mountinfo: Promise<string> | undefined;
      const readMountinfo = async () => await (mountinfo ??= readFile("/proc/self/mountinfo", "utf8"));
      await forEachOf(ids, looksAtOnce, async (id) => {
        // One that was restarted by hand has another cgroup directory of the same name: nothing to learn anew.
        if (known.get(id)?.cgroup !== undefined) return;
        const found = await look(id, readMountinfo);
        if (found !== undefined) known.set(id, found);
      });
      const all = new Map<string, ContainerStats>();
      await forEachOf(ids, looksAtOnce, async (id) => {
        const container = known.get(id);
        if (container === undefined) return;
        const { cgroup } = container;
        const figures = cgroup === undefined ? {} : await readContainerCgroup(cgroup, () => clock.now());
        const layer = await writableLayer(container, id);
        all.set(id, { containerID: id, ...figures, ...(layer === undefined ? {} : { writableLayer: layer }) });
      });
      return ids.flatMap((id) => all.get(id) ?? []);
    },
  };
}

/** Rejects with NotFound. */
export async function sandboxProcess(client: DockerClient, sandboxID: string): Promise<SandboxProcess> {
  const answer = await inspectContainer(client, `inspect sandbox ${sandboxID}`, sandboxID);
  const pid = pidOf(answer);
  return { ...(pid === undefined ? {} : { pid }), image: answer.Config?.Image ?? "" };
}

async function runningContainers(client: DockerClient, nodeName: string): Promise<string[]> {
  const answer: unknown = await client.call(
    "list running containers",
    async (abortSignal) =>
      await client.docker.listContainers({ filters: runningContainersFilter(), abortSignal } as object),
  );
  const all = containersIn(answer, "list running containers");
  return all.filter((one) => kindOfListed(one, nodeName) === "container").map(({ Id }) => Id);
}

function pidOf({ State }: WireInspect): number | undefined {
  const pid = State?.Pid ?? 0;
  return pid > 0 ? pid : undefined;
}

function upperDirOf({ GraphDriver }: WireInspect): string | undefined {
  const directory = textOf(fieldsOf(GraphDriver?.Data)["UpperDir"]);
  return isAbsolute(directory) ? directory : undefined;
}
