import { join } from "node:path";
import { namesIn } from "../lib/names-in.ts";
import { AgentError, messageOf } from "../lib/errors.ts";
import { unmountAllUnder } from "../lib/mount.ts";
import type { VolumeKind } from "./kind.ts";
import type { KindTable } from "./kinds.ts";
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
