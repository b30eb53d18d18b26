import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import type { Logger } from "../lib/log.ts";
import { Loop } from "../lib/loop.ts";
import type { PodCgroups } from "../node/cgroups.ts";
import type { PodSet } from "../pods/sources/port.ts";

// kubelet's period. Pods that come weigh in at once; this is for those that end.
const refreshMs = 60_000;

/** Keeps the CPU weight of the Burstable class at what its active pods asked for, until `signal` aborts. */
export async function keepQOSWeights(
  deps: {
    cgroups: Pick<PodCgroups, "refreshQOS">;
    pods: Pick<PodSet, "hasSynced" | "list">;
    /** The pod with the resources that it was given. */
    given(pod: Pod): Pod;
    clock: Clock;
    log: Logger;
  },
  signal: AbortSignal,
): Promise<void> {
  const { cgroups, pods, given, clock, log } = deps;
  const loop = new Loop({
    clock,
    resyncMs: refreshMs,
    retryMs: () => refreshMs,
    onError: (err) => log.warn({ err: messageOf(err) }, "cannot weigh the QoS classes"),
    pass: async () => {
      const isActive = ({ status }: Pod) => status?.phase !== "Succeeded" && status?.phase !== "Failed";
      if (pods.hasSynced) await cgroups.refreshQOS([...pods.list()].filter(isActive).map(given));
      return undefined;
    },
  });
  await loop.run(signal);
}
