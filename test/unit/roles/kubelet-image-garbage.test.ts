import { afterEach, expect, test } from "vitest";
import type { Pod } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createLogger, type Logger, silentLogger } from "../../../agent/lib/log.ts";
import { MetricsRegistry } from "../../../agent/lib/metrics.ts";
import { imageCollectIntervalMs } from "../../../agent/node/image-collector.ts";
import { RunningParts } from "../../../agent/roles/parts.ts";
import {
  type ImageCollectionOptions,
  imagesOf,
  podsWaitMsMax,
  startImageCollection,
} from "../../../agent/roles/kubelet-image-garbage.ts";
import type { Surroundings } from "../../../agent/roles/cluster.ts";
import { FakeClock } from "../kube/fake-clock.ts";
import { imageOf } from "../node/image-support.ts";

let parts = new RunningParts(silentLogger);
const clock = new FakeClock();
afterEach(async () => {
  const left = await parts.stop(1_000, clock);
  parts = new RunningParts(silentLogger);
  if (left.length > 0) throw new Error(`${left.join(", ")} did not stop`);
});

/** A node with these images on a full disk, where images of any age may go. */
function start(
  options: { highPercent?: number; pods?: Pod[]; prune?: (signal: AbortSignal) => Promise<void>; log?: Logger } = {},
) {
  const { highPercent = 1, pods = [], prune = async () => {}, log = silentLogger } = options;
  const images = new Map(["a", "b"].map((id) => [id, imageOf(id)]));
  const known = Promise.withResolvers<void>();
  const events: unknown[] = [];
  let prunings = 0;
  const config = {
    imageMinimumGCAge: 0,
    imageMaximumGCAge: 0,
    imageGCHighThresholdPercent: highPercent,
    imageGCLowThresholdPercent: 0,
  };
  startImageCollection(
    {
      settings: { config },
      runtime: {
        images: {
          listImages: async () => [...images.values()],
          imageStatus: async (id: string) => images.get(id),
          imagesInUse: async () => new Set(),
          removeImage: async (id: string) => void images.delete(id),
          fsInfo: async () => ({ imageFilesystems: [{ timestampMs: 0, mountpoint: "/" }], containerFilesystems: [] }),
        },
      },
      recorder: { event: (...event: unknown[]) => void events.push(event) },
      measures: { registry: new MetricsRegistry() },
      nodeView: { nodeName: "node-1" },
      held: { list: () => pods, status: (pod: Pod) => pod.status },
      sources: { synced: async () => await known.promise },
      pruneRecords: async (signal: AbortSignal) => {
        prunings += 1;
        await prune(signal);
      },
    } as unknown as ImageCollectionOptions,
    { clock, log, parts } as unknown as Surroundings,
  );
  return { left: () => [...images.keys()].join(" "), known, events, prunings: () => prunings };
}

/** A pod of one container of this image. */
function podOf(image: string, phase: "Pending" | "Succeeded" | "Failed"): Pod {
  const metadata = { name: "web", namespace: "ns", uid: "u" };
  return { metadata, spec: { containers: [{ name: "main", image }] }, status: { phase } };
}

// What is asked of the disk takes its time.
const soon = { interval: 5 };

test("images are looked at when the pods are known; those of pods that have ended may go", async () => {
  const pods = [podOf("registry.local/a:1", "Pending"), podOf("registry.local/b:1", "Succeeded")];
  const { left, known, events, prunings } = start({ pods });
  await clock.advance(podsWaitMsMax - 1);
  expect(left()).toBe("a b");
  known.resolve();
  await expect.poll(left, soon).toBe("a");
  await expect.poll(prunings, soon).toBe(1);
  const node = { apiVersion: "v1", kind: "Node", name: "node-1", uid: "node-1" };
  expect(events).toEqual([[node, "Warning", "FreeDiskSpaceFailed", expect.any(String) as string]]);
});

test("an API server that is away keeps the disk full for a minute, not longer", async () => {
  const { left } = start();
  await clock.advance(podsWaitMsMax);
  await expect.poll(left, soon).toBe("");
});

test("records that cannot be pruned keep nothing else", async () => {
  const prune = async () => await Promise.reject(new Error("read-only file system"));
  const { left, known, prunings } = start({ prune });
  known.resolve();
  await expect.poll(left, soon).toBe("");
  await expect.poll(() => clock.waiting, soon).toBe(1);
  await clock.advance(imageCollectIntervalMs);
  await expect.poll(prunings, soon).toBe(2);
});

test("the agent's end ends the pruning, too, and is no failure of it", async () => {
  const lines: string[] = [];
  const log = createLogger({ level: "warn", stream: { write: (line) => void lines.push(line) } });
  const prune = async (signal: AbortSignal) =>
    await new Promise<void>((_, reject) =>
      signal.addEventListener("abort", () => reject(new AgentError("Canceled", "canceled"))),
    );
  const { known, prunings } = start({ prune, log });
  known.resolve();
  await expect.poll(prunings, soon).toBe(1);
  expect(await parts.stop(1_000, clock)).toEqual([]);
  expect(lines).toEqual([]);
});

test("nothing is looked at where no image may go", async () => {
  const { left, known, prunings } = start({ highPercent: 100 });
  known.resolve();
  await clock.advance(imageCollectIntervalMs);
  expect([left(), prunings()]).toEqual(["a b", 0]);
});

test("a pod needs the images of all its containers and of its image volumes", () => {
  const pod: Pod = {
    metadata: { name: "web", namespace: "ns", uid: "u" },
    spec: {
      initContainers: [{ name: "init", image: "init:1" }],
      containers: [{ name: "main", image: "main:1" }, { name: "none" }, { name: "empty", image: "" }],
      ephemeralContainers: [{ name: "debug", image: "debug:1" }],
      volumes: [
        { name: "model", image: { reference: "model:1" } },
        { name: "later", image: {} },
        { name: "scratch", emptyDir: {} },
      ],
    },
  };
  expect(imagesOf(pod)).toEqual(["init:1", "main:1", "debug:1", "model:1"]);
});
