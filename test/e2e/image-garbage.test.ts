import { readdir, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { events } from "../../agent/kube/resources.ts";
import type { CoreEvent, Pod } from "../../agent/kube/types.ts";
import { customImage, pauseImageName } from "../support/images/images.ts";
import { startRegistry } from "../support/node/registry.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, openBreakableCluster, restartAgent } from "./support/local.ts";
import { podOf, shell } from "./support/pods.ts";

const sleeps = "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done";
const hasSucceeded = ({ status }: Pod) => status?.phase === "Succeeded";

describe.skipIf(!inject("isLocal"))("a disk that is always too full", () => {
  let env: BreakableCluster;
  let registryName: string;
  beforeAll(async () => {
    const kubelet = { imageGCHighThresholdPercent: 1, imageGCLowThresholdPercent: 0 };
    env = await openBreakableCluster(kubelet, ["--minimum-image-ttl-duration=0s"]);
    registryName = env.local.runtime.registryName("registry.local");
    const registry = await startRegistry(env.local.node, { name: registryName });
    for (const name of ["runs", "ended", "gone"]) await registry.push(await imageOf(name));
  });
  afterAll(async () => await env?.[Symbol.asyncDispose]());

  const named = (name: string) => `${registryName}/app/${name}:1`;
  const imageOf = async (name: string) =>
    await customImage({ name: named(name), files: [{ kind: "file", path: "name", content: name }] });
  const present = async () => {
    const runtime = await env.local.runtime.connect();
    try {
      return (await runtime.images.listImages()).flatMap(({ repoTags }) => repoTags).sort();
    } finally {
      await runtime.close();
    }
  };
  const nodeWarnings = async (): Promise<CoreEvent[]> => {
    const { items } = await env.cluster.client.list(events, { namespace: "default" });
    return items.filter(({ involvedObject, type }) => involvedObject.kind === "Node" && type === "Warning");
  };

  test("keeps the images of pods, those included that are still to run, and no others", async () => {
    const { cluster, local } = env;
    await cluster.createPod(podOf("runs", [shell("main", sleeps, { image: named("runs") })]));
    await cluster.createPod(podOf("gone", [shell("main", sleeps, { image: named("gone") })]));
    const ended = shell("main", "true", { image: named("ended") });
    await cluster.createPod(podOf("ended", [ended], { restartPolicy: "Never" }));
    await cluster.waitForPod("runs", "ready", isReady);
    await cluster.waitForPod("gone", "ready", isReady);
    await cluster.waitForPod("ended", "ended", hasSucceeded);
    await cluster.deletePod("gone");
    await cluster.waitForPodGone("gone");

    // Its main container's image is there, and nothing runs of it yet.
    const volumeMounts = [{ name: "shared", mountPath: "/shared" }];
    const waits = "until [ -e /shared/go ]; do sleep 0.1; done";
    const waiting = await cluster.createPod(
      podOf("waiting", [shell("main", "true", { image: named("waiting"), imagePullPolicy: "Never" })], {
        restartPolicy: "Never",
        initContainers: [shell("init", waits, { image: named("runs"), volumeMounts })],
        volumes: [{ name: "shared", emptyDir: {} }],
      }),
    );
    const isWaiting = ({ status }: Pod) => status?.initContainerStatuses?.[0]?.state?.running !== undefined;
    await cluster.waitForPod("waiting", "in its init container", isWaiting);
    await local.runtime.loadImages(await Promise.all(["waiting", "stray"].map(imageOf)));

    // The agent looks at images when it begins.
    await restartAgent(env, "SIGTERM");
    const kept = [named("ended"), named("runs"), named("waiting"), pauseImageName].sort();
    await expect.poll(present, { timeout: 30_000, interval: 200 }).toEqual(kept);
    const records = async () => await readdir(join(local.rootDir, "image_manager/pulled"));
    await expect.poll(records, { timeout: 10_000 }).toHaveLength(2);

    const shared = `${local.rootDir}/pods/${waiting.metadata.uid}/volumes/kubernetes.io~empty-dir/shared`;
    await writeFile(join(shared, "go"), "");
    await cluster.waitForPod("waiting", "ended", hasSucceeded);
    expect(isReady(await cluster.getPod("runs"))).toBe(true);
  });

  test("is told as an event about the node", async () => {
    const failed = await until("the event", async () =>
      (await nodeWarnings()).find(({ reason }) => reason === "FreeDiskSpaceFailed"),
    );
    expect(failed.involvedObject.name).toBe(env.local.node.name);
    expect(failed.message).toMatch(
      /^Insufficient free disk space on the node's image filesystem \(\d+% of [\d.]+ [KMGTP]iB used\)\. Failed to free sufficient space by deleting unused images \(freed \d+ bytes\)\. /,
    );
    expect((await nodeWarnings()).map(({ reason }) => reason)).not.toContain("ImageGCFailed");
  });

  test("lets an image come back that went", async () => {
    const { cluster } = env;
    await cluster.createPod(podOf("again", [shell("main", sleeps, { image: named("gone") })]));
    await cluster.waitForPod("again", "ready", isReady);
  });
});
