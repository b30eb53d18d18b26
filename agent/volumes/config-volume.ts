import { posix, relative } from "node:path";
import { allContainers } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import { hasPublishedContent, writePayload } from "./atomic-writer.ts";
import { openDirBeneath, partsOf, withDirs } from "./safe-path.ts";
import { setUpWrapped, tearDownWrapped } from "./empty-dir.ts";
import type { SetUpResult, VolumeContext } from "./kind.ts";
import { applyFSGroup } from "./ownership.ts";
import type { Payload } from "./payload.ts";

/** What the API server fills in for `defaultMode`; a static pod may lack it. */
export const defaultModeDefault = 0o644;
// Directories for other volumes to be mounted at.
const mountPointMode = 0o755;

/** What goes into a volume, and until when it is good. */
export interface Content {
  payload: Payload;
  /** Unix ms. */
  refreshAtMs?: number;
}

/**
 * Sets up a volume whose files we write: collects the content while its directory is made, then publishes it. If that
 * fails, what was published before stays; a volume that has nothing yet is taken down again.
 * @param medium "Memory" for what must not reach the disk
 */
export async function setUpConfigVolume(
  context: VolumeContext,
  medium: "" | "Memory",
  collect: () => Promise<Content>,
): Promise<SetUpResult> {
  const { dir } = context;
  const [collected, prepared] = await Promise.allSettled([collect(), setUpWrapped(context, medium)]);
  if (collected.status === "rejected") throw collected.reason;
  if (prepared.status === "rejected") throw prepared.reason;
  context.signal.throwIfAborted();
  const { payload, refreshAtMs } = collected.value;
  const hadContent = await hasPublishedContent(dir);
  try {
    await write(context, payload);
  } catch (err) {
    // The reason for the failure is the news; what cannot be taken down is there for the next try.
    if (!hadContent) await tearDownWrapped(context).catch(() => {});
    throw err;
  }
  return { hostPath: dir, ...(refreshAtMs === undefined ? {} : { refreshAtMs }) };
}

async function write({ pod, podDir, dir, volume, deps }: VolumeContext, payload: Payload): Promise<void> {
  const { fsGroup } = pod.spec.securityContext ?? {};
  const handle = await openDirBeneath(podDir, relative(podDir, dir));
  try {
    for (const path of nestedMountPoints(pod, volume.name)) {
      await withDirs(handle, partsOf(path), { mode: mountPointMode }, () => Promise.resolve());
    }
    await writePayload(handle, payload, {
      nowMs: deps.clock.now(),
      ...(fsGroup === undefined ? {} : { applyOwnership: () => applyFSGroup(handle, fsGroup, { isReadOnly: true }) }),
    });
  } finally {
    await handle.close();
  }
}

/**
 * Directories inside a volume at which containers mount other volumes. They are made beforehand, because the runtime
 * cannot make them in a read-only mount. Of nested ones only the outermost: the rest lie in the other volume.
 * Rejects with code Invalid for a mountPath that leads out of its container.
 */
export function nestedMountPoints(pod: Pod, volumeName: string): string[] {
  const found = new Set<string>();
  for (const { name: container, volumeMounts = [] } of allContainers(pod)) {
    const isOurs = new Map<string, boolean>();
    for (const { name, mountPath } of volumeMounts) {
      if (name === volumeName && posix.normalize(mountPath).startsWith("../")) {
        const why = `mountPath "${mountPath}" of container "${container}" leads out of the container`;
        throw new AgentError("Invalid", why);
      }
      const path = posix.resolve("/", mountPath).replace(/\/?$/, "/");
      isOurs.set(path, name === volumeName || isOurs.get(path) === true);
    }
    // Sorted, what lies beneath a path follows it at once. So the innermost path around each is on top of these, and no
    // number of mounts takes long.
    const around: string[] = [];
    for (const path of [...isOurs.keys()].sort()) {
      while (around.length > 0 && !path.startsWith(around.at(-1) ?? "")) around.pop();
      const outer = around.at(-1);
      if (outer !== undefined && isOurs.get(outer) === true) found.add(path.slice(outer.length, -1));
      around.push(path);
    }
  }
  return [...found].sort();
}
