import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { ignoreErrno } from "../lib/errno.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { unmountAllUnder } from "../lib/mount.ts";
import type { VolumeKind } from "./kind.ts";
import type { KindTable } from "./kinds.ts";
import { tearDownPodVolumes } from "./pod-dirs.ts";

/**
 * Takes away all volumes of a pod whose containers have stopped, by what is on disk, so that it works for pods of an earlier
 * run: first the subPaths, which keep their volumes busy; then, all at once, the volumes of kinds that do it their own way;
 * then the rest. One volume that does not let go does not keep the others.
 * Rejects with an `AgentError` that names each volume that is left; call it again later.
 */
export async function tearDownVolumes(pod: { podUID: string; podDir: string; kinds: KindTable }): Promise<void> {
  const { podUID, podDir, kinds } = pod;
  await unmountAllUnder(join(podDir, "volume-subpaths"));
  const found = [
    ...(await volumesIn(join(podDir, "volumes"), false, kinds)),
    ...(await volumesIn(join(podDir, "volumeDevices"), true, kinds)),
  ];
  const outcomes = await Promise.allSettled(
    found.map(async ({ kind, ...volume }) => await kind.tearDown?.({ podUID, podDir, ...volume })),
  );
  const failures = outcomes.flatMap((outcome, at) =>
    outcome.status === "fulfilled" ? [] : [`volume "${found[at]?.specName}": ${messageOf(outcome.reason)}`],
  );
  try {
    await tearDownPodVolumes(podDir);
  } catch (err) {
    // What a kind could not take away is in its way too, and was named.
    if (failures.length === 0) throw err;
  }
  if (failures.length > 0) throw new AgentError("Internal", failures.join("; "));
}

interface FoundVolume {
  kind: VolumeKind;
  specName: string;
  dir: string;
  isBlock: boolean;
}

async function volumesIn(dir: string, isBlock: boolean, kinds: KindTable): Promise<FoundVolume[]> {
  const found: FoundVolume[] = [];
  for (const plugin of await namesIn(dir)) {
    const kind = kinds.ofDirName(plugin);
    if (kind?.tearDown === undefined) continue;
    for (const specName of await namesIn(join(dir, plugin))) {
      found.push({ kind, specName, dir: join(dir, plugin, specName), isBlock });
    }
  }
  return found;
}

async function namesIn(dir: string): Promise<string[]> {
  return (await readdir(dir).catch(ignoreErrno("ENOENT"))) ?? [];
}
