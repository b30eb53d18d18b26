import { mkdir, mkdtemp, readdir, realpath, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { setTimeout as sleep } from "node:timers/promises";
import { afterEach, beforeEach } from "vitest";
import { csiDrivers, nodes, persistentVolumeClaims, persistentVolumes, pods } from "../../../agent/kube/resources.ts";
import type { CSIDriver, PersistentVolume, PersistentVolumeClaim, Pod, PodSpec } from "../../../agent/kube/types.ts";
import { messageOf } from "../../../agent/lib/errors.ts";
import { listMountsUnder, unmountAllUnder } from "../../../agent/lib/mount.ts";
import { startTestApiServer, type TestApiServer } from "../apiserver/server.ts";
import type { CSICallRecord } from "./config.ts";
import { startCSIDriver, type TestCSIDriver } from "./start.ts";
import { type DeathAt, VolumeAgent } from "./volume-agent.ts";

export const driverName = "csi.test";
export const never = new AbortController().signal;

export async function until<T>(
  what: string,
  look: () => T | undefined | false | Promise<T | undefined | false>,
): Promise<T> {
  const deadline = performance.now() + 30_000;
  for (;;) {
    const found = await look();
    if (found !== undefined && found !== false) return found;
    if (performance.now() > deadline) throw new Error(`not within 30 s: ${what}`);
    await sleep(20);
  }
}

/** For each test an API server, a node's root directory and a driver that runs; agents as a test starts them. No containers. */
export function useCSIVolumes() {
  let server: TestApiServer;
  let base: string;
  let rootDir: string;
  let agents: VolumeAgent[];
  let driver: TestCSIDriver;

  beforeEach(async () => {
    base = await realpath(await mkdtemp(join(tmpdir(), "nodelet-csivol-")));
    rootDir = join(base, "root");
    await mkdir(rootDir);
    server = await startTestApiServer({ controllers: { serviceAccounts: false, bind: false } });
    await writeFile(join(base, "kubeconfig"), server.kubeconfig("node:n1"), { mode: 0o600 });
    server.objects.create(nodes, { apiVersion: "v1", kind: "Node", metadata: { name: "n1" } });
    agents = [];
    driver = await startCSIDriver({ rootDir, dir: join(base, "driver"), name: driverName });
  });

  afterEach(async () => {
    await driver.heal();
    for (const agent of agents) await agent.stop();
    await driver.destroy();
    await server.close();
    await unmountAllUnder(base);
    await rm(base, { recursive: true });
  });

  const startAgent = async (options: { deathAt?: DeathAt } = {}) => {
    const agent = await VolumeAgent.start(join(base, "kubeconfig"), rootDir, options);
    agents.push(agent);
    await until("the driver is registered", () => agent.drivers.names().includes(driverName));
    return agent;
  };
  const describeDriver = (spec: CSIDriver["spec"]) =>
    server.objects.create(csiDrivers, {
      apiVersion: "storage.k8s.io/v1",
      kind: "CSIDriver",
      metadata: { name: driverName },
      spec,
    });
  /** A PersistentVolume that is bound to a claim of the same name. */
  const createVolume = (name: string, spec: Partial<PersistentVolume["spec"]> = {}, handle = `handle-${name}`) => {
    server.objects.create(persistentVolumes, {
      apiVersion: "v1",
      kind: "PersistentVolume",
      metadata: { name },
      spec: {
        accessModes: ["ReadWriteOnce"],
        capacity: { storage: "8Mi" },
        volumeMode: "Filesystem",
        csi: { driver: driverName, volumeHandle: handle, volumeAttributes: { size: "8Mi" } },
        ...spec,
      },
    });
    const claim: PersistentVolumeClaim = {
      apiVersion: "v1",
      kind: "PersistentVolumeClaim",
      metadata: { name, namespace: "default" },
      spec: { volumeName: name, volumeMode: spec.volumeMode ?? "Filesystem" },
    };
    server.objects.create(persistentVolumeClaims, claim);
  };
  const createPod = (name: string, volumes: PodSpec["volumes"], spec: Partial<PodSpec> = {}): Pod =>
    server.objects.create(pods, {
      apiVersion: "v1",
      kind: "Pod",
      metadata: { name, namespace: "default" },
      spec: {
        nodeName: "n1",
        containers: [
          {
            name: "app",
            image: "busybox",
            volumeMounts: (volumes ?? []).map((volume) => ({ name: volume.name, mountPath: `/${volume.name}` })),
          },
        ],
        ...(volumes === undefined ? {} : { volumes }),
        ...spec,
      },
    });
  const podWithClaim = (name: string, claimName = "pv", spec: Partial<PodSpec> = {}) =>
    createPod(name, [{ name: "data", persistentVolumeClaim: { claimName } }], spec);
  const deletePod = (name: string) =>
    server.objects.delete(pods, { namespace: "default", name }, { gracePeriodSeconds: 0 });
  const uid = (pod: Pod) => pod.metadata.uid ?? "";
  const targetOf = (pod: Pod, specName = "pv") =>
    join(rootDir, "pods", uid(pod), "volumes/kubernetes.io~csi", specName, "mount");
  /** Names of the calls that change something, in order. */
  const changes = async (): Promise<string[]> => {
    const all = await driver.calls();
    return all
      .map(({ method }) => method)
      .filter((method) => /^Node(Stage|Publish|Unpublish|Unstage|Expand)Volume$/.test(method));
  };
  const last = async (method: string): Promise<CSICallRecord["request"]> =>
    (await driver.calls(method)).at(-1)?.request ?? {};
  const leftovers = async (): Promise<string[]> => {
    const found = await readdir(join(rootDir, "plugins/kubernetes.io/csi"), { recursive: true }).catch(() => []);
    const mounts = (await listMountsUnder(rootDir)).map(({ mountPoint }) => mountPoint);
    return [...found.filter((path) => path.includes("globalmount") || path.includes("vol_data")), ...mounts];
  };
  /** As a worker does it: again and again until it works. */
  const setUp = async (agent: VolumeAgent, pod: Pod) =>
    await until(`the volumes of ${pod.metadata.name}`, async () => {
      try {
        await agent.manager.setUp(pod, never);
        return true;
      } catch (err) {
        agent.events.push(messageOf(err));
        await sleep(50);
        return undefined;
      }
    });
  const tearDown = async (agent: VolumeAgent, pod: Pod) =>
    await until(`${pod.metadata.name} has no volumes`, async () => {
      try {
        await agent.manager.tearDown(uid(pod));
        return true;
      } catch (err) {
        agent.events.push(messageOf(err));
        await sleep(50);
        return undefined;
      }
    });
  const nothingIsLeft = async () => await until("nothing is left", async () => (await leftovers()).length === 0);
  return {
    get server() {
      return server;
    },
    get rootDir() {
      return rootDir;
    },
    get driver() {
      return driver;
    },
    startAgent,
    describeDriver,
    createVolume,
    createPod,
    podWithClaim,
    deletePod,
    uid,
    targetOf,
    changes,
    last,
    leftovers,
    setUp,
    tearDown,
    nothingIsLeft,
  };
}
