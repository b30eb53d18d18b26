import type { Volume } from "../kube/types.ts";
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

const byField = new Map(volumeKinds.map((kind) => [kind.field, kind]));
const ownPluginDirs = new Set(volumeKinds.map((kind) => pluginDirName(kind.pluginName)));

/** The kind of a volume; without any source it is an emptyDir, as for the API server. Rejects with Invalid for others. */
export function kindOf(volume: Volume): VolumeKind {
  const field = Object.keys(volume).find((key) => key !== "name" && volume[key] !== null && volume[key] !== undefined);
  const kind = byField.get(field ?? "emptyDir");
  if (kind === undefined) throw new AgentError("Invalid", `volume kind ${field} is not supported yet by nodelet`);
  return kind;
}

/** True for the directories under a pod's `volumes` whose content is ours to unmount and delete. */
export function isOwnPluginDir(name: string): boolean {
  return ownPluginDirs.has(name);
}
