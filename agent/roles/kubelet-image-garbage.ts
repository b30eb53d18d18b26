import type { KubeletSettings } from "../config/load-kubelet.ts";
import type { EventRecorder } from "../kube/port.ts";
import type { Pod } from "../kube/types.ts";
import type { Clock } from "../lib/clock.ts";
import { messageOf } from "../lib/errors.ts";
import { ignoreAbort } from "../lib/loop.ts";
import { createImageCollector } from "../node/image-collector.ts";
import { collectsImages } from "../node/image-garbage.ts";
import type { HeldPods } from "../pods/manager.ts";
import { nodeReference, specContainers } from "../pods/names.ts";
import { isTerminalPhase } from "../pods/status.ts";
import { createImageGarbageMetrics } from "../runtime/metrics.ts";
import type { Runtime } from "../runtime/port.ts";
import { filesystemOf } from "../stats/filesystem.ts";
import type { Surroundings } from "./cluster.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";
import { imageGarbagePolicy } from "./kubelet-settings.ts";

export interface ImageCollectionOptions {
  settings: KubeletSettings;
  runtime: Pick<Runtime, "images">;
  recorder: EventRecorder;
  measures: Pick<KubeletMetrics, "registry">;
  nodeView: { nodeName: string };
  /** The pods that the node knows of. */
  held: Pick<HeldPods, "list" | "status">;
  sources: { synced(signal: AbortSignal): Promise<void> };
  /** Forgets who may use images that are no longer there; rejects at once when the signal aborts. */
  pruneRecords(signal: AbortSignal): Promise<void>;
}

/** Pods may need images that nothing runs of yet, so they should be known first. But an API server can be away for long. */
export const podsWaitMsMax = 60_000;

/** Removes images that nobody needs, unless the configuration says that none may go. */
export function startImageCollection(options: ImageCollectionOptions, { clock, log, parts }: Surroundings): void {
  const { settings, runtime, recorder, measures, nodeView, held, sources, pruneRecords } = options;
  const metrics = createImageGarbageMetrics(measures.registry);
  const policy = imageGarbagePolicy(settings);
  if (!collectsImages(policy)) return;
  const node = nodeReference(nodeView.nodeName);
  const collector = createImageCollector({
    images: runtime.images,
    policy,
    wanted: () => held.list().flatMap((pod) => (isTerminalPhase(held.status(pod)?.phase) ? [] : imagesOf(pod))),
    spaceAt: filesystemOf,
    event: (reason, message) => recorder.event(node, "Warning", reason, message),
    metrics,
    onPass: async (signal) =>
      await pruneRecords(signal).catch((err: unknown) => {
        if (signal.aborted) return;
        log.warn({ err: messageOf(err) }, "records of image pulls not pruned, trying again after the next collection");
      }),
    clock,
    log,
  });
  parts.start("image garbage collection", async (signal) => {
    await podsKnown(sources, clock, signal);
    await collector.run(signal);
  });
}

async function podsKnown(sources: ImageCollectionOptions["sources"], clock: Clock, signal: AbortSignal): Promise<void> {
  const known = new AbortController();
  const either = AbortSignal.any([signal, known.signal]);
  await Promise.race([
    sources.synced(either).catch(ignoreAbort),
    clock.sleep(podsWaitMsMax, either).catch(ignoreAbort),
  ]);
  known.abort();
}

/** Every image that the pod's spec names. Pure. */
export function imagesOf(pod: Pod): string[] {
  const volumes = (pod.spec.volumes ?? []).map(({ image }) => image?.reference);
  const containers = specContainers(pod).map(({ container }) => container.image);
  return [...containers, ...volumes].flatMap((image) => (image === undefined || image === "" ? [] : [image]));
}
