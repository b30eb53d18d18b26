import { createHash } from "node:crypto";
import { configHashAnnotation, configSeenAnnotation, configSourceAnnotation } from "../../kube/pod-resources.ts";
import type { Pod, Toleration } from "../../kube/types.ts";
import { AgentError } from "../../lib/errors.ts";
import { withPodDefaults } from "./defaults.ts";
import { apiReference } from "./references.ts";
import { podProblem } from "./validate.ts";

/** Where the node's pods come from: the API server, a directory or file of manifests, a URL. */
export type PodSourceName = "api" | StaticSourceName;
export type StaticSourceName = "file" | "http";

/** What is the same for all static pods of the node. */
export interface StaticPodOptions {
  nodeName: string;
  /** False only with feature gate PreventStaticPodAPIReferences off. */
  refusesReferences: boolean;
}

// 128 bits in hex, as the reference's UIDs of static pods.
const uidLength = 32;
// A static pod belongs to its node: nothing that is wrong with the node makes it leave.
const staysOnNode: Toleration = { operator: "Exists", effect: "NoExecute" };

/**
 * Makes of a manifest the pod that the node runs: named after the node, with a UID that changes when the manifest, its
 * place or the node does, and with all defaults. Pure. Throws Invalid with one line that names the field.
 *
 * @param origin the manifest's path or URL
 * @param seenAtMs Unix ms
 */
export function buildStaticPod(
  manifest: Pod,
  { source, origin }: { source: StaticSourceName; origin: string },
  { nodeName, refusesReferences }: StaticPodOptions,
  seenAtMs: number,
): Pod {
  const { name, namespace = "", uid = "", annotations, labels } = manifest.metadata;
  const ownUID =
    uid === "" ? uidOfManifest(manifest, nodeName, source === "file" ? `file:${origin}` : `url:${origin}`) : uid;
  const { tolerations = [], serviceAccountName = "", serviceAccount = "" } = manifest.spec;
  // The older name of the field means the same.
  const account = serviceAccountName === "" ? serviceAccount : serviceAccountName;
  const pod = withPodDefaults({
    apiVersion: "v1",
    kind: "Pod",
    metadata: {
      name: `${name}-${nodeName.toLowerCase()}`,
      namespace: namespace === "" ? "default" : namespace,
      uid: ownUID,
      ...(labels === undefined ? {} : { labels }),
      annotations: {
        ...withoutOurs(annotations),
        [configHashAnnotation]: ownUID,
        [configSeenAnnotation]: rfc3339Nano(seenAtMs),
        [configSourceAnnotation]: source,
      },
    },
    spec: {
      ...manifest.spec,
      nodeName,
      ...(account === "" ? {} : { serviceAccountName: account }),
      ...(source === "file" ? { tolerations: [...tolerations, staysOnNode] } : {}),
    },
    status: { phase: "Pending" },
  });
  const reference = refusesReferences ? apiReference(pod) : undefined;
  if (reference !== undefined) {
    throw new AgentError("Invalid", `${reference}: must not be set, a static pod cannot use objects of the API server`);
  }
  const problem = podProblem(pod);
  if (problem !== undefined) throw new AgentError("Invalid", problem);
  return pod;
}

// What a pod is and where it comes from is for us to say. A manifest may be a copy of what the API server shows of it.
function withoutOurs(annotations: Readonly<Record<string, string>> = {}): Record<string, string> {
  return Object.fromEntries(Object.entries(annotations).filter(([key]) => !key.startsWith("kubernetes.io/config.")));
}

/**
 * The UID of a static pod that names none. Of what is written, not of what is filled in: a new version that fills in
 * something more must not replace every static pod of a running control plane.
 */
function uidOfManifest(manifest: Pod, nodeName: string, place: string): string {
  const hash = createHash("sha256");
  hash.update(JSON.stringify(sorted(manifest)));
  hash.update(`\nhost:${nodeName}\n${place}`);
  return hash.digest("hex").slice(0, uidLength);
}

// The order of fields means nothing in a manifest.
function sorted(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(sorted);
  if (typeof value !== "object" || value === null) return value;
  const entries = Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1));
  return Object.fromEntries(entries.map(([key, inner]) => [key, sorted(inner)]));
}

/** When a pod was first seen, as its annotation has it: RFC 3339 with nine digits, as tools cut the text at fixed places. */
export function rfc3339Nano(ms: number): string {
  return new Date(ms).toISOString().replace("Z", "000000Z");
}
