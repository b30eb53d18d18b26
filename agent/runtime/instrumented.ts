import type { Clock } from "../lib/clock.ts";
import type { MetricsRegistry } from "../lib/metrics.ts";
import { createPLEGMetrics, createRuntimeMetrics, type RuntimeMetrics } from "./metrics.ts";
import type { ImageService, Runtime, RuntimeEvent } from "./port.ts";

/**
 * The runtime, with its calls counted and timed on `registry` under CRI's names of operations. Where one method makes
 * several calls beside each other, it counts for each kind of them: `list` as both lists, a look at a pod as both statuses.
 */
export function instrumentRuntime(runtime: Runtime, registry: MetricsRegistry, clock: Clock): Runtime {
  const metrics = createRuntimeMetrics(registry);
  const timed = timer(metrics, clock);
  const run = timed(["run_podsandbox"], runtime.runPodSandbox.bind(runtime));

  return {
    version: timed(["version"], runtime.version.bind(runtime)),
    status: timed(["status"], runtime.status.bind(runtime)),
    cgroupDriver: timed(["runtime_config"], runtime.cgroupDriver.bind(runtime)),
    updateRuntimeConfig: timed(["update_runtime_config"], runtime.updateRuntimeConfig.bind(runtime)),
    runPodSandbox: async (config, handler, onStep) => {
      const startedAtMs = clock.monotonic();
      try {
        return await run(config, handler, onStep);
      } catch (err) {
        metrics.sandboxErrors.inc({ runtime_handler: handler });
        throw err;
      } finally {
        metrics.sandboxSeconds.observe({ runtime_handler: handler }, (clock.monotonic() - startedAtMs) / 1_000);
      }
    },
    stopPodSandbox: timed(["stop_podsandbox"], runtime.stopPodSandbox.bind(runtime)),
    removePodSandbox: timed(["remove_podsandbox"], runtime.removePodSandbox.bind(runtime)),
    podSandboxStatus: timed(["podsandbox_status"], runtime.podSandboxStatus.bind(runtime)),
    createContainer: timed(["create_container"], runtime.createContainer.bind(runtime)),
    startContainer: timed(["start_container"], runtime.startContainer.bind(runtime)),
    stopContainer: timed(["stop_container"], runtime.stopContainer.bind(runtime)),
    removeContainer: timed(["remove_container"], runtime.removeContainer.bind(runtime)),
    containerStatus: timed(["container_status"], runtime.containerStatus.bind(runtime)),
    updateContainerResources: timed(["update_container"], runtime.updateContainerResources.bind(runtime)),
    updatePodSandboxResources: timed(["update_podsandbox_resources"], runtime.updatePodSandboxResources.bind(runtime)),
    reopenContainerLog: timed(["reopen_container_log"], runtime.reopenContainerLog.bind(runtime)),
    execSync: timed(["exec_sync"], runtime.execSync.bind(runtime)),
    list: timed(["list_podsandbox", "list_containers"], runtime.list.bind(runtime)),
    podSnapshot: timed(["podsandbox_status", "container_status"], runtime.podSnapshot.bind(runtime)),
    events: runtime.events.bind(runtime),
    images: instrumentImages(runtime.images, timed),
    containerStats: timed(["list_container_stats"], runtime.containerStats.bind(runtime)),
    sandboxProcess: timed(["podsandbox_status"], runtime.sandboxProcess.bind(runtime)),
    checkpointContainer: timed(["checkpoint_container"], runtime.checkpointContainer.bind(runtime)),
    streamingURL: async (request) => {
      const type = request.kind === "portforward" ? "port_forward" : request.kind;
      return await timed([type], runtime.streamingURL.bind(runtime))(request);
    },
    ...(runtime.drain === undefined ? {} : { drain: runtime.drain.bind(runtime) }),
    ...(runtime.unsupported === undefined ? {} : { unsupported: runtime.unsupported.bind(runtime) }),
    ...(runtime.hasPlainContainers === undefined
      ? {}
      : { hasPlainContainers: runtime.hasPlainContainers.bind(runtime) }),
    close: async () => await runtime.close(),
  };
}

/**
 * The runtime for whoever works on pods, with the lists, looks and events by which it hears of what runs measured on
 * `registry`. Others list, too, for statistics or logs: those must not count.
 */
export function instrumentPLEG<R extends Pick<Runtime, "list" | "podSnapshot" | "events">>(
  runtime: R,
  registry: MetricsRegistry,
  clock: Clock,
): R {
  const metrics = createPLEGMetrics(registry);
  let relistedAtMs: number | undefined;
  const seen = () => metrics.lastSeenSeconds.set({}, clock.now() / 1_000);
  return {
    ...runtime,
    list: async (podUID?: string) => {
      if (podUID !== undefined) return await runtime.list(podUID);
      const startedAtMs = clock.monotonic();
      if (relistedAtMs !== undefined) metrics.relistIntervalSeconds.observe({}, (startedAtMs - relistedAtMs) / 1_000);
      relistedAtMs = startedAtMs;
      try {
        const found = await runtime.list();
        seen();
        return found;
      } finally {
        metrics.relistSeconds.observe({}, (clock.monotonic() - startedAtMs) / 1_000);
      }
    },
    podSnapshot: async (podUID: string) => {
      const startedAtMs = clock.monotonic();
      try {
        const found = await runtime.podSnapshot(podUID);
        seen();
        return found;
      } finally {
        metrics.podRelistSeconds.observe({}, (clock.monotonic() - startedAtMs) / 1_000);
      }
    },
    events: async (onEvent: (event: RuntimeEvent) => void, signal: AbortSignal) => {
      await runtime.events((event) => {
        // Without a pod: the stream has begun, or begun again.
        if (event.podUID === undefined) metrics.eventConnections.inc({});
        if (event.createdAtMs !== undefined) {
          metrics.eventSeconds.observe({}, Math.max(0, clock.now() - event.createdAtMs) / 1_000);
        }
        seen();
        onEvent(event);
      }, signal);
    },
  };
}

function instrumentImages(images: ImageService, timed: Timed): ImageService {
  return {
    listImages: timed(["list_images"], images.listImages.bind(images)),
    imageStatus: timed(["image_status"], images.imageStatus.bind(images)),
    pullImage: timed(["pull_image"], images.pullImage.bind(images)),
    removeImage: timed(["remove_image"], images.removeImage.bind(images)),
    // No call of CRI's, but many of several kinds, one after the other.
    imagesInUse: timed(["images_in_use"], images.imagesInUse.bind(images)),
    fsInfo: timed(["image_fs_info"], images.fsInfo.bind(images)),
  };
}

type Timed = <A extends unknown[], R>(
  types: readonly string[],
  call: (...args: A) => Promise<R>,
) => (...args: A) => Promise<R>;

function timer({ operations, operationErrors, operationSeconds }: RuntimeMetrics, clock: Clock): Timed {
  return (types, call) => {
    const labels = types.map((type) => ({ operation_type: type }));
    return async (...args) => {
      const startedAtMs = clock.monotonic();
      try {
        return await call(...args);
      } catch (err) {
        for (const of of labels) operationErrors.inc(of);
        throw err;
      } finally {
        const seconds = (clock.monotonic() - startedAtMs) / 1_000;
        for (const of of labels) {
          operations.inc(of);
          operationSeconds.observe(of, seconds);
        }
      }
    };
  };
}
