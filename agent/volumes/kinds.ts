import { AgentError } from "../lib/errors.ts";
import { configMapKind } from "./config-map.ts";
import { downwardAPIKind } from "./downward-api.ts";
import { emptyDirKind } from "./empty-dir.ts";
import { hostPathKind } from "./host-path.ts";
import { imageKind } from "./image.ts";
import { pluginDirName, type VolumeKind } from "./kind.ts";
import { projectedKind } from "./projected.ts";
import { secretKind } from "./secret.ts";

/** The kinds of volumes that can be set up. A new one is a file of its own and a line here. */
const volumeKinds: readonly VolumeKind[] = [
  emptyDirKind,
  hostPathKind,
  configMapKind,
  secretKind,
  downwardAPIKind,
  projectedKind,
  imageKind,
];

/** The kinds of a node: those above and the ones that were made for it. */
export interface KindTable {
  /**
   * The kind of a volume by its source; `source` is a pod's volume or a PersistentVolume's spec. A pod's volume without any
   * source is an emptyDir, as for the API server. Rejects with Invalid for kinds that are not supported.
   */
  kindOf(source: Readonly<Record<string, unknown>>): VolumeKind;
  /** By the name of its directory, `kubernetes.io~csi`. */
  ofDirName(name: string): VolumeKind | undefined;
}

/** @param others kinds that hold something of their own, such as connections to drivers */
export function kindTable(others: readonly VolumeKind[] = []): KindTable {
  const all = [...volumeKinds, ...others];
  const byField = new Map(all.map((kind) => [kind.field, kind]));
  const byDirName = new Map(all.map((kind) => [pluginDirName(kind.pluginName), kind]));
  return {
    kindOf: (source) => {
      const fields = Object.keys(source).filter((key) => source[key] !== null && typeof source[key] === "object");
      const known = fields.find((field) => byField.has(field));
      const kind = byField.get(known ?? fields[0] ?? "emptyDir");
      if (kind === undefined) throw new AgentError("Invalid", `volume kind ${fields[0]} is not supported by nodelet`);
      return kind;
    },
    ofDirName: (name) => byDirName.get(name),
  };
}

const ownPluginDirs = new Set(
  volumeKinds.filter(({ tearDown }) => tearDown === undefined).map((kind) => pluginDirName(kind.pluginName)),
);

/** True for the directories under a pod's `volumes` whose content is ours to unmount and delete. */
export function isOwnPluginDir(name: string): boolean {
  return ownPluginDirs.has(name);
}
