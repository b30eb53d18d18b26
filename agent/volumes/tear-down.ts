import { join } from "node:path";
import { namesIn } from "../lib/names-in.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { unmountAllUnder } from "../lib/mount.ts";
import type { VolumeKind } from "./kind.ts";
import type { KindTable } from "./kinds.ts";
import type { VolumeMetrics } from "./metrics.ts";
import { tearDownPodVolumes } from "./pod-dirs.ts";

/**
 * Takes away all volumes of a pod whose containers have stopped, by what is on disk, so that it works for pods of an earlier
 * run: first, all at once, the volumes of kinds that do it their own way, each after its subPaths, which keep it busy; then
 * the rest. One volume that does not let go does not keep the others.
 * Rejects with an `AgentError` that names each volume that is left; call it again later.
 */
export async function tearDownVolumes(pod: { podUID: string; podDir: string; kinds: KindTable }): Promise<void> {
  const { podUID, podDir, kinds } = pod;
  const found = [
    ...(await volumesIn(join(podDir, "volumes"), { isBlock: false, kinds })),
    ...(await volumesIn(join(podDir, "volumeDevices"), { isBlock: true, kinds })),
  ];
  const outcomes = await Promise.allSettled(
    found.map(async ({ kind, plugin: _plugin, ...volume }) => {
      const unmount = kind.unmount ?? unmountAllUnder;
      await unmount(join(podDir, "volume-subpaths", volume.specName));
      await kind.tearDown?.({ podUID, podDir, ...volume });
    }),
  );
  const left = found.filter((_, at) => outcomes[at]?.status === "rejected");
  const failures = outcomes.flatMap((outcome, at) =>
    outcome.status === "fulfilled" ? [] : [`volume "${found[at]?.specName}": ${messageOf(outcome.reason)}`],
  );
  try {
    await tearDownPodVolumes(podDir, kinds, left);
  } catch (err) {
    failures.push(messageOf(err));
  }
  if (failures.length > 0) throw new AgentError("Internal", failures.join("; "));
}

/**
 * Takes away, by `tearDown`, the volumes of a pod of which this run of the agent knows nothing, and counts what was on disk
 * and what is left of it. Rejects as `tearDown` does.
 */
export async function countFound(
  podDir: string,
  kinds: KindTable,
  tearDown: () => Promise<void>,
  metrics: Pick<VolumeMetrics, "foundOnDisk"> | undefined,
): Promise<void> {
  if (metrics === undefined) return await tearDown();
  const before = await placesIn(podDir);
  try {
    await tearDown();
  } finally {
    const after = before.length === 0 ? [] : await placesIn(podDir).catch(() => before);
    const left = new Set(after.map(({ path }) => path));
    const foreign = before.filter(({ plugin }) => kinds.ofDirName(plugin) === undefined);
    const failed = before.filter(({ plugin, path }) => kinds.ofDirName(plugin) !== undefined && left.has(path));
    metrics.foundOnDisk({
      found: before.length,
      notUnderstood: foreign.length + failed.length,
      forced: foreign.length,
      left: foreign.filter(({ path }) => left.has(path)).length,
    });
  }
}

async function placesIn(podDir: string): Promise<{ plugin: string; path: string }[]> {
  const found: { plugin: string; path: string }[] = [];
  for (const top of ["volumes", "volumeDevices"]) {
    for (const plugin of await namesIn(join(podDir, top))) {
      const names = await namesIn(join(podDir, top, plugin));
      found.push(...names.map((name) => ({ plugin, path: join(podDir, top, plugin, name) })));
    }
  }
  return found;
}

interface FoundVolume {
  kind: VolumeKind;
  /** The name of its plugin's directory. */
  plugin: string;
  specName: string;
  dir: string;
  isBlock: boolean;
}

async function volumesIn(
  dir: string,
  { isBlock, kinds }: { isBlock: boolean; kinds: KindTable },
): Promise<FoundVolume[]> {
  const found: FoundVolume[] = [];
  for (const plugin of await namesIn(dir)) {
    const kind = kinds.ofDirName(plugin);
    if (kind?.tearDown === undefined) continue;
    for (const specName of await namesIn(join(dir, plugin))) {
      found.push({ kind, plugin, specName, dir: join(dir, plugin, specName), isBlock });
    }
  }
  return found;
}
