import type { CSIPersistentVolumeSource, PersistentVolume } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";

/**
 * Kinds of volumes that were once part of Kubernetes and are CSI drivers now. PersistentVolumes of the common ones are
 * given to the driver as Kubernetes' own translation does, so that all parts of a cluster mean the same volume.
 */

/** The CSI driver that took over a kind, by the kind's field. */
export const csiDriverOfField: Readonly<Record<string, string>> = {
  gcePersistentDisk: "pd.csi.storage.gke.io",
  awsElasticBlockStore: "ebs.csi.aws.com",
  cinder: "cinder.csi.openstack.org",
  azureDisk: "disk.csi.azure.com",
  azureFile: "file.csi.azure.com",
  vsphereVolume: "csi.vsphere.vmware.com",
  portworxVolume: "pxd.portworx.com",
};

type Source = Readonly<Record<string, unknown>>;
type Translation = (source: Source, volume: PersistentVolume) => Omit<CSIPersistentVolumeSource, "driver">;

const translations: Readonly<Record<string, Translation>> = {
  gcePersistentDisk: (source, volume) => ({
    ...common(source),
    volumeHandle: gceHandle(textOf(source, "pdName"), volume),
    volumeAttributes: { partition: partitionOf(source) },
  }),
  awsElasticBlockStore: (source) => ({
    ...common(source),
    volumeHandle: ebsHandle(textOf(source, "volumeID")),
    volumeAttributes: { partition: partitionOf(source) },
  }),
  cinder: (source) => ({ ...common(source), volumeHandle: textOf(source, "volumeID"), volumeAttributes: {} }),
  azureDisk: (source) => {
    const [caching, fsType] = [textOf(source, "cachingMode"), textOf(source, "fsType")];
    return {
      ...common(source),
      volumeHandle: textOf(source, "diskURI"),
      volumeAttributes: {
        kind: textOf(source, "kind") || "Managed",
        ...(caching === "" ? {} : { cachingmode: caching }),
        ...(fsType === "" ? {} : { fstype: fsType }),
      },
    };
  },
};

// These were asked for with access modes that their disks do not have; they work as the nearest that there is.
const singleNodeFields = new Set(["gcePersistentDisk", "awsElasticBlockStore", "azureDisk"]);

/** A PersistentVolume of an old kind as its CSI driver's; others as they are. Pure. Throws Invalid for a malformed one. */
export function toCSI(volume: PersistentVolume): PersistentVolume {
  for (const [field, translate] of Object.entries(translations)) {
    const source = volume.spec[field];
    if (!isSource(source)) continue;
    const csi = { driver: csiDriverOfField[field] ?? "", ...translate(source, volume) };
    const spec: PersistentVolume["spec"] = { ...volume.spec, csi };
    delete spec[field];
    if (singleNodeFields.has(field) && spec.accessModes !== undefined) spec.accessModes = withoutMany(spec.accessModes);
    return { ...volume, spec };
  }
  return volume;
}

function common(source: Source): Pick<CSIPersistentVolumeSource, "fsType" | "readOnly"> {
  return { fsType: textOf(source, "fsType"), readOnly: source["readOnly"] === true };
}

const unspecified = "UNSPECIFIED";
// How zones are put together in the label of a regional disk.
const zonesDelimiter = "__";

function gceHandle(name: string, { metadata: { labels = {} } }: PersistentVolume): string {
  const label = labels["failure-domain.beta.kubernetes.io/zone"] ?? labels["topology.kubernetes.io/zone"] ?? "";
  const zones = label.split(zonesDelimiter);
  const [zone = ""] = zones;
  if (zones.length === 1) return `projects/${unspecified}/zones/${zone || unspecified}/disks/${name}`;
  const regions = new Set(zones.map((one) => one.replace(/-[^-]*$/, "")));
  const [region] = regions;
  if (regions.size !== 1) throw new AgentError("Invalid", `zones ${label} of the disk are not of one region`);
  return `projects/${unspecified}/regions/${region}/disks/${name}`;
}

function ebsHandle(volumeID: string): string {
  const id = volumeID.startsWith("aws://") ? volumeID.replace(/^aws:\/\/[^/]*\//, "") : volumeID;
  if (!/^vol-[^/]*$/.test(id)) throw new AgentError("Invalid", `"${volumeID}" is not the ID of an EBS volume`);
  return id;
}

function partitionOf(source: Source): string {
  const { partition } = source;
  return typeof partition === "number" && partition !== 0 ? String(partition) : "";
}

function withoutMany(accessModes: readonly string[]): string[] {
  return accessModes.map((mode) => (mode === "ReadWriteMany" ? "ReadWriteOnce" : mode));
}

function textOf(source: Source, field: string): string {
  const value = source[field];
  return typeof value === "string" ? value : "";
}

function isSource(value: unknown): value is Source {
  return typeof value === "object" && value !== null;
}
