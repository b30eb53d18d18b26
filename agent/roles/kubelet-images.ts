import { join } from "node:path";
import type { KubeletSettings } from "../config/load-kubelet.ts";
import type { EventRecorder } from "../kube/port.ts";
import { podReference, specContainers } from "../pods/names.ts";
import type { TimelineRecorder } from "../pods/timeline-recorder.ts";
import { createImageManager, type ImageManager, type ImageManagerOptions } from "../runtime/images.ts";
import { openPullRecords, type PullRecords } from "../runtime/images-records.ts";
import type { Runtime } from "../runtime/port.ts";
import type { Surroundings } from "./cluster.ts";
import type { NodeCredentials } from "./kubelet-credentials.ts";
import type { KubeletMetrics } from "./kubelet-metrics.ts";
import { pullVerification } from "./kubelet-settings.ts";

export interface OpenImagesOptions {
  settings: KubeletSettings;
  runtime: Runtime;
  recorder: EventRecorder;
  measures: KubeletMetrics;
  timelines: Pick<TimelineRecorder, "pullProgress">;
  nodeCredentials: NodeCredentials;
}

export interface OpenedImages extends ImageManager {
  /** Forgets who may use images that the runtime no longer has. */
  pruneRecords(signal: AbortSignal): Promise<void>;
}

/** Makes the part that pulls, with what it needs to know of credentials. */
export async function openImages(options: OpenImagesOptions, surroundings: Surroundings): Promise<OpenedImages> {
  const { settings, runtime, recorder, measures, timelines, nodeCredentials } = options;
  const { clock, log } = surroundings;
  const { serializeImagePulls, maxParallelImagePulls, registryPullQPS, registryBurst } = settings.config;
  const records = await openRecords(options, surroundings);
  const manager = createImageManager({
    images: runtime.images,
    clock,
    log,
    onEvent: eventOfContainer(recorder),
    serializeImagePulls,
    ...(maxParallelImagePulls === undefined ? {} : { maxParallelImagePulls }),
    registryPullQPS,
    registryBurst,
    ...(records === undefined ? {} : { records }),
    nodeCredentials: async (pod, repository) => await nodeCredentials.find(pod, repository),
    metrics: measures.images,
    onPull: measures.pods.pull,
    onProgress: (pod, container, progress) => timelines.pullProgress(pod, container, progress),
  });
  return {
    ensureImage: manager.ensureImage,
    pruneRecords: async (signal) => await records?.prune(async () => await runtime.images.listImages(), signal),
    forgetPod: (podUID) => {
      manager.forgetPod(podUID);
      nodeCredentials.forgetPod(podUID);
    },
  };
}

async function openRecords(
  { settings, runtime, measures: { registry } }: OpenImagesOptions,
  { clock, log }: Surroundings,
): Promise<PullRecords | undefined> {
  const policy = pullVerification(settings);
  if (policy === undefined) return undefined;
  const dir = join(settings.flags.rootDir, "image_manager");
  const records = await openPullRecords({ dir, policy, now: () => clock.now(), log, registry });
  await records.recover(runtime.images);
  return records;
}

function eventOfContainer(recorder: EventRecorder): ImageManagerOptions["onEvent"] {
  return (pod, { name }, type, reason, message) => {
    const fieldPath = specContainers(pod).find(({ container }) => container.name === name)?.fieldPath;
    recorder.event(podReference(pod, fieldPath), type, reason, message);
  };
}
