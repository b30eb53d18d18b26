import { createHash } from "node:crypto";
import { afterEach, beforeEach, expect, test } from "vitest";
import {
  csiDrivers,
  csiNodes,
  nodes,
  persistentVolumeClaims,
  persistentVolumes,
  pods,
  volumeAttachments,
} from "../../../agent/kube/resources.ts";
import type { Node } from "../../../agent/kube/types.ts";
import { attachErrorAnnotation, attachErrorCodeAnnotation } from "../../support/apiserver/controllers/attach.ts";
import { startTestApiServer, type TestApiServer } from "../../support/apiserver/server.ts";

let server: TestApiServer;
const attachmentName = `csi-${createHash("sha256").update("vol-1csi.testn1").digest("hex")}`;
const key = "kubernetes.io/csi/csi.test^vol-1";

beforeEach(async () => {
  server = await startTestApiServer({ controllers: { serviceAccounts: false, bind: false } });
  server.objects.create(nodes, { metadata: { name: "n1" } });
});
afterEach(() => server.close());

const addVolume = (annotations: Record<string, string> = {}) =>
  server.objects.create(persistentVolumes, {
    metadata: { name: "pv", annotations },
    spec: {
      capacity: { storage: "1Gi" },
      accessModes: ["ReadWriteOnce"],
      csi: { driver: "csi.test", volumeHandle: "vol-1" },
    },
  });
const addClaim = () =>
  server.objects.create(persistentVolumeClaims, {
    metadata: { name: "data", namespace: "default" },
    spec: { volumeName: "pv", accessModes: ["ReadWriteOnce"], resources: { requests: { storage: "1Gi" } } },
  });
const addPod = () =>
  server.objects.create(pods, {
    metadata: { name: "p", namespace: "default" },
    spec: {
      nodeName: "n1",
      containers: [{ name: "c", image: "i" }],
      volumes: [{ name: "v", persistentVolumeClaim: { claimName: "data" } }],
    },
  });
const attachment = () => server.objects.find(volumeAttachments, { name: attachmentName });
const node = (): Node => server.objects.get(nodes, { name: "n1" });

test("a claim is bound to the volume that it names, whichever came first", () => {
  addClaim();
  expect(server.objects.get(persistentVolumeClaims, { namespace: "default", name: "data" }).status?.phase).toBe(
    "Pending",
  );
  addVolume();
  const claim = server.objects.get(persistentVolumeClaims, { namespace: "default", name: "data" });
  expect(claim.status).toEqual({ phase: "Bound", capacity: { storage: "1Gi" }, accessModes: ["ReadWriteOnce"] });
  const volume = server.objects.get(persistentVolumes, { name: "pv" });
  expect(volume.status?.phase).toBe("Bound");
  expect(volume.spec.claimRef).toMatchObject({ namespace: "default", name: "data", uid: claim.metadata.uid });
});

test("a CSI volume of a bound pod is attached, and detached when neither pod nor node have it", () => {
  addVolume();
  addClaim();
  addPod();
  expect(attachment()?.spec).toEqual({
    attacher: "csi.test",
    nodeName: "n1",
    source: { persistentVolumeName: "pv" },
  });
  expect(attachment()?.status).toMatchObject({ attached: true });
  expect(node().status?.volumesAttached).toEqual([{ name: key, devicePath: "" }]);

  server.objects.patch(
    nodes,
    { name: "n1" },
    { status: { volumesInUse: [key] } },
    { type: "merge", subresource: "status" },
  );
  server.objects.delete(pods, { namespace: "default", name: "p" }, { gracePeriodSeconds: 0 });
  expect(attachment()).toBeDefined();
  server.objects.patch(
    nodes,
    { name: "n1" },
    { status: { volumesInUse: [] } },
    { type: "merge", subresource: "status" },
  );
  expect(attachment()).toBeUndefined();
  expect(node().status?.volumesAttached).toEqual([]);
});

test("a volume that cannot be attached says why until the reason has gone", () => {
  addVolume({ [attachErrorAnnotation]: "the rack is on fire", [attachErrorCodeAnnotation]: "8" });
  addClaim();
  addPod();
  expect(attachment()?.status).toEqual({
    attached: false,
    attachError: { message: "the rack is on fire", errorCode: 8 },
  });
  const metadata = { annotations: { [attachErrorAnnotation]: null } };
  server.objects.patch(persistentVolumes, { name: "pv" }, { metadata }, { type: "merge" });
  expect(attachment()?.status).toMatchObject({ attached: true });
});

test("a driver without attach gets none", () => {
  server.objects.create(csiDrivers, { metadata: { name: "csi.test" }, spec: { attachRequired: false } });
  addVolume();
  addClaim();
  addPod();
  expect(server.objects.list(volumeAttachments)).toEqual([]);
});

test("an entry of a CSINode may change its count only", () => {
  const driver = { name: "csi.test", nodeID: "i-1", allocatable: { count: 1 } };
  const made = server.objects.create(csiNodes, { metadata: { name: "n1" }, spec: { drivers: [driver] } });
  const update = (drivers: (typeof driver)[]) => server.objects.update(csiNodes, { ...made, spec: { drivers } });
  expect(() => update([{ ...driver, nodeID: "i-2" }])).toThrow("field is immutable");
  update([{ ...driver, allocatable: { count: 2 } }]);
  expect(server.objects.get(csiNodes, { name: "n1" }).spec.drivers?.[0]?.allocatable?.count).toBe(2);
});
