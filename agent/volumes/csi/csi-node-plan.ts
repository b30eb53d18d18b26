import type { CSINode, Node } from "../../kube/types.ts";
import { migratedPlugins } from "../in-tree.ts";
import type { NodeInfo } from "./port.ts";

/** What the cluster is to know: driver → what it said of the node, undefined for one that is gone. Others are left as they are. */
export type WantedDrivers = ReadonlyMap<string, NodeInfo | undefined>;

export const nodeIDAnnotation = "csi.volume.kubernetes.io/nodeid";
export const migratedPluginsAnnotation = "storage.alpha.kubernetes.io/migrated-plugins";

// Kinds of volumes that were built in once. The controller manager attaches them through their CSI drivers where a node says so:
// of those alone that the node mounts through them, too.
const migrated = migratedPlugins.join(",");

// `allocatable.count` is a 32-bit integer.
const countMax = 2 ** 31 - 1;

/** A merge patch of a Node's metadata. */
export interface MetadataPatch {
  metadata: { uid?: string; labels?: Record<string, string>; annotations?: Record<string, string | null> };
}

/** Drivers whose topology the Node contradicts: driver → why. A label belongs to whoever set it first. Pure. */
export function topologyProblems(node: Node, wanted: WantedDrivers): Map<string, string> {
  const problems = new Map<string, string>();
  const claimed = new Map(Object.entries(node.metadata.labels ?? {}));
  for (const [driver, info] of wanted) {
    for (const [key, value] of Object.entries(info?.topology ?? {})) {
      const existing = claimed.get(key) ?? value;
      claimed.set(key, existing);
      if (existing === value) continue;
      const why = `topology value collision: CSI driver ${driver} says ${key}=${value}, the node's label is ${existing}`;
      problems.set(driver, why);
    }
  }
  return problems;
}

/**
 * What is to be changed in the Node's metadata: node IDs in one annotation, topology as labels. Pure.
 * @param part "add" before the CSINode names the drivers, "remove" after it has ceased to
 * @returns undefined if nothing is
 */
export function nodePatch(node: Node, wanted: WantedDrivers, part: "add" | "remove"): MetadataPatch | undefined {
  const { uid, annotations = {}, labels = {} } = node.metadata;
  const ids = parseNodeIDs(annotations[nodeIDAnnotation]);
  const newLabels: Record<string, string> = {};
  for (const [driver, info] of wanted) {
    if (part === "add" && info !== undefined) {
      ids.set(driver, info.nodeID);
      for (const [key, value] of Object.entries(info.topology)) if (labels[key] !== value) newLabels[key] = value;
    }
    if (part === "remove" && info === undefined) ids.delete(driver);
  }
  const text = ids.size === 0 ? undefined : renderNodeIDs(ids);
  const hasNewIDs = !isSameIDs(ids, parseNodeIDs(annotations[nodeIDAnnotation]));
  if (!hasNewIDs && Object.keys(newLabels).length === 0) return undefined;
  return {
    metadata: {
      ...(uid === undefined ? {} : { uid }),
      ...(Object.keys(newLabels).length === 0 ? {} : { labels: newLabels }),
      ...(hasNewIDs ? { annotations: { [nodeIDAnnotation]: text ?? null } } : {}),
    },
  };
}

/** The CSINode to create for a Node that has none. Pure. */
export function newCSINode(node: Node, wanted: WantedDrivers): CSINode {
  const { name, uid = "" } = node.metadata;
  return {
    apiVersion: "storage.k8s.io/v1",
    kind: "CSINode",
    metadata: {
      name,
      annotations: { [migratedPluginsAnnotation]: migrated },
      ownerReferences: [{ apiVersion: "v1", kind: "Node", name, uid }],
    },
    spec: { drivers: mergedDrivers([], wanted) },
  };
}

/** True if a CSINode was made for another Node of that name. Pure. */
export function isForeign(csiNode: CSINode, node: Node): boolean {
  const { ownerReferences = [] } = csiNode.metadata;
  return ownerReferences.some(({ kind, uid }) => kind === "Node" && uid !== node.metadata.uid);
}

/**
 * The updates that make a CSINode name the wanted drivers, to be sent one after the other. There are two where an entry changes
 * other than in its count: the API server takes no such change, but a removal and an addition. Pure.
 */
export function csiNodeUpdates(csiNode: CSINode, wanted: WantedDrivers): CSINode[] {
  const before: CSINodeDriver[] = csiNode.spec.drivers ?? [];
  const after = mergedDrivers(before, wanted);
  const annotations = { ...csiNode.metadata.annotations, [migratedPluginsAnnotation]: migrated };
  const metadata = { ...csiNode.metadata, annotations };
  const isAnnotated = csiNode.metadata.annotations?.[migratedPluginsAnnotation] === migrated;
  if (isAnnotated && isEqual(before, after)) return [];
  const withDrivers = (drivers: CSINodeDriver[]): CSINode => ({ ...csiNode, metadata, spec: { drivers } });
  const replaced = new Set(
    after
      .filter((driver) => before.some((old) => old.name === driver.name && !isSameBut(old, driver)))
      .map(({ name }) => name),
  );
  if (replaced.size === 0) return [withDrivers(after)];
  return [withDrivers(after.filter(({ name }) => !replaced.has(name))), withDrivers(after)];
}

type CSINodeDriver = NonNullable<CSINode["spec"]["drivers"]>[number];

function mergedDrivers(before: readonly CSINodeDriver[], wanted: WantedDrivers): CSINodeDriver[] {
  const drivers = new Map(before.map((driver) => [driver.name, driver]));
  for (const [name, info] of wanted) {
    if (info === undefined) drivers.delete(name);
    else drivers.set(name, entryOf(name, info));
  }
  return [...drivers.values()];
}

function entryOf(name: string, { nodeID, maxVolumesPerNode, topology }: NodeInfo): CSINodeDriver {
  const count = Math.min(maxVolumesPerNode, countMax);
  const topologyKeys = Object.keys(topology).toSorted();
  return {
    name,
    nodeID,
    ...(topologyKeys.length === 0 ? {} : { topologyKeys }),
    ...(count > 0 ? { allocatable: { count } } : {}),
  };
}

/** The API server may leave out what we wrote as null. */
function isEqual(a: readonly CSINodeDriver[], b: readonly CSINodeDriver[]): boolean {
  const text = (drivers: readonly CSINodeDriver[]) =>
    JSON.stringify(
      drivers.map(({ name, nodeID, topologyKeys, allocatable }) => [
        name,
        nodeID,
        topologyKeys ?? [],
        allocatable?.count ?? 0,
      ]),
    );
  return text(a) === text(b);
}

function isSameBut(a: CSINodeDriver, b: CSINodeDriver): boolean {
  const { allocatable: _a, ...aRest } = a;
  const { allocatable: _b, ...bRest } = b;
  return isEqual([aRest], [bRest]);
}

/** Nothing readable is nothing: the drivers that are here write it anew. */
function parseNodeIDs(text: string | undefined): Map<string, string> {
  try {
    const value: unknown = JSON.parse(text ?? "{}");
    if (typeof value !== "object" || value === null) return new Map();
    return new Map(Object.entries(value).filter((entry): entry is [string, string] => typeof entry[1] === "string"));
  } catch {
    return new Map();
  }
}

function renderNodeIDs(ids: ReadonlyMap<string, string>): string {
  return JSON.stringify(Object.fromEntries([...ids].toSorted(([a], [b]) => (a < b ? -1 : 1))));
}

function isSameIDs(a: ReadonlyMap<string, string>, b: ReadonlyMap<string, string>): boolean {
  return a.size === b.size && [...a].every(([driver, id]) => b.get(driver) === id);
}
