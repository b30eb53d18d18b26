import type { Clock } from "../lib/clock.ts";
import type { VolumeContext } from "./kind.ts";
import { applyFSGroup } from "./ownership.ts";

/**
 * Gives a volume to a pod's fsGroup, as its fsGroupChangePolicy says, and tells the pod while that takes long.
 * @param onRefused told what could not be changed, which does not end the walk
 */
export async function giveToGroup(
  path: string,
  fsGroup: number,
  { pod, specName, event }: Pick<VolumeContext, "pod" | "specName" | "event">,
  clock: Clock,
  onRefused?: (err: unknown) => void,
): Promise<void> {
  const { fsGroupChangePolicy: policy } = pod.spec.securityContext ?? {};
  await applyFSGroup(path, fsGroup, {
    isReadOnly: false,
    ...(policy === undefined ? {} : { policy }),
    ...(onRefused === undefined ? {} : { onRefused }),
    monotonic: () => clock.monotonic(),
    onSlow(entries) {
      const so = `Setting volume ownership for volume ${specName} is taking longer than expected, processed ${entries} files`;
      event("Warning", "VolumePermissionChangeInProgress", `${so}; consider fsGroupChangePolicy OnRootMismatch`);
    },
  });
}
