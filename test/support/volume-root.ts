import { mkdir, mkdtemp, stat } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterEach, beforeEach } from "vitest";
import type { Container, Pod, PodSpec, Volume, VolumeMount } from "../../agent/kube/types.ts";
import { silentLogger } from "../../agent/lib/log.ts";
import { unmountAllUnder } from "../../agent/lib/mount.ts";
import { createPodVolumes, type VolumeManager } from "../../agent/volumes/manager.ts";
import { removeTree } from "../../agent/volumes/remove-tree.ts";
import { FakeClock, FakeObjects, FakeTokenServer, makePod } from "../unit/volumes/support.ts";

export const never = new AbortController().signal;
export const podUID = makePod({}).metadata.uid ?? "";

/** A root directory for volumes of one pod, with real mounts: a new one for each test, unmounted and removed after it. */
export interface VolumeRoot {
  /** The test's own directory. */
  readonly base: string;
  /** The agent's root directory in it. */
  readonly root: string;
  readonly manager: VolumeManager;
  /** The manager's. */
  readonly clock: FakeClock;
  /** ConfigMaps and Secrets that it can ask for. */
  readonly objects: FakeObjects;
  /** Where it asks for tokens. */
  readonly server: FakeTokenServer;
  readonly podDir: string;
  /** Where an emptyDir is. */
  volumeDir(name?: string): string;
  /** As after a restart of the agent, now with `change`. */
  restart(change?: Partial<VolumeDeps>): void;
  /** What a container of the pod is given, the first one unless told which. */
  mountsOf(pod: Pod, container?: Container): Promise<string[]>;
}

type VolumeDeps = Parameters<typeof createPodVolumes>[0];

/** @param always how each manager differs from a plain one; asked before each test */
export function useVolumeRoot(always: () => Partial<VolumeDeps> = () => ({})): VolumeRoot {
  let base = "";
  let root = "";
  let clock: FakeClock;
  let objects: FakeObjects;
  let server: FakeTokenServer;
  let usual: Partial<VolumeDeps>;
  let manager: VolumeManager;
  const restart = (change: Partial<VolumeDeps> = {}) => {
    manager = createPodVolumes({
      rootDir: root,
      client: server.client,
      objects,
      clock,
      log: silentLogger,
      nodeAllocatable: () => ({ memory: "64Mi" }),
      selinuxEnabled: false,
      random: () => 0,
      ...usual,
      ...change,
    });
  };
  beforeEach(async () => {
    base = await mkdtemp(join(tmpdir(), "nodelet-local-"));
    root = join(base, "kubelet");
    await mkdir(root);
    clock = new FakeClock();
    objects = new FakeObjects();
    server = new FakeTokenServer(clock);
    usual = always();
    restart();
  });
  afterEach(async () => {
    manager.close();
    await unmountAllUnder(base);
    await removeTree(base);
  });
  return {
    get base() {
      return base;
    },
    get root() {
      return root;
    },
    get manager() {
      return manager;
    },
    get clock() {
      return clock;
    },
    get objects() {
      return objects;
    },
    get server() {
      return server;
    },
    get podDir() {
      return join(root, "pods", podUID);
    },
    volumeDir: (name = "v") => join(root, "pods", podUID, "volumes/kubernetes.io~empty-dir", name),
    restart,
    mountsOf: async (pod, container = pod.spec.containers[0]) => {
      const context = { podIPs: [], recursiveReadOnlySupported: false, userns: undefined };
      if (container === undefined) return [];
      return (await manager.mounts(pod, container, new Map(), context)).map(({ hostPath }) => hostPath);
    },
  };
}

/** A pod with one container and one volume, mounted at /v. */
export function podWith(volume: Volume, mount: Partial<VolumeMount> = {}, spec: Partial<PodSpec> = {}): Pod {
  const containers = [{ name: "app", volumeMounts: [{ name: volume.name, mountPath: "/v", ...mount }] }];
  return makePod({ containers, volumes: [volume], ...spec });
}

/** Permission bits of what is there, links followed. */
export async function modeOf(path: string): Promise<string> {
  return ((await stat(path)).mode & 0o7777).toString(8);
}
