import { mkdir } from "node:fs/promises";
import { join, posix } from "node:path";
import { allContainers } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import { type Payload, writePayload } from "./atomic-writer.ts";
import { setUpWrapped } from "./empty-dir.ts";
import type { SetUpResult, VolumeContext } from "./kind.ts";
import { applyFSGroup } from "./ownership.ts";

/** What the API server fills in for `defaultMode`; a static pod may lack it. */
export const defaultModeDefault = 0o644;

/** What goes into a volume, and until when it is good. */
export interface Content {
  payload: Payload;
  /** Unix ms. */
  refreshAtMs?: number;
}

/**
 * Sets up a volume whose files we write: collects the content while its directory is made, then publishes it.
 * @param medium "Memory" for what must not reach the disk
 */
export async function setUpConfigVolume(
  context: VolumeContext,
  medium: "" | "Memory",
  collect: () => Promise<Content>,
): Promise<SetUpResult> {
  const { dir, pod, deps, volume } = context;
  const [collected, prepared] = await Promise.allSettled([collect(), setUpWrapped(context, medium)]);
  if (collected.status === "rejected") throw collected.reason;
  if (prepared.status === "rejected") throw prepared.reason;
  context.signal.throwIfAborted();
  const { payload, refreshAtMs } = collected.value;
  for (const path of nestedMountPoints(pod, volume.name)) {
    await mkdir(join(dir, path), { recursive: true, mode: 0o755 });
  }
  const { fsGroup } = pod.spec.securityContext ?? {};
  await writePayload(dir, payload, {
    nowMs: deps.clock.now(),
    ...(fsGroup === undefined ? {} : { applyOwnership: () => applyFSGroup(dir, fsGroup, { isReadOnly: true }) }),
  });
  return { hostPath: dir, ...(refreshAtMs === undefined ? {} : { refreshAtMs }) };
}

/**
 * Directories inside a volume at which containers mount other volumes. They are made beforehand, because the runtime
 * cannot make them in a read-only mount. Of nested ones only the outermost: the rest lie in the other volume.
 */
export function nestedMountPoints(pod: Pod, volumeName: string): string[] {
  const found = new Set<string>();
  for (const { volumeMounts = [] } of allContainers(pod)) {
    const paths = volumeMounts.map(({ name, mountPath }) => ({ name, path: posix.resolve("/", mountPath) }));
    for (const outer of paths) {
      if (outer.name !== volumeName) continue;
      const inside = paths
        .map(({ path }) => posix.relative(outer.path, path))
        .filter((relative) => relative !== "" && relative !== ".." && !relative.startsWith("../"));
      for (const path of inside) {
        if (!inside.some((other) => path.startsWith(`${other}/`))) found.add(path);
      }
    }
  }
  return [...found].sort();
}
