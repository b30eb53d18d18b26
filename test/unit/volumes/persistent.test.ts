import { mkdir, unlink, writeFile } from "node:fs/promises";
import { join } from "node:path";
import { afterEach, beforeEach, describe, expect, test } from "vitest";
import type { PersistentVolume, Pod, Volume } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { silentLogger } from "../../../agent/lib/log.ts";
import { describeFailures, errorsMax, VolumesError } from "../../../agent/volumes/failures.ts";
import { parseBlkid } from "../../../agent/volumes/format-and-mount.ts";
import type { VolumeContext, VolumeKind } from "../../../agent/volumes/kind.ts";
import { createPodVolumes, type VolumeManager } from "../../../agent/volumes/manager.ts";
import { nfsSource } from "../../../agent/volumes/nfs.ts";
import { FakeClock, FakeObjects, makePod, makeTempDir } from "./support.ts";
import { inStep, VolumeStepError } from "../../../agent/volumes/step-error.ts";

// Claims in the manager, with a resolver that knows every claim and a kind that does as it is told.

const never = new AbortController().signal;
let root: string;
let cleanUp: () => Promise<void>;
let clock: FakeClock;
let volumes: Map<string, PersistentVolume>;
let failure: (() => Promise<void>) | undefined;
let contexts: VolumeContext[];
let events: string[];
let isReachable: boolean;
let isRefreshed: boolean;
let manager: VolumeManager;

const kind: VolumeKind = {
  field: "csi",
  pluginName: "kubernetes.io/csi",
  isReadOnly: false,
  isRelabelled: false,
  isRefreshed: false,
  takesBlock: true,
  async setUp(context) {
    contexts.push(context);
    await mkdir(context.dir, { recursive: true });
    await failure?.();
    return { hostPath: context.dir, isRefreshed };
  },
};

function start(): VolumeManager {
  return createPodVolumes({
    rootDir: root,
    client: undefined,
    objects: new FakeObjects(),
    clock,
    log: silentLogger,
    nodeAllocatable: () => ({}),
    selinuxEnabled: false,
    kinds: [kind],
    claims: {
      resolve: async (_pod, { persistentVolumeClaim: { claimName = "", readOnly = false } = {} }) => {
        const volume = volumes.get(claimName);
        if (volume === undefined) {
          throw new AgentError("Unavailable", `error processing PVC shop/${claimName}: PVC is not bound`);
        }
        return { claim: { metadata: { name: claimName } }, volume, isReadOnly: readOnly };
      },
      isReachable: () => isReachable,
    },
    onEvent: (_pod, type, reason, message) => events.push(`${type} ${reason} ${message}`),
    random: () => 0,
  });
}

beforeEach(async () => {
  ({ dir: root, cleanUp } = await makeTempDir());
  clock = new FakeClock();
  volumes = new Map();
  failure = undefined;
  contexts = [];
  events = [];
  isReachable = true;
  isRefreshed = false;
  manager = start();
});
afterEach(() => cleanUp());

function offer(claim: string, spec: Partial<PersistentVolume["spec"]> = {}, annotations = {}): void {
  const csi = { driver: "d", volumeHandle: claim };
  const metadata = { name: `pv-${claim}`, annotations };
  volumes.set(claim, { metadata, spec: { volumeMode: "Filesystem", csi, ...spec } });
}

const claimVolume = (claimName: string, readOnly = false): Volume => ({
  name: claimName,
  persistentVolumeClaim: { claimName, readOnly },
});
function podOf(uid: string, ...used: Volume[]): Pod {
  const volumeMounts = used.map(({ name }) => ({ name, mountPath: `/${name}` }));
  return makePod({ containers: [{ name: "app", volumeMounts }], volumes: used }, { uid, name: uid });
}
const eventsOf = async (pod: Pod) => {
  const err: unknown = await manager.setUp(pod, never).then(
    () => undefined,
    (why: unknown) => why,
  );
  return err instanceof VolumesError ? err.events : err;
};

describe("a claim", () => {
  test("is set up under the PersistentVolume's name, with its group, and read-only if the pod says so", async () => {
    offer("disk", {}, { "pv.beta.kubernetes.io/gid": "777" });
    const pod = podOf("a", claimVolume("disk", true));
    await manager.setUp(pod, never);
    const [mount] = await manager.mounts(pod, pod.spec.containers[0] ?? { name: "" }, new Map(), {
      podIPs: [],
      recursiveReadOnlySupported: false,
      userns: undefined,
    });
    expect(mount).toMatchObject({ hostPath: join(root, "pods/a/volumes/kubernetes.io~csi/pv-disk"), readonly: true });
    expect(manager.supplementalGroups("a")).toEqual([777]);
  });

  test("that is not bound is told with all that is missing, and asked for again", async () => {
    offer("disk");
    failure = () => Promise.reject(new AgentError("Internal", "it is broken"));
    const pod = podOf("a", claimVolume("disk"), claimVolume("later"), { name: "x", emptyDir: {} });
    expect(await eventsOf(pod)).toEqual([
      { reason: "FailedMount", message: 'MountVolume.SetUp failed for volume "pv-disk" : it is broken' },
      {
        reason: "FailedMount",
        message:
          "Unable to attach or mount volumes: unmounted volumes=[disk later], unattached volumes=[], " +
          "failed to process volumes=[later]: error processing PVC shop/later: PVC is not bound",
      },
    ]);
    expect(manager.refreshInMs("a")).toBeGreaterThan(0);
    offer("later");
    failure = undefined;
    await manager.setUp(pod, never);
  });

  test("that others have not attached yet is told of in the error only, that the node is full to whoever runs the pod", async () => {
    offer("disk");
    const step = "VerifyControllerAttachedVolume";
    const waiting = new AgentError("Unavailable", "waiting for the attach/detach controller");
    failure = () => Promise.reject(new VolumeStepError(step, waiting, "pending"));
    const pod = podOf("a", claimVolume("disk"));
    expect(await eventsOf(pod)).toEqual([]);
    await expect(manager.setUp(pod, never)).rejects.toMatchObject({
      message: `MountVolume.${step} failed for volume "pv-disk" : waiting for the attach/detach controller`,
      exceedsAttachLimit: false,
    });
    failure = () => Promise.reject(new VolumeStepError(step, waiting, "over the limit"));
    await expect(manager.setUp(pod, never)).rejects.toMatchObject({ exceedsAttachLimit: true });
  });

  test("whose volume this node must not use is refused before anything is mounted", async () => {
    offer("disk");
    isReachable = false;
    expect(await eventsOf(podOf("a", claimVolume("disk")))).toEqual([
      {
        reason: "FailedMount",
        message:
          'MountVolume.NodeAffinity check failed for volume "pv-disk" : ' +
          "no term of the node affinity of PersistentVolume pv-disk matches this node",
      },
    ]);
    expect(contexts).toEqual([]);
  });

  test("of a host path takes no mount options", async () => {
    const annotations = { "volume.beta.kubernetes.io/mount-options": "ro" };
    const spec = { volumeMode: "Filesystem" as const, hostPath: { path: root } };
    volumes.set("disk", { metadata: { name: "pv-disk", annotations }, spec });
    expect(await eventsOf(podOf("a", claimVolume("disk")))).toMatchObject([
      { message: expect.stringContaining("MountVolume.MountOptionSupport check failed") },
    ]);
    volumes.set("disk", { metadata: { name: "pv-disk" }, spec });
    await manager.setUp(podOf("a", claimVolume("disk", true)), never);
    expect(manager.mounted("a", "disk")).toMatchObject({ hostPath: root, isReadOnly: true });
  });

  test("that is there stays there while nobody can say what is behind it", async () => {
    offer("disk");
    isRefreshed = true;
    const pod = podOf("a", claimVolume("disk"));
    await manager.setUp(pod, never);
    volumes.clear();
    await manager.setUp(pod, never);
    expect(events).toEqual([]); // nothing is wrong with the pod
    expect(manager.mounted("a", "disk")?.specName).toBe("pv-disk");
    expect(manager.refreshInMs("a")).toBeGreaterThan(0);
  });

  test("that no container uses is never looked at", async () => {
    const pod = makePod({ volumes: [claimVolume("nobody")] });
    await manager.setUp(pod, never);
    expect(manager.mounted(pod.metadata.uid ?? "", "nobody")).toBeUndefined();
  });
});

test.each([
  {
    source: { awsElasticBlockStore: { volumeID: "aws://eu-west-1a/vol-01", fsType: "xfs" } },
    name: "ebs.csi.aws.com-vol-01",
    csi: { driver: "ebs.csi.aws.com", volumeHandle: "vol-01", fsType: "xfs" },
    accessModes: ["ReadWriteOnce"],
  },
  {
    source: { gcePersistentDisk: { pdName: "d", readOnly: true } },
    name: "pd.csi.storage.gke.io-d",
    csi: { driver: "pd.csi.storage.gke.io", readOnly: true },
    accessModes: ["ReadOnlyMany"],
  },
  {
    source: { azureDisk: { diskName: "d", diskURI: "/subscriptions/d" } },
    name: "disk.csi.azure.com-d",
    csi: { driver: "disk.csi.azure.com", volumeHandle: "/subscriptions/d" },
    accessModes: ["ReadWriteOnce"],
  },
])(
  "a disk of an old kind that a pod names itself is its CSI driver's: $name",
  async ({ source, name, csi, accessModes }) => {
    const pod = podOf("a", { name: "v", ...source });
    await manager.setUp(pod, never);
    expect(contexts[0]).toMatchObject({
      specName: name,
      bound: { volume: { metadata: { name }, spec: { csi, accessModes } } },
    });
    await manager.tearDown("a");
  },
);

test.each([
  [{ awsElasticBlockStore: { volumeID: "../evil" } }, "is not the ID of an EBS volume"],
  [{ cinder: { volumeID: "a/.." } }, 'cinder names no disk by its volumeID "a/.."'],
  [{ cinder: {} }, 'cinder names no disk by its volumeID ""'],
])("one that names no disk is refused: %o", async (source, why) => {
  expect(await eventsOf(podOf("a", { name: "v", ...source }))).toMatchObject([
    { message: expect.stringContaining(why) },
  ]);
  expect(contexts).toEqual([]);
});

describe("a block device", () => {
  const device = (uid: string): Pod =>
    makePod(
      {
        containers: [{ name: "app", volumeDevices: [{ name: "disk", devicePath: "/dev/x" }] }],
        volumes: [claimVolume("disk", true)],
      },
      { uid },
    );

  test("has its link in the pod's directory, and is given read-only if the pod says so", async () => {
    offer("disk", { volumeMode: "Block" });
    const pod = device("a");
    await manager.setUp(pod, never);
    const hostPath = join(root, "pods/a/volumeDevices/kubernetes.io~csi/pv-disk");
    const [container = { name: "" }] = pod.spec.containers;
    expect(manager.devices("a", container)).toEqual([{ hostPath, containerPath: "/dev/x", permissions: "r" }]);
  });

  test("that fails is told of as such, with the step", async () => {
    offer("disk", { volumeMode: "Block" });
    failure = () => inStep("MapBlockVolume", () => Promise.reject(new AgentError("Internal", "no loop device")));
    expect(await eventsOf(device("a"))).toEqual([
      { reason: "FailedMapVolume", message: 'MapVolume.MapBlockVolume failed for volume "pv-disk" : no loop device' },
    ]);
  });

  test("is not had of kinds that have none, nor of what is no claim", async () => {
    const spec = { volumeMode: "Block" as const, hostPath: { path: root } };
    volumes.set("disk", { metadata: { name: "pv-disk" }, spec });
    expect(await eventsOf(device("a"))).toMatchObject([
      { message: expect.stringContaining("kubernetes.io/host-path has no block devices") },
    ]);
    const volume = { name: "disk", emptyDir: {} };
    expect(await eventsOf({ ...device("b"), spec: { ...device("b").spec, volumes: [volume] } })).toMatchObject([
      { message: expect.stringContaining('volume "disk" is no claim, volumeDevices cannot have it') },
    ]);
  });
});

describe("a volume for one pod only", () => {
  const refusal = {
    reason: "FailedMount",
    message:
      'MountVolume.SetUp failed for volume "pv-disk" : ' +
      "volume uses the ReadWriteOncePod access mode and is already in use by another pod",
  };
  const [first, second] = [podOf("a", claimVolume("disk")), podOf("b", claimVolume("disk"))];
  beforeEach(() => offer("disk", { accessModes: ["ReadWriteOncePod"] }));

  test("is had by one of two that come together, and stays its", async () => {
    const pair = async () => await Promise.all([eventsOf(first), eventsOf(second)]);
    const outcomes = await pair();
    expect(outcomes).toContain(undefined);
    expect(outcomes).toContainEqual([refusal]);
    expect(await pair()).toEqual(outcomes);
    expect(contexts).toHaveLength(1);
  });

  test("wakes the pod that waits for it once it is gone, and not while it is stuck", async () => {
    const woken: string[] = [];
    manager.onChange((uid) => woken.push(uid));
    await manager.setUp(first, never);
    expect(await eventsOf(second)).toEqual([refusal]);
    const stuck = join(root, "pods/a/volumes/kubernetes.io~csi/pv-disk/data");
    await writeFile(stuck, "x");
    await expect(manager.tearDown("a")).rejects.toThrow();
    expect(woken).toEqual([]);
    await unlink(stuck);
    await manager.tearDown("a");
    expect(woken).toEqual(["b"]);
    await manager.setUp(second, never);
  });

  test("goes to the next while its first pod fails to have it, with nothing of it in place", async () => {
    const woken: string[] = [];
    manager.onChange((uid) => woken.push(uid));
    const failing = Promise.withResolvers<void>();
    failure = () => failing.promise;
    const trying = eventsOf(first);
    await expect.poll(() => contexts.length).toBe(1);
    expect(await eventsOf(second)).toEqual([refusal]);
    failing.reject(new AgentError("Internal", "it is broken"));
    expect(await trying).toMatchObject([{ message: expect.stringContaining("it is broken") }]);
    expect(woken).toEqual(["b"]);
    failure = undefined;
    await manager.setUp(second, never);
    expect(await eventsOf(first)).toEqual([refusal]);
  });

  test("stays that of a pod which failed to have it as long as something of it may be in place", async () => {
    failure = async () => {
      await writeFile(join(root, "pods/a/volumes/kubernetes.io~csi/pv-disk/vol_data.json"), "{}");
      throw new AgentError("DeadlineExceeded", "the driver does not answer");
    };
    await eventsOf(first);
    expect(await eventsOf(second)).toEqual([refusal]);
  });

  test("stays its pod's across a restart", async () => {
    await manager.setUp(first, never);
    manager = start();
    expect(await eventsOf(second)).toEqual([refusal]);
    await manager.setUp(first, never);
  });

  test("is anybody's again if the first could not even begin", async () => {
    isReachable = false;
    expect(await eventsOf(first)).toMatchObject([{ message: expect.stringContaining("NodeAffinity") }]);
    isReachable = true;
    await manager.setUp(second, never);
  });

  test("with a second access mode is shared, and the kind is told of the others", async () => {
    offer("disk", { accessModes: ["ReadWriteOncePod", "ReadWriteOnce"] });
    await manager.setUp(first, never);
    await manager.setUp(second, never);
    expect(contexts.map(({ otherPods }) => otherPods)).toEqual([[], ["a"]]);
  });
});

test("events say of ten volumes at most what is wrong", () => {
  const failures = Array.from({ length: 12 }, (_, at) => ({
    name: `v${at}`,
    specName: `v${at}`,
    isBlock: false,
    isUnresolved: at >= 6,
    err: new AgentError("Internal", `e${at}`),
  }));
  const events = describeFailures(failures, ["v0"]);
  expect(events).toHaveLength(7);
  expect(events.at(-1)?.message).toMatch(/failed to process volumes=\[v6 v7 v8 v9 v10 v11\]: e6; e7; e8; e9$/);
  expect(errorsMax).toBe(10);
});

test.each([
  ["10.0.0.1", "/export", "10.0.0.1:/export"],
  ["fd00::1", "/export", "[fd00::1]:/export"],
  ["nfs.example", "/a b", "nfs.example:/a b"],
])("nfs server %s", (server, path, want) => expect(nfsSource(server, path)).toBe(want));

test.each([
  ["DEVNAME=/dev/x\nTYPE=ext4\n", "ext4"],
  ["TYPE=xfs\nPTTYPE=\n", "xfs"],
  ["PTTYPE=gpt\n", "a partition table (gpt)"],
  ["DEVNAME=/dev/x\n", "something unknown"],
])("blkid's %j is %s", (output, want) => expect(parseBlkid(output)).toBe(want));
