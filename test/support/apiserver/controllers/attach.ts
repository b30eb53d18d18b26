import { createHash } from "node:crypto";
import type {
  CSIDriver,
  Node,
  PersistentVolume,
  PersistentVolumeClaim,
  Pod,
  VolumeAttachment,
} from "../../../../agent/kube/types.ts";
import type { Registry } from "../registry.ts";
import { typed } from "../types.ts";

/** On a PersistentVolume: why it cannot be attached. While it is there, it is not. */
export const attachErrorAnnotation = "test.nodelet/attach-error";
/** Beside it: gRPC's code for that, as a number. */
export const attachErrorCodeAnnotation = "test.nodelet/attach-error-code";

/**
 * Stands in for the attach-detach controller and every driver's external attacher: CSI volumes of bound pods get their
 * VolumeAttachment, attached at once, and appear in the node's `volumesAttached`; when no pod uses them and the node says so, too
 * (`volumesInUse`), both go. Returns the function that stops it.
 */
export function startAttachController(registry: Registry): () => void {
  const attachments = registry.typeOf("storage.k8s.io", "volumeattachments");
  const nodes = registry.typeOf("", "nodes");
  const all = <T>(storage: string): T[] => registry.store.list(storage).map(([, object]) => object as unknown as T);

  /** What pods on nodes need: name of the attachment → volume and node. */
  const wanted = () => {
    const found = new Map<string, { nodeName: string; volume: PersistentVolume; key: string }>();
    for (const pod of all<Pod>("pods")) {
      const { nodeName = "" } = pod.spec;
      if (nodeName === "" || pod.status?.phase === "Succeeded" || pod.status?.phase === "Failed") continue;
      for (const volume of volumesOf(registry, pod)) {
        const { csi } = volume.spec;
        if (csi === undefined || !isAttachRequired(registry, csi.driver)) continue;
        const text = `${csi.volumeHandle}${csi.driver}${nodeName}`;
        const name = `csi-${createHash("sha256").update(text).digest("hex")}`;
        found.set(name, { nodeName, volume, key: `kubernetes.io/csi/${csi.driver}^${csi.volumeHandle}` });
      }
    }
    return found;
  };
  const setAttached = (nodeName: string, key: string, isAttached: boolean) => {
    const found = registry.store.get("nodes", nodeName);
    if (found === undefined) return;
    // Nothing is written that is there: a list in another order would be a change, and each change makes us look again.
    const attached = typed<Node>(found).status?.volumesAttached ?? [];
    if (attached.some(({ name }) => name === key) === isAttached) return;
    registry.modify(
      nodes,
      "",
      nodeName,
      (object) => {
        const node = typed<Node>(object);
        const others = (node.status?.volumesAttached ?? []).filter(({ name }) => name !== key);
        const volumesAttached = isAttached ? [...others, { name: key, devicePath: "" }] : others;
        node.status = { ...node.status, volumesAttached };
      },
      { subresource: "status" },
    );
  };
  const sync = () => {
    // The usual case, and this is asked at each change of each pod.
    if (all("persistentvolumes").length + all("volumeattachments.storage.k8s.io").length === 0) return;
    const needed = wanted();
    for (const [name, { nodeName, volume, key }] of needed) {
      const existing = registry.store.get("volumeattachments.storage.k8s.io", name);
      if (existing === undefined) {
        const { driver: attacher = "" } = volume.spec.csi ?? {};
        registry.create(attachments, "", {
          apiVersion: "storage.k8s.io/v1",
          kind: "VolumeAttachment",
          metadata: { name },
          spec: { attacher, nodeName, source: { persistentVolumeName: volume.metadata.name } },
          status: { attached: false },
        });
      }
      const { [attachErrorAnnotation]: message, [attachErrorCodeAnnotation]: code } = volume.metadata.annotations ?? {};
      const errorCode = code === undefined ? {} : { errorCode: Number(code) };
      registry.modify(
        attachments,
        "",
        name,
        (object) => {
          typed<VolumeAttachment>(object).status =
            message === undefined
              ? { attached: true, attachmentMetadata: { devicePath: `/dev/test/${volume.metadata.name}` } }
              : { attached: false, attachError: { message, ...errorCode } };
        },
        { subresource: "status" },
      );
      if (message === undefined) setAttached(nodeName, key, true);
    }
    for (const attachment of all<VolumeAttachment>("volumeattachments.storage.k8s.io")) {
      if (needed.has(attachment.metadata.name)) continue;
      const { nodeName, source } = attachment.spec;
      const volume = registry.store.get("persistentvolumes", source.persistentVolumeName ?? "");
      const csi = volume === undefined ? undefined : typed<PersistentVolume>(volume).spec.csi;
      const key = csi === undefined ? "" : `kubernetes.io/csi/${csi.driver}^${csi.volumeHandle}`;
      const node = registry.store.get("nodes", nodeName);
      if (node !== undefined && typed<Node>(node).status?.volumesInUse?.includes(key) === true) continue;
      registry.delete(attachments, "", attachment.metadata.name);
      setAttached(nodeName, key, false);
    }
  };

  let isBusy = false;
  const look = () => {
    if (isBusy) return; // our own writes
    isBusy = true;
    try {
      sync();
    } finally {
      isBusy = false;
    }
  };
  look();
  const watched = new Set([
    "pods",
    "nodes",
    "persistentvolumes",
    "persistentvolumeclaims",
    "csidrivers.storage.k8s.io",
  ]);
  return registry.onChange(({ storage }) => {
    if (watched.has(storage)) look();
  });
}

/** PersistentVolumes that a pod uses, through claims that are bound. */
function volumesOf(registry: Registry, pod: Pod): PersistentVolume[] {
  const { namespace = "", name } = pod.metadata;
  return (pod.spec.volumes ?? []).flatMap((volume) => {
    const claimName =
      volume.persistentVolumeClaim?.claimName ??
      (volume.ephemeral === undefined ? undefined : `${name}-${volume.name}`);
    const claim = registry.store.get("persistentvolumeclaims", `${namespace}/${claimName}`);
    const { volumeName = "" } = claim === undefined ? {} : (typed<PersistentVolumeClaim>(claim).spec ?? {});
    const found = registry.store.get("persistentvolumes", volumeName);
    return found === undefined ? [] : [typed<PersistentVolume>(found)];
  });
}

function isAttachRequired(registry: Registry, driver: string): boolean {
  const object = registry.store.get("csidrivers.storage.k8s.io", driver);
  return object === undefined || typed<CSIDriver>(object).spec.attachRequired !== false;
}
