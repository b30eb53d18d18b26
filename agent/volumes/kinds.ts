import type { PersistentVolume, Volume } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import { configMapKind } from "./config-map.ts";
import { downwardAPIKind } from "./downward-api.ts";
import { emptyDirKind } from "./empty-dir.ts";
import { hostPathKind } from "./host-path.ts";
import { imageKind } from "./image.ts";
import { csiDriverOfField } from "./in-tree.ts";
import type { VolumeKind } from "./kind.ts";
import { createLocalKind } from "./local.ts";
import { createNFSKind } from "./nfs.ts";
import { createProjectedKind } from "./projected.ts";
import { secretKind } from "./secret.ts";
import { pluginDirName } from "./pod-paths.ts";

/** The kinds of volumes that are the same on all nodes. A new one is a file of its own and a line here. */
const volumeKinds: readonly VolumeKind[] = [
  emptyDirKind,
  hostPathKind,
  configMapKind,
  secretKind,
  downwardAPIKind,
  imageKind,
];

// Sources of volumes that nodelet does not mount, and what to use instead.
const refused: Readonly<Record<string, string>> = {
  ...Object.fromEntries(
    Object.entries(csiDriverOfField).map(([field, driver]) => [
      field,
      `use a PersistentVolume of CSI driver ${driver}`,
    ]),
  ),
  iscsi: "use a CSI driver for iSCSI such as iscsi.csi.k8s.io",
  fc: "use a CSI driver for Fibre Channel such as fc.csi.k8s.io",
  flexVolume: "use a CSI driver in place of the FlexVolume plugin",
  gitRepo: "its plugin is disabled, clone the repository in an init container into an emptyDir",
};

// What the specs of all PersistentVolumes have beside the one field that says the kind.
const aboutAnyKind = new Set(["accessModes", "capacity", "claimRef", "mountOptions", "nodeAffinity"]);

/** The kinds of a node: those above and the ones that were made for it. */
export interface KindTable {
  /**
   * The kind of a volume by its source. A pod's volume without any source is an emptyDir, as for the API server. Throws
   * Invalid for kinds that are not supported.
   */
  kindOf(volume: Volume): VolumeKind;
  /** The kind of a PersistentVolume by its source. Throws Invalid for kinds that are not supported, and for none. */
  kindOfPersistent(volume: PersistentVolume): VolumeKind;
  /** By the name of its directory, `kubernetes.io~csi`. */
  ofDirName(name: string): VolumeKind | undefined;
  /** True for the directories under a pod's `volumes` whose content is ours to unmount and delete. */
  isOwnDirName(name: string): boolean;
}

/**
 * @param others kinds that hold something of their own, such as connections to drivers. Projected volumes among them may have
 * sources that not every node has; without, there are those that need nothing.
 */
export function kindTable(others: readonly VolumeKind[] = []): KindTable {
  const projected = others.find(({ field }) => field === "projected") ?? createProjectedKind({});
  const simple = [...volumeKinds, projected];
  const all = [...simple, createLocalKind(), createNFSKind(), ...others];
  const ownDirNames = new Set(
    simple.filter(({ tearDown }) => tearDown === undefined).map(({ pluginName }) => pluginDirName(pluginName)),
  );
  const byField = new Map(all.map((kind) => [kind.field, kind]));
  const byDirName = new Map(all.map((kind) => [pluginDirName(kind.pluginName), kind]));
  const kindOfOne = (source: Readonly<Record<string, unknown>>, fieldDefault: string): VolumeKind => {
    const fields = Object.keys(source).filter((key) => source[key] !== null && typeof source[key] === "object");
    const field = fields.find((one) => byField.has(one)) ?? fields[0] ?? fieldDefault;
    const kind = byField.get(field);
    if (kind !== undefined) return kind;
    const advice = Object.hasOwn(refused, field) ? `: ${refused[field]}` : "";
    throw new AgentError("Invalid", `volume kind ${field} is not supported by nodelet${advice}`);
  };
  return {
    kindOf: (volume) => kindOfOne(volume, "emptyDir"),
    kindOfPersistent: ({ spec }) => {
      const source = Object.entries(spec).filter(([field]) => !aboutAnyKind.has(field));
      return kindOfOne(Object.fromEntries(source), "without a source");
    },
    ofDirName: (name) => byDirName.get(name),
    isOwnDirName: (name) => ownDirNames.has(name),
  };
}
