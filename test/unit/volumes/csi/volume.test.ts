import { describe, expect, test } from "vitest";
import type { CSIDriver, PersistentVolume, Volume } from "../../../../agent/kube/types.ts";
import type { BoundClaim } from "../../../../agent/volumes/kind.ts";
import type { NodeCapability } from "../../../../agent/volumes/csi/port.ts";
import {
  checkLifecycle,
  csiAccessMode,
  type CSIVolume,
  needsAttach,
  needsFSGroup,
  podInfo,
  readCSIVolume,
  volumeCapability,
} from "../../../../agent/volumes/csi/volume.ts";
import { makePod } from "../support.ts";

const volume: CSIVolume = {
  driver: "csi.test",
  handle: "h",
  isEphemeral: false,
  isReadOnly: false,
  fsType: "ext4",
  attributes: {},
  mountOptions: [],
  accessModes: ["ReadWriteOnce"],
  stageSecret: undefined,
  publishSecret: undefined,
  expandSecret: undefined,
};
const object = (spec: CSIDriver["spec"]): CSIDriver => ({ metadata: { name: "csi.test" }, spec });
const able = (...names: NodeCapability[]) => new Set(names);
const boundTo = (spec: PersistentVolume["spec"], isReadOnly = false): BoundClaim => ({
  claim: { metadata: { name: "claim" } },
  volume: { metadata: { name: "pv" }, spec },
  isReadOnly,
});

describe("readCSIVolume", () => {
  const pod = makePod({});

  test("of a PersistentVolume: options unsorted, all secrets, read-only by either side", () => {
    const csi = {
      driver: "csi.test",
      volumeHandle: "h",
      fsType: "xfs",
      volumeAttributes: { a: "b" },
      nodeStageSecretRef: { name: "s", namespace: "ns" },
      nodePublishSecretRef: { name: "p", namespace: "ns" },
      nodeExpandSecretRef: { name: "e", namespace: "ns" },
    };
    const named: Volume = { name: "data", persistentVolumeClaim: { claimName: "claim" } };
    const spec = { csi, mountOptions: ["z", "a"], accessModes: ["ReadWriteMany"] };
    expect(readCSIVolume({ pod, volume: named, bound: boundTo(spec) })).toEqual({
      ...volume,
      fsType: "xfs",
      attributes: { a: "b" },
      mountOptions: ["z", "a"],
      accessModes: ["ReadWriteMany"],
      stageSecret: { namespace: "ns", name: "s" },
      publishSecret: { namespace: "ns", name: "p" },
      expandSecret: { namespace: "ns", name: "e" },
    });
    expect(readCSIVolume({ pod, volume: named, bound: boundTo(spec, true) }).isReadOnly).toBe(true);
    const readOnly = { ...spec, csi: { ...csi, readOnly: true } };
    expect(readCSIVolume({ pod, volume: named, bound: boundTo(readOnly) }).isReadOnly).toBe(true);
    expect(() => readCSIVolume({ pod, volume: named, bound: boundTo({}) })).toThrow(
      'PersistentVolume "pv" names no CSI driver and volumeHandle',
    );
  });

  test("of the pod itself: a handle of its own, the secret from the pod's namespace", () => {
    const inline: Volume = { name: "v", csi: { driver: "csi.test", nodePublishSecretRef: { name: "p" } } };
    const read = readCSIVolume({ pod, volume: inline, bound: undefined });
    expect(read).toMatchObject({
      isEphemeral: true,
      accessModes: ["ReadWriteOnce"],
      publishSecret: { namespace: "shop", name: "p" },
    });
    expect(read.handle).toMatch(/^csi-[0-9a-f]{64}$/);
    expect(() => readCSIVolume({ pod, volume: { name: "v", csi: { driver: "" } }, bound: undefined })).toThrow(
      "the volume names no CSI driver",
    );
  });
});

const accessModes: [string | undefined, string, string][] = [
  [undefined, "SINGLE_NODE_WRITER", "SINGLE_NODE_MULTI_WRITER"],
  ["ReadWriteOnce", "SINGLE_NODE_WRITER", "SINGLE_NODE_MULTI_WRITER"],
  ["ReadOnlyMany", "MULTI_NODE_READER_ONLY", "MULTI_NODE_READER_ONLY"],
  ["ReadWriteMany", "MULTI_NODE_MULTI_WRITER", "MULTI_NODE_MULTI_WRITER"],
  ["ReadWriteOncePod", "SINGLE_NODE_WRITER", "SINGLE_NODE_SINGLE_WRITER"],
];
test.each(accessModes)("csiAccessMode: %s is %s, or %s to drivers that know the difference", (mode, plain, finer) => {
  const modes = mode === undefined ? [] : [mode, "ReadWriteMany"]; // the first counts
  expect(csiAccessMode(modes, able())).toBe(plain);
  expect(csiAccessMode(modes, able("SINGLE_NODE_MULTI_WRITER"))).toBe(finer);
});

describe("volumeCapability", () => {
  const use = { isBlock: false, fsGroup: 7, mountFlags: ["noatime"] };

  test("the group only for drivers that take it", () => {
    const access = { kind: "mount", fsType: "ext4", mountFlags: ["noatime"], volumeMountGroup: "" };
    expect(volumeCapability(volume, able(), use).access).toEqual(access);
    const taking = volumeCapability(volume, able("VOLUME_MOUNT_GROUP"), use);
    expect(taking.access).toEqual({ ...access, volumeMountGroup: "7" });
    expect(volumeCapability(volume, able("VOLUME_MOUNT_GROUP"), { ...use, isBlock: true }).access).toEqual({
      kind: "block",
    });
  });
});

describe("checkLifecycle", () => {
  const inline = { ...volume, isEphemeral: true };
  const cases: [string, CSIVolume, CSIDriver | undefined, string | undefined][] = [
    ["no object: persistent only", volume, undefined, undefined],
    ["no object: not inline", inline, undefined, "(no CSIDriver object)"],
    ["nothing said: persistent only", volume, object({}), undefined],
    ["nothing said: not inline", inline, object({}), '(only supports ["Persistent"])'],
    ["inline", inline, object({ volumeLifecycleModes: ["Ephemeral"] }), undefined],
    ["not persistent", volume, object({ volumeLifecycleModes: ["Ephemeral"] }), '(only supports ["Ephemeral"])'],
  ];
  test.each(cases)("%s", (_, asked, driver, refusal) => {
    if (refusal === undefined) expect(() => checkLifecycle(asked, driver)).not.toThrow();
    else expect(() => checkLifecycle(asked, driver)).toThrow(refusal);
  });
});

test("needsAttach: unless the object says no, and never for what is written in the pod", () => {
  expect(needsAttach(volume, undefined)).toBe(true);
  expect(needsAttach(volume, object({}))).toBe(true);
  expect(needsAttach(volume, object({ attachRequired: false }))).toBe(false);
  expect(needsAttach({ isEphemeral: true }, undefined)).toBe(false);
});

describe("needsFSGroup", () => {
  const rwm = { ...volume, accessModes: ["ReadWriteMany"] };
  const cases: [string, CSIVolume, number | undefined, CSIDriver | undefined, NodeCapability[], boolean][] = [
    ["no group", volume, undefined, undefined, [], false],
    ["group 0 is one", volume, 0, undefined, [], true],
    ["one writer with a type", volume, 7, undefined, [], true],
    ["one pod with a type", { ...volume, accessModes: ["ReadWriteOncePod"] }, 7, undefined, [], true],
    ["no type", { ...volume, fsType: "" }, 7, undefined, [], false],
    ["many writers", rwm, 7, undefined, [], false],
    ["read-only", { ...volume, isReadOnly: true }, 7, object({ fsGroupPolicy: "File" }), [], false],
    ["policy File: always", { ...rwm, fsType: "" }, 7, object({ fsGroupPolicy: "File" }), [], true],
    ["policy None: never", volume, 7, object({ fsGroupPolicy: "None" }), [], false],
    ["the driver does it", volume, 7, object({ fsGroupPolicy: "File" }), ["VOLUME_MOUNT_GROUP"], false],
  ];
  test.each(cases)("%s", (_, asked, group, driver, capabilities, wanted) => {
    expect(needsFSGroup(asked, group, driver, able(...capabilities))).toBe(wanted);
  });
});

test("podInfo says whose volume it is", () => {
  expect(podInfo(makePod({ serviceAccountName: "robot" }), false)).toEqual({
    "csi.storage.k8s.io/pod.name": "web",
    "csi.storage.k8s.io/pod.namespace": "shop",
    "csi.storage.k8s.io/pod.uid": "11111111-2222-3333-4444-555555555555",
    "csi.storage.k8s.io/serviceAccount.name": "robot",
    "csi.storage.k8s.io/ephemeral": "false",
  });
});
