import { mkdir, readdir, readFile, truncate, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, inject, test } from "vitest";
import { persistentVolumeClaims, persistentVolumes } from "../../agent/kube/resources.ts";
import type { PersistentVolume, Pod, Volume } from "../../agent/kube/types.ts";
import { exec } from "../../agent/lib/exec.ts";
import { projectRoot } from "../support/cluster/local-cluster.ts";
import { isFinished, isReady, until } from "./support/cluster.ts";
import { type BreakableCluster, mountsOf, openBreakableCluster, restartAgent } from "./support/local.ts";
import { jobOf, podOf, shell, sleeperOf } from "./support/pods.ts";

const nodelet = process.env["NODELET"] ?? join(projectRoot, "dist/nodelet");
const diskBytes = 1 << 20;
const timeoutMs = 20_000;

describe.skipIf(!inject("isLocal"))("a persistent volume", () => {
  let env: BreakableCluster;
  let disks: string;

  beforeAll(async () => {
    env = await openBreakableCluster();
    disks = join(env.local.node.dir, "disks");
  });
  afterAll(() => env?.[Symbol.asyncDispose]());

  /** A directory of the node with a file in it. */
  async function makeDirectory(name: string): Promise<string> {
    const dir = join(disks, name);
    await mkdir(dir, { recursive: true });
    await writeFile(join(dir, "hello"), `${name}\n`);
    return dir;
  }

  /** Offers a volume of this name for the claim of this name. */
  async function offer(
    name: string,
    spec: PersistentVolume["spec"],
    annotations: Record<string, string> = {},
  ): Promise<void> {
    const usual = {
      capacity: { storage: "1Gi" },
      accessModes: ["ReadWriteOnce"],
      persistentVolumeReclaimPolicy: "Retain",
    };
    await env.cluster.client.create(persistentVolumes, {
      metadata: { name, annotations },
      spec: { ...usual, ...spec },
    });
  }

  async function claim(name: string, spec: object = {}): Promise<void> {
    const wanted = { accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Gi" } }, volumeName: name };
    await env.cluster.create(persistentVolumeClaims, { metadata: { name }, spec: { ...wanted, ...spec } });
  }

  const claimVolume = (claimName: string, readOnly = false): Volume => ({
    name: "data",
    persistentVolumeClaim: { claimName, readOnly },
  });
  const mounted = { volumeMounts: [{ name: "data", mountPath: "/data" }] };
  const messagesOf = async (name: string) =>
    (await env.cluster.eventsOf(name)).map(({ reason, message }) => `${reason} ${message}`);
  /** Pods' mounts of this volume. */
  const mountsNamed = async (name: string) => (await mountsOf(env)).filter((path) => path.includes(name));
  /** A finished pod may be gone from the API server before its volumes are from the node. */
  const untilUnmounted = async (name: string) =>
    await until(`${name} is unmounted`, async () => (await mountsNamed(name)).length === 0);

  test("is waited for until its claim is bound, which is told where people look", async () => {
    const { cluster, local } = env;
    const dir = await makeDirectory("late");
    const script = "cat /data/hello; id -G | tr ' ' '\\n' | grep -c 4321; echo written > /data/back";
    await cluster.createPod(jobOf("late", script, { volumes: [claimVolume("late")] }, mounted));
    const told = `FailedMount Unable to attach or mount volumes: unmounted volumes=[data], unattached volumes=[], failed to process volumes=[data]: error processing PVC ${cluster.namespace}/late: `;
    await until("the missing claim is told of", async () =>
      (await messagesOf("late")).some((message) => message.startsWith(`${told}failed to fetch PVC from API server`)),
    );
    await claim("late");
    await until("the unbound claim is told of", async () =>
      (await messagesOf("late")).includes(`${told}PVC is not bound`),
    );
    const args = ["explain", "pod", `${cluster.namespace}/late`, "--root-dir", local.rootDir];
    const { stdout } = await exec(nodelet, args, { timeoutMs });
    expect(stdout.replace(/\s+/g, " ")).toContain(`error processing PVC ${cluster.namespace}/late: PVC is not bound`);
    await offer("late", { local: { path: dir } }, { "pv.beta.kubernetes.io/gid": "4321" });
    const pod = await cluster.waitForPod("late", "finished", isFinished);
    expect(pod.status?.containerStatuses?.[0]?.state?.terminated?.message).toBe("late\n1\n");
    expect(await readFile(join(dir, "back"), "utf8")).toBe("written\n");
    await cluster.deletePod("late");
    await cluster.waitForPodGone("late");
    await untilUnmounted("late");
    expect((await readdir(dir)).toSorted()).toEqual(["back", "hello"]);
  });

  test("of a host path is read-only where the pod says so, and refused where the node does not fit", async () => {
    const { cluster } = env;
    const path = await makeDirectory("host");
    await offer("host", { hostPath: { path } });
    await claim("host");
    const script = "cat /data/hello; touch /data/x 2>/dev/null || echo read-only";
    const { output } = await cluster.run(jobOf("host", script, { volumes: [claimVolume("host", true)] }, mounted));
    expect(output).toBe("host\nread-only\n");

    const elsewhere = { key: "kubernetes.io/hostname", operator: "In", values: ["elsewhere"] } as const;
    const nodeAffinity = {
      required: { nodeSelectorTerms: [{ matchExpressions: [{ ...elsewhere, values: ["elsewhere"] }] }] },
    };
    await offer("away", { hostPath: { path }, nodeAffinity });
    await claim("away");
    await cluster.createPod(sleeperOf("away", { volumes: [claimVolume("away")] }));
    await cluster.createPod(podOf("away-used", [shell("main", "true", mounted)], { volumes: [claimVolume("away")] }));
    await until("the affinity is told of", async () =>
      (await messagesOf("away-used")).some((message) =>
        message.startsWith('FailedMount MountVolume.NodeAffinity check failed for volume "away" : '),
      ),
    );
    await cluster.waitForPod("away", "ready", isReady); // no container uses it
    await Promise.all(["away", "away-used"].map((name) => cluster.deletePod(name)));
    await Promise.all(["away", "away-used"].map((name) => cluster.waitForPodGone(name)));
  });

  test("is a device where the pod says so", async () => {
    const { cluster } = env;
    await mkdir(disks, { recursive: true });
    const file = join(disks, "block");
    await writeFile(file, "this is the disk");
    await truncate(file, diskBytes);
    const attached = await exec("losetup", ["--find", "--show", file], { timeoutMs });
    if (attached.failure !== undefined) {
      expect(attached.message).toContain("losetup"); // a kernel without loop devices: nothing to try with
      return;
    }
    const device = attached.stdout.trim();
    try {
      await offer("block", { local: { path: device }, volumeMode: "Block" });
      await claim("block", { volumeMode: "Block" });
      const volumeDevices = [{ name: "data", devicePath: "/dev/disk" }];
      const script = "dd if=/dev/disk bs=16 count=1 2>/dev/null; echo; test -b /dev/disk && echo block";
      const job = jobOf("block", script, { volumes: [claimVolume("block")] }, { volumeDevices });
      const { output } = await cluster.run(job);
      expect(output).toBe("this is the disk\nblock\n");
      expect((await messagesOf("block")).filter((message) => message.startsWith("SuccessfulMountVolume"))).toHaveLength(
        2,
      );
      await cluster.deletePod("block");
      await cluster.waitForPodGone("block");
      await untilUnmounted("volumeDevices/block");
      await until("the device is let go", async () => {
        const { stdout } = await exec("losetup", ["--list", "--noheadings", "--output", "BACK-FILE"], { timeoutMs });
        return !stdout.includes(env.local.rootDir);
      });

      await cluster.createPod(jobOf("block-mounted", "true", { volumes: [claimVolume("block")] }, mounted));
      await until("the wrong use is told of", async () =>
        (await messagesOf("block-mounted")).some((message) =>
          message.endsWith("PV block has volumeMode Block, but is specified in volumeMounts"),
        ),
      );
      await cluster.deletePod("block-mounted", 0);
      await cluster.waitForPodGone("block-mounted");
    } finally {
      await exec("losetup", ["--detach", device], { timeoutMs });
    }
  });

  test("comes with the pod and goes with it where it is ephemeral", async () => {
    const { cluster } = env;
    await offer("fleeting", { local: { path: await makeDirectory("fleeting") } });
    const spec = {
      accessModes: ["ReadWriteOnce"],
      resources: { requests: { storage: "1Gi" } },
      volumeName: "fleeting",
    };
    const volumes = [{ name: "data", ephemeral: { volumeClaimTemplate: { spec } } }];
    const { output } = await cluster.run(jobOf("fleeting", "cat /data/hello", { volumes }, mounted));
    expect(output).toBe("fleeting\n");
    await cluster.deletePod("fleeting");
    await cluster.waitForPodGone("fleeting");

    // A claim of that name that somebody else made is not taken for the pod's.
    await makeDirectory("stolen");
    await offer("stolen", { local: { path: join(disks, "stolen") } });
    await env.cluster.create(persistentVolumeClaims, {
      metadata: { name: "thief-data" },
      spec: { ...spec, volumeName: "stolen" },
    });
    await cluster.createPod(jobOf("thief", "cat /data/hello", { volumes }, mounted));
    const { namespace } = cluster;
    await until("the owner is asked for", async () =>
      (await messagesOf("thief")).some((message) =>
        message.endsWith(`PVC ${namespace}/thief-data was not created for pod ${namespace}/thief (pod is not owner)`),
      ),
    );
    await cluster.deletePod("thief", 0);
    await cluster.waitForPodGone("thief");
  });

  test("for one pod only stays its pod's while the agent is away, and goes to the next", async () => {
    const { cluster } = env;
    await offer("single", { local: { path: await makeDirectory("single") }, accessModes: ["ReadWriteOncePod"] });
    await claim("single", { accessModes: ["ReadWriteOncePod"] });
    const podWith = (name: string): Pod => {
      const pod = sleeperOf(name, { volumes: [claimVolume("single")] });
      const [main] = pod.spec.containers;
      return { ...pod, spec: { ...pod.spec, containers: main === undefined ? [] : [{ ...main, ...mounted }] } };
    };
    await cluster.createPod(podWith("owner"));
    await cluster.waitForPod("owner", "ready", isReady);
    await restartAgent(env, "SIGKILL");
    await cluster.createPod(podWith("heir"));
    await until("the heir is told why it waits", async () =>
      (await messagesOf("heir")).some((message) =>
        message.startsWith(
          'FailedMount MountVolume.SetUp failed for volume "single" : volume uses the ReadWriteOncePod',
        ),
      ),
    );
    expect(await mountsNamed("~local-volume/single")).toHaveLength(1);
    await cluster.deletePod("owner");
    await cluster.waitForPod("heir", "ready", isReady);
    await cluster.deletePod("heir");
    await cluster.waitForPodGone("heir");
    await untilUnmounted("~local-volume/single");
  });
});
