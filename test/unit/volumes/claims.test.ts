import { describe, expect, test } from "vitest";
import type { ApiClient, ObjectKey, Resource } from "../../../agent/kube/port.ts";
import type { KubeObject, PersistentVolume, PersistentVolumeClaim, Pod, Volume } from "../../../agent/kube/types.ts";
import { AgentError } from "../../../agent/lib/errors.ts";
import { createClaimResolver } from "../../../agent/volumes/claims.ts";
import { toCSI } from "../../../agent/volumes/in-tree.ts";
import { kindTable } from "../../../agent/volumes/kinds.ts";
import { joinMountOptions, mountOptionsOf } from "../../../agent/volumes/mount-options.ts";
import { mountedVolume } from "../../../agent/volumes/pod-states.ts";
import { makePod } from "./support.ts";

const never = new AbortController().signal;
const data: Volume = { name: "data", persistentVolumeClaim: { claimName: "disk" } };
const scratch: Volume = { name: "scratch", ephemeral: { volumeClaimTemplate: {} } };

function claimOf(
  change: Partial<PersistentVolumeClaim["metadata"]> = {},
  more: Partial<PersistentVolumeClaim> = {},
): PersistentVolumeClaim {
  const metadata = { name: "disk", namespace: "shop", uid: "claim-uid", ...change };
  return { metadata, spec: { volumeName: "pv1" }, status: { phase: "Bound" }, ...more };
}

function volumeOf(spec: Partial<PersistentVolume["spec"]> = {}, metadata: object = {}): PersistentVolume {
  return {
    metadata: { name: "pv1", ...metadata },
    spec: {
      accessModes: ["ReadWriteOnce"],
      capacity: { storage: "1Gi" },
      volumeMode: "Filesystem",
      claimRef: { kind: "PersistentVolumeClaim", namespace: "shop", name: "disk", uid: "claim-uid" },
      hostPath: { path: "/srv" },
      ...spec,
    },
  };
}

function resolverOf(objects: { claim?: PersistentVolumeClaim; volume?: PersistentVolume }) {
  const get = async (resource: Resource<KubeObject>, { name }: ObjectKey) => {
    const found = resource.plural === "persistentvolumes" ? objects.volume : objects.claim;
    if (found?.metadata.name !== name) throw new AgentError("NotFound", `${resource.plural} "${name}" not found`);
    return found;
  };
  const client = { get } as unknown as Pick<ApiClient, "get">;
  return createClaimResolver({ client, matchesNode: (terms) => terms.length > 0 });
}

const mounting = (volume: Volume): Pod =>
  makePod({
    volumes: [volume],
    containers: [{ name: "app", volumeMounts: [{ name: volume.name, mountPath: "/v" }] }],
  });
const mapping = (volume: Volume): Pod =>
  makePod({
    volumes: [volume],
    containers: [{ name: "app", volumeDevices: [{ name: volume.name, devicePath: "/d" }] }],
  });

describe("a claim is refused, in this order,", () => {
  const deletionTimestamp = "2026-01-01T00:00:00Z";
  const pending = { status: { phase: "Pending" } } as const;
  const cases: {
    name: string;
    claim?: PersistentVolumeClaim;
    volume?: PersistentVolume;
    source?: Volume;
    pod?: Pod;
    want: string;
  }[] = [
    {
      name: "that is not there",
      want: 'shop/disk: failed to fetch PVC from API server: persistentvolumeclaims "disk" not found',
    },
    {
      name: "that is being deleted and not protected",
      claim: claimOf({ deletionTimestamp }, pending),
      want: "shop/disk: PVC is being deleted",
    },
    {
      name: "that is protected and not bound",
      claim: claimOf({ deletionTimestamp, finalizers: ["kubernetes.io/pvc-protection"] }, pending),
      want: "shop/disk: PVC is not bound",
    },
    {
      name: "that is bound to nothing",
      claim: claimOf({}, { spec: { volumeName: "" } }),
      want: "shop/disk: PVC is bound but its spec.volumeName is empty",
    },
    {
      name: "that was not made for the pod",
      claim: claimOf({ name: "web-scratch" }),
      source: scratch,
      want: "shop/web-scratch: PVC shop/web-scratch was not created for pod shop/web (pod is not owner)",
    },
    {
      name: "whose volume is not there",
      claim: claimOf(),
      want: 'shop/disk: failed to fetch PV pv1 from API server: persistentvolumes "pv1" not found',
    },
    {
      name: "whose volume is not bound",
      claim: claimOf(),
      volume: { metadata: { name: "pv1" }, spec: { volumeMode: "Filesystem" } },
      want: "shop/disk: PV pv1 has no claimRef, it is not bound yet",
    },
    {
      name: "whose volume is another claim's",
      claim: claimOf({ uid: "newer" }),
      volume: volumeOf(),
      want: "shop/disk: PV pv1 is bound to another claim: its claimRef has UID claim-uid, not newer",
    },
    {
      name: "whose volume is a device and that is mounted",
      claim: claimOf(),
      volume: volumeOf({ volumeMode: "Block" }),
      want: "shop/disk: PV pv1 has volumeMode Block, but is specified in volumeMounts",
    },
    {
      name: "whose volume is none and that is used as a device",
      claim: claimOf(),
      volume: volumeOf(),
      pod: mapping(data),
      want: "shop/disk: PV pv1 has volumeMode Filesystem, but is specified in volumeDevices",
    },
  ];
  test.each(cases)("$name", async ({ claim, volume, source = data, pod = mounting(source), want }) => {
    const resolver = resolverOf({ ...(claim && { claim }), ...(volume && { volume }) });
    await expect(resolver.resolve(pod, source, never)).rejects.toThrow(`error processing PVC ${want}`);
  });
});

test("a claim that is deleted while pods use it stays theirs", async () => {
  const claim = claimOf({ deletionTimestamp: "2026-01-01T00:00:00Z", finalizers: ["kubernetes.io/pvc-protection"] });
  const bound = await resolverOf({ claim, volume: volumeOf() }).resolve(mounting(data), data, never);
  expect(bound).toMatchObject({ isReadOnly: false, volume: { metadata: { name: "pv1" } } });
});

test("a claim is read-only if the pod says so", async () => {
  const source = { ...data, persistentVolumeClaim: { claimName: "disk", readOnly: true } };
  const bound = await resolverOf({ claim: claimOf(), volume: volumeOf() }).resolve(mounting(source), source, never);
  expect(bound.isReadOnly).toBe(true);
});

test("the claim of an ephemeral volume is the pod's own", async () => {
  const pod = mounting(scratch);
  const owner = { apiVersion: "v1", kind: "Pod", name: "web", uid: pod.metadata.uid ?? "", controller: true };
  const claim = claimOf({ name: "web-scratch", ownerReferences: [owner] });
  const bound = await resolverOf({ claim, volume: volumeOf() }).resolve(pod, scratch, never);
  expect(bound.claim.metadata.name).toBe("web-scratch");
});

test("waiting for the API server ends with the pod", async () => {
  const stop = new AbortController();
  const get = async () => {
    stop.abort();
    throw stop.signal.reason;
  };
  const client = { get } as unknown as Pick<ApiClient, "get">;
  const resolver = createClaimResolver({ client, matchesNode: () => true });
  await expect(resolver.resolve(mounting(data), data, stop.signal)).rejects.toMatchObject({ name: "AbortError" });
});

test("node affinity is asked only of volumes that have it", () => {
  const { isReachable } = resolverOf({});
  const about = (nodeAffinity: NonNullable<PersistentVolume["spec"]["nodeAffinity"]>) =>
    isReachable({ claim: claimOf(), volume: volumeOf({ nodeAffinity }), isReadOnly: false });
  expect(isReachable({ claim: claimOf(), volume: volumeOf(), isReadOnly: false })).toBe(true);
  expect(about({})).toBe(true);
  expect(about({ required: { nodeSelectorTerms: [{}] } })).toBe(true);
  expect(about({ required: { nodeSelectorTerms: [] } })).toBe(false);
});

describe("the kind of a PersistentVolume", () => {
  const { kindOfPersistent } = kindTable();
  test.each([
    [{ hostPath: { path: "/x" } }, "kubernetes.io/host-path"],
    [{ local: { path: "/x" } }, "kubernetes.io/local-volume"],
    [{ nfs: { server: "a", path: "/x" } }, "kubernetes.io/nfs"],
  ])("%o is %s", (source, want) => {
    const volume = volumeOf({ nodeAffinity: {}, mountOptions: ["ro"], ...source });
    if (!("hostPath" in source)) delete volume.spec.hostPath;
    expect(kindOfPersistent(volume).pluginName).toBe(want);
  });

  test.each([
    ["iscsi", "volume kind iscsi is not supported by nodelet: use a CSI driver for iSCSI"],
    ["fc", "use a CSI driver for Fibre Channel"],
    ["flexVolume", "use a CSI driver in place of the FlexVolume plugin"],
    [
      "azureFile",
      "volume kind azureFile is not supported by nodelet: use a PersistentVolume of CSI driver file.csi.azure.com",
    ],
    ["glusterfs", "volume kind glusterfs is not supported by nodelet"],
    ["constructor", "volume kind constructor is not supported by nodelet"],
  ])("%s is refused with advice", (field, want) => {
    const { hostPath: _, ...spec } = volumeOf().spec;
    expect(() => kindOfPersistent({ metadata: { name: "pv1" }, spec: { ...spec, [field]: {} } })).toThrow(want);
  });

  test("none at all is refused", () => {
    const { hostPath: _, ...spec } = volumeOf().spec;
    expect(() => kindOfPersistent({ metadata: { name: "pv1" }, spec })).toThrow("volume kind without a source");
  });
});

describe("a volume of a kind that became a CSI driver", () => {
  const zone = "topology.kubernetes.io/zone";
  test.each([
    {
      field: "gcePersistentDisk",
      source: { pdName: "d", fsType: "ext4", partition: 2, readOnly: true },
      labels: { [zone]: "us-central1-a" },
      want: {
        driver: "pd.csi.storage.gke.io",
        volumeHandle: "projects/UNSPECIFIED/zones/us-central1-a/disks/d",
        fsType: "ext4",
        readOnly: true,
        volumeAttributes: { partition: "2" },
      },
    },
    {
      field: "gcePersistentDisk",
      source: { pdName: "d" },
      labels: { [zone]: "us-central1-a__us-central1-b" },
      want: { volumeHandle: "projects/UNSPECIFIED/regions/us-central1/disks/d", volumeAttributes: { partition: "" } },
    },
    {
      field: "gcePersistentDisk",
      source: { pdName: "d" },
      labels: {},
      want: { volumeHandle: "projects/UNSPECIFIED/zones/UNSPECIFIED/disks/d" },
    },
    {
      field: "awsElasticBlockStore",
      source: { volumeID: "aws://eu-west-1a/vol-01", fsType: "xfs" },
      labels: {},
      want: { driver: "ebs.csi.aws.com", volumeHandle: "vol-01", fsType: "xfs" },
    },
    {
      field: "awsElasticBlockStore",
      source: { volumeID: "vol-02" },
      labels: {},
      want: { volumeHandle: "vol-02" },
    },
    {
      field: "cinder",
      source: { volumeID: "c" },
      labels: {},
      want: { driver: "cinder.csi.openstack.org", volumeHandle: "c" },
    },
    {
      field: "azureDisk",
      source: { diskURI: "/subscriptions/d", cachingMode: "ReadOnly", fsType: "ext4", kind: "Managed" },
      labels: {},
      want: {
        driver: "disk.csi.azure.com",
        volumeHandle: "/subscriptions/d",
        volumeAttributes: { kind: "Managed", cachingmode: "ReadOnly", fstype: "ext4" },
      },
    },
  ])("$field $source", ({ field, source, labels, want }) => {
    const { hostPath: _, ...spec } = volumeOf({ accessModes: ["ReadWriteMany"] }).spec;
    const translated = toCSI({ metadata: { name: "pv1", labels }, spec: { ...spec, [field]: source } });
    expect(translated.spec.csi).toMatchObject(want);
    expect(translated.spec[field]).toBeUndefined();
    expect(translated.spec.accessModes).toEqual([field === "cinder" ? "ReadWriteMany" : "ReadWriteOnce"]);
  });

  test("a malformed one is refused", () => {
    const bad = (field: string, source: object, labels = {}) =>
      toCSI({ metadata: { name: "pv1", labels }, spec: { [field]: source } });
    expect(() => bad("awsElasticBlockStore", { volumeID: "aws://zone/../x" })).toThrow(
      "is not the ID of an EBS volume",
    );
    expect(() => bad("gcePersistentDisk", { pdName: "d" }, { [zone]: "a-1__b-1" })).toThrow("are not of one region");
  });

  test("others are left alone", () => {
    const volume = volumeOf();
    expect(toCSI(volume)).toBe(volume);
  });
});

describe("mount options", () => {
  const annotations = { "volume.beta.kubernetes.io/mount-options": "noatime,,ro" };
  test("of the annotation win over the field's", () => {
    expect(mountOptionsOf(volumeOf({ mountOptions: ["sync"] }))).toEqual(["sync"]);
    expect(mountOptionsOf(volumeOf({ mountOptions: ["sync"] }, { annotations }))).toEqual(["noatime", "ro"]);
    expect(mountOptionsOf(volumeOf())).toEqual([]);
  });
  test("are each given once, sorted", () => {
    expect(joinMountOptions(["vers=4", "ro", "hard"], ["ro"])).toEqual(["hard", "ro", "vers=4"]);
  });
});

test.each([
  ["1234", 1234],
  ["0", 0],
  ["-1", undefined],
  ["4294967295", undefined],
  ["staff", undefined],
  [undefined, undefined],
])("the gid annotation %j adds group %j", (gid, want) => {
  const annotations = gid === undefined ? {} : { "pv.beta.kubernetes.io/gid": gid };
  const bound = { claim: claimOf(), volume: volumeOf({}, { annotations }), isReadOnly: true };
  const kind = { isReadOnly: false, isRelabelled: false, isRefreshed: false };
  const about = { pluginName: "p", specName: "pv1", bound, isBlock: false };
  const mounted = mountedVolume(about, kind, { hostPath: "/x" });
  expect(mounted.supplementalGroup).toBe(want);
  expect(mounted.isReadOnly).toBe(true);
});
