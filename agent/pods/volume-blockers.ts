import { claimNameOf, namespaceOf } from "../kube/pod-resources.ts";
import type { Pod, Volume } from "../kube/types.ts";
import type { Awaited } from "../volumes/awaits.ts";
import type { Blocker } from "./blockers.ts";
import type { PodFacts } from "./explain.ts";
import type { PodLocal } from "./local.ts";
import type { TimelineEntry } from "./timeline.ts";

// A volume is mounted within a second or two; a driver that makes a disk ready may take a little longer.
export const hangingAfterMs = 15_000;

/** What volumes of a pod are waited for, one blocker each, while the pod cannot start for want of them. Pure. */
export function volumeBlockers({ pod, timeline }: PodFacts, local: PodLocal, nowMs: number): Blocker[] {
  if (local.volumes !== "unknown" && local.awaitedVolumes.size === 0) return [];
  const attempt = local.attempts.get("volumes");
  const nextTry = attempt?.state === "failed" ? { nextTryMs: attempt.retryAtMs } : {};
  const histories = new Map<string, TimelineEntry[]>();
  for (const entry of timeline?.entries ?? []) {
    if (entry.what === "volume") histories.set(entry.subject, [...(histories.get(entry.subject) ?? []), entry]);
  }
  const blockers = [...histories].flatMap(([name, entries]): Blocker[] => {
    const latest = entries.reduce((a, b) => (b.lastAtMs >= a.lastAtMs ? b : a));
    const volume = pod.spec.volumes?.find((one) => one.name === name) ?? { name };
    const what = `volume ${name}${kindText(pod, volume)}`;
    const failure = latestFailure(entries);
    if (latest.state === "done") return [];
    if (latest.state === "failed") {
      const { detail: why, atMs: sinceMs, times: tries } = latest;
      return [{ what, why, next: volumeNext(latest.awaited, pod, volume), sinceMs, ...nextTry, tries }];
    }
    return [{ what, ...underWay(latest, failure, volume, nowMs), sinceMs: latest.atMs }];
  });
  if (blockers.length > 0 || attempt?.state !== "failed") return blockers;
  return [{ what: "volumes", why: attempt.message, ...nextTry }];
}

function underWay(
  { atMs }: TimelineEntry,
  failure: TimelineEntry | undefined,
  volume: Volume,
  nowMs: number,
): Pick<Blocker, "why" | "next"> {
  const before = failure === undefined ? "" : `; the try before failed: ${failure.detail}`;
  if (nowMs - atMs < hangingAfterMs) return { why: `is being set up${before}` };
  return {
    why: `hangs: ${hangText(volume)}${before}`,
    next: "goes on by itself when it answers; other pods do not wait",
  };
}

function hangText({ nfs, csi, hostPath, persistentVolumeClaim, ephemeral }: Volume): string {
  if (nfs !== undefined) return `NFS server ${nfs.server} has not answered to the mount of ${nfs.path}`;
  if (csi !== undefined) return `CSI driver ${csi.driver} has not answered`;
  if (hostPath !== undefined) return `${hostPath.path} does not answer, what is mounted there may be away`;
  if (persistentVolumeClaim !== undefined || ephemeral !== undefined) {
    return "the API server, or what mounts the claim's volume, has not answered";
  }
  return "neither the disk nor the API server has answered";
}

/** What makes a failed volume go on; "" if only its next try does. Pure. */
function volumeNext(awaited: Awaited | undefined, pod: Pod, volume: Volume): string {
  const claim = `${namespaceOf(pod)} ${claimNameOf(pod, volume) ?? ""}`;
  switch (awaited) {
    case "claim":
      return `somebody has to make the claim: kubectl get pvc -n ${claim}`;
    case "new claim":
      return "the claim has to be made anew";
    case "binding":
      return `see why it is not bound: kubectl describe pvc -n ${claim}`;
    case "attachment":
      return "tried again at once when it is attached: kubectl describe volumeattachments";
    case "driver":
      return "tried again at once when the driver registers: look at its pod on this node";
    case "other pod":
      return "the other pod on this node has to go first";
    case "object":
    case undefined:
      return soonerText(awaited);
  }
}

/** When what fails for want of an object is tried again; "" for other errors. Pure. */
export function soonerText(awaited: Awaited | undefined): string {
  return awaited === "object" ? "tried again at once when it appears" : "";
}

function latestFailure(entries: readonly TimelineEntry[]): TimelineEntry | undefined {
  return entries
    .filter(({ state }) => state === "failed")
    .toSorted((a, b) => a.lastAtMs - b.lastAtMs)
    .at(-1);
}

function kindText(pod: Pod, volume: Volume): string {
  const claim = claimNameOf(pod, volume);
  if (claim !== undefined) return ` (claim ${claim})`;
  const { name: _name, ...rest } = volume;
  const [kind] = Object.keys(rest);
  return kind === undefined ? "" : ` (${kind})`;
}
