import type { CSIPersistentVolumeSource, PersistentVolume, Volume } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import type { BoundClaim } from "./kind.ts";

/**
 * Kinds of volumes that were once part of Kubernetes and are CSI drivers now. Those of the common kinds are
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

const translations: Readonly<Record<string, { plugin: string; diskField: string; translate: Translation }>> = {
  gcePersistentDisk: {
    plugin: "kubernetes.io/gce-pd",
    diskField: "pdName",
    translate: (source, volume) => ({
      ...common(source),
      volumeHandle: gceHandle(textOf(source, "pdName"), volume),
      volumeAttributes: { partition: partitionOf(source) },
    }),
  },
  awsElasticBlockStore: {
    plugin: "kubernetes.io/aws-ebs",
    diskField: "volumeID",
    translate: (source) => ({
      ...common(source),
      volumeHandle: ebsHandle(textOf(source, "volumeID")),
      volumeAttributes: { partition: partitionOf(source) },
    }),
  },
  cinder: {
    plugin: "kubernetes.io/cinder",
    diskField: "volumeID",
    translate: (source) => ({
      ...common(source),
      volumeHandle: textOf(source, "volumeID"),
      volumeAttributes: {},
    }),
  },
  azureDisk: {
    plugin: "kubernetes.io/azure-disk",
    diskField: "diskName",
    translate: (source) => {
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
  },
};

// These were asked for with access modes that their disks do not have; they work as the nearest that there is.
const singleNodeFields = new Set(["gcePersistentDisk", "awsElasticBlockStore", "azureDisk"]);

/** A PersistentVolume of an old kind as its CSI driver's; others as they are. Pure. Throws Invalid for a malformed one. */
export function toCSI(volume: PersistentVolume): PersistentVolume {
  for (const [field, { translate }] of Object.entries(translations)) {
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

/** Plugins' names of the kinds that are translated, sorted: others of the cluster may count on their drivers here. */
export const migratedPlugins: readonly string[] = Object.values(translations)
  .map(({ plugin }) => plugin)
  .toSorted();

/**
 * A pod's volume that is written in the pod as one of an old kind, as a PersistentVolume of its CSI driver, bound to a claim that
 * is nobody's. Pure. @returns undefined for other volumes. Throws Invalid for a malformed one.
 */
export function inlineToCSI(volume: Volume): BoundClaim | undefined {
  for (const [field, { diskField }] of Object.entries(translations)) {
    const source = volume[field];
    if (!isSource(source)) continue;
    const id = textOf(source, diskField);
    // A directory's name to us.
    const disk = id.slice(id.lastIndexOf("/") + 1);
    if (!/^[^.]/.test(disk)) throw new AgentError("Invalid", `${field} names no disk by its ${diskField} "${id}"`);
    const isReadOnly = source["readOnly"] === true;
    const name = `${csiDriverOfField[field]}-${disk}`;
    const accessModes = [isReadOnly && field === "gcePersistentDisk" ? "ReadOnlyMany" : "ReadWriteOnce"];
    const spec: PersistentVolume["spec"] = { accessModes, volumeMode: "Filesystem", [field]: source };
    return { claim: { metadata: { name } }, volume: toCSI({ metadata: { name }, spec }), isReadOnly };
  }
  return undefined;
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
