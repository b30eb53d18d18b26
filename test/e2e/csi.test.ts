import { readdir } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { csiDrivers, nodes, persistentVolumeClaims, persistentVolumes } from "../../agent/kube/resources.ts";
import type { Pod, PodSpec, Volume } from "../../agent/kube/types.ts";
import { listMountsUnder } from "../../agent/lib/mount.ts";
import { startCSIDriver, type TestCSIDriver } from "../support/csi/start.ts";
import { isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, identityOf, openBreakableCluster, restartAgent } from "./support/local.ts";
import { jobOf, sleeperOf } from "./support/pods.ts";

// Pods with volumes of a real CSI driver. Files that use a cluster of their own are for local runs only.

const driverName = "csi.test";

describe.skipIf(!inject("isLocal"))("a CSI volume", () => {
  let env: BreakableCluster;
  let driver: TestCSIDriver;

  beforeAll(async () => {
    env = await openBreakableCluster();
    const { rootDir, node } = env.local;
    driver = await startCSIDriver({ rootDir, dir: join(node.dir, "csi-driver"), name: driverName });
  });
  afterAll(async () => {
    await driver?.destroy();
    await env?.[Symbol.asyncDispose]();
  });

  /** Offers a volume of this name for the claim of this name. */
  async function offer(name: string, attributes: Record<string, string> = {}): Promise<void> {
    await env.cluster.client.create(persistentVolumes, {
      metadata: { name },
      spec: {
        capacity: { storage: "8Mi" },
        accessModes: ["ReadWriteOnce"],
        persistentVolumeReclaimPolicy: "Retain",
        csi: { driver: driverName, volumeHandle: `handle-${name}`, fsType: "tmpfs", volumeAttributes: attributes },
      },
    });
    await env.cluster.create(persistentVolumeClaims, {
      metadata: { name },
      spec: {
        accessModes: ["ReadWriteOnce"],
        resources: { requests: { storage: "8Mi" } },
        volumeName: name,
      },
    });
  }
  const mounted = { volumeMounts: [{ name: "data", mountPath: "/data" }] };
  const claimOf = (claimName: string): Volume => ({ name: "data", persistentVolumeClaim: { claimName } });
  const using = (pod: Pod, volume: Volume, spec: Partial<PodSpec> = {}): Pod => ({
    ...pod,
    spec: {
      ...pod.spec,
      ...spec,
      volumes: [volume],
      containers: pod.spec.containers.map((container) => ({ ...container, ...mounted })),
    },
  });
  const inUse = async (): Promise<string[]> => {
    const { items } = await env.cluster.client.list(nodes, {});
    return items.flatMap(({ status }) => status?.volumesInUse ?? []);
  };
  /** What of CSI volumes is mounted or staged on the node. */
  const left = async (): Promise<string[]> => {
    const { rootDir } = env.local;
    const staged = await readdir(join(rootDir, "plugins/kubernetes.io/csi", driverName)).catch(() => []);
    const mounts = await listMountsUnder(rootDir);
    return [...staged, ...mounts.map(({ mountPoint }) => mountPoint).filter((path) => path.includes("csi"))];
  };
  const nothingIsLeft = async () => {
    await until("nothing is left on the node", async () => (await left()).length === 0);
    await until("nothing is in use", async () => (await inUse()).length === 0);
  };

  test("keeps its data from one pod to the next, belongs to the fsGroup, and is detached at the end", async () => {
    await offer("kept");
    const writing = using(jobOf("writer", "echo hello > /data/file; stat -c %g /data"), claimOf("kept"), {
      securityContext: { fsGroup: 4321 },
    });
    expect(await env.cluster.run(writing)).toMatchObject({ output: "4321\n", exitCode: 0 });
    const reading = using(jobOf("reader", "cat /data/file"), claimOf("kept"));
    expect(await env.cluster.run(reading)).toMatchObject({ output: "hello\n" });
    for (const name of ["writer", "reader"]) await env.cluster.deletePod(name, 0);
    await nothingIsLeft();
    await until("it is detached", async () => {
      const { items } = await env.cluster.client.list(nodes, {});
      return items.every(({ status }) => (status?.volumesAttached ?? []).length === 0);
    });
  });

  test("of an agent that is killed under a running pod goes on, and goes with the pod", async () => {
    await offer("lasting");
    await env.cluster.createPod(using(sleeperOf("lasting"), claimOf("lasting")));
    const before = await env.cluster.waitForPod("lasting", "is ready", isReady);
    await restartAgent(env, "SIGKILL");
    await until("the driver is registered anew", async () => (await driver.calls("NodeGetInfo")).length >= 2);
    const after = await env.cluster.waitForPod("lasting", "is ready", isReady);
    expect(identityOf(after)).toEqual(identityOf(before));
    const unpublished = (await driver.calls("NodeUnpublishVolume")).map(({ request }) => request["volume_id"]);
    expect(unpublished).not.toContain("handle-lasting");
    await env.cluster.deletePod("lasting", 0);
    await env.cluster.waitForPodGone("lasting");
    await nothingIsLeft();
  });

  test("of a pod that goes while agent and driver are dead is taken away when they are back", async () => {
    await offer("orphan");
    await env.cluster.createPod(using(sleeperOf("orphan"), claimOf("orphan")));
    await env.cluster.waitForPod("orphan", "is ready", isReady);
    await env.local.agent.stop("SIGKILL");
    await driver.stop("SIGKILL");
    await env.cluster.deletePod("orphan", 0);
    await env.cluster.waitForPodGone("orphan");
    const before = (await driver.calls("NodeUnpublishVolume")).length;
    await env.local.agent.start();
    await driver.start();
    await nothingIsLeft();
    expect(await driver.calls("NodeUnpublishVolume")).toHaveLength(before + 1);
  });

  test("of a driver that is not there says so, and comes as soon as the driver does", async () => {
    await offer("late");
    await driver.stop();
    await env.cluster.createPod(using(sleeperOf("late"), claimOf("late")));
    await until("an event says why", async () =>
      (await env.cluster.eventsOf("late")).some(
        ({ reason, message = "" }) =>
          reason === "FailedMount" &&
          message.startsWith('MountVolume.MountDevice failed for volume "late" : ') &&
          message.includes(driverName),
      ),
    );
    await driver.start();
    await env.cluster.waitForPod("late", "is ready", isReady);
    await env.cluster.deletePod("late", 0);
    await nothingIsLeft();
  });

  test("whose driver hangs keeps neither other pods nor, in the end, its own pod's deletion", async () => {
    await offer("stuck");
    await offer("free");
    await driver.fail("NodeStageVolume", { hangs: true, times: 1 });
    const staged = (await driver.calls("NodeStageVolume")).length;
    await env.cluster.createPod(using(sleeperOf("stuck"), claimOf("stuck")));
    await until("it hangs", async () => (await driver.calls("NodeStageVolume")).length > staged);
    await env.cluster.createPod(using(sleeperOf("free"), claimOf("free")));
    await env.cluster.waitForPod("free", "is ready", isReady);
    await env.cluster.deletePod("stuck");
    await env.cluster.deletePod("free", 0);
    await env.cluster.waitForPodGone("free");
    // The driver may have the volume by now: its pod stays until that is known, and nothing is taken away meanwhile.
    const stuck = await env.cluster.waitForPod("stuck", "is being deleted", ({ metadata }) => {
      return metadata.deletionTimestamp !== undefined;
    });
    expect(stuck.status?.phase).toBe("Pending");
    const unpublished = (await driver.calls("NodeUnpublishVolume")).map(({ request }) => request["volume_id"]);
    expect(unpublished).not.toContain("handle-stuck");
    expect((await left()).length).toBeGreaterThan(0);
    await driver.heal();
    await env.cluster.waitForPodGone("stuck");
    await nothingIsLeft();
  });

  test("written in a pod is made for it alone, and told whose it is", async () => {
    await env.cluster.client.create(csiDrivers, {
      metadata: { name: driverName },
      spec: { attachRequired: false, podInfoOnMount: true, volumeLifecycleModes: ["Persistent", "Ephemeral"] },
    });
    const inline: Volume = { name: "data", csi: { driver: driverName, volumeAttributes: { size: "1Mi" } } };
    const pod = using(jobOf("inline", "df -k /data | grep -c ' 1024 '"), inline);
    expect(await env.cluster.run(pod)).toMatchObject({ output: "1\n", exitCode: 0 });
    const { request } = (await driver.calls("NodePublishVolume")).at(-1) ?? {};
    expect(request?.["volume_context"]).toMatchObject({
      "csi.storage.k8s.io/pod.name": "inline",
      "csi.storage.k8s.io/ephemeral": "true",
    });
    await env.cluster.deletePod("inline", 0);
    await nothingIsLeft();
  });
});
