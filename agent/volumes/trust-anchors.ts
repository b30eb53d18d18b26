import { createHash } from "node:crypto";
import { matchesSelector } from "../kube/label-selector.ts";
import type { ClusterTrustBundle } from "../kube/certificate-types.ts";
import type { ClusterTrustBundleProjection } from "../kube/types.ts";
import { toPem } from "../lib/der.ts";
import { AgentError } from "../lib/errors.ts";

/** Which certificates a `clusterTrustBundle` source stands for. Pure. */

// kubelet's bound: a selector is compared with every bundle.
export const selectorBytesMax = 100 * 1024;

/**
 * PEM of the certificates of all bundles that `source` means, each once, and nothing else that stood in the bundles. Their
 * order is none that anybody could rely on, but the same each time, so that files do not change for nothing.
 * @returns undefined if no bundle is meant
 * Rejects with code Invalid for a source that cannot mean any.
 */
export function trustAnchors(
  bundles: Iterable<ClusterTrustBundle>,
  source: ClusterTrustBundleProjection,
): string | undefined {
  const texts = selectBundles(bundles, source).map(({ spec }) => spec.trustBundle);
  if (texts.length === 0) return undefined;
  const byHash = new Map<string, Buffer>();
  for (const data of texts.flatMap(certificatesIn)) byHash.set(createHash("sha256").update(data).digest("hex"), data);
  return [...byHash]
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([, data]) => toPem("CERTIFICATE", data))
    .join("");
}

/** Says what was looked for, for people. */
export function describeSource({ name, signerName = "" }: ClusterTrustBundleProjection): string {
  return name === undefined || name === ""
    ? `ClusterTrustBundle of signer "${signerName}" that the labelSelector selects`
    : `ClusterTrustBundle "${name}"`;
}

function selectBundles(
  bundles: Iterable<ClusterTrustBundle>,
  { name = "", signerName = "", labelSelector }: ClusterTrustBundleProjection,
): ClusterTrustBundle[] {
  if (name !== "") return [...bundles].filter(({ metadata }) => metadata.name === name);
  if (signerName === "") throw new AgentError("Invalid", "clusterTrustBundle: name or signerName is required");
  if (Buffer.byteLength(JSON.stringify(labelSelector ?? null)) > selectorBytesMax) {
    throw new AgentError("Invalid", `clusterTrustBundle: labelSelector is longer than ${selectorBytesMax} bytes`);
  }
  return [...bundles].filter(
    ({ metadata, spec }) => spec.signerName === signerName && matchesSelector(metadata.labels, labelSelector),
  );
}

/** The certificates in PEM text, as DER; blocks of other kinds, headers and text between blocks are left out. */
function certificatesIn(text: string): Buffer[] {
  const blocks = text.matchAll(
    /-----BEGIN CERTIFICATE-----\s*\n([^-]*(?:-(?!----END)[^-]*)*)-----END CERTIFICATE-----/g,
  );
  return [...blocks].map(([, body = ""]) => {
    const lines = body.split(/\r?\n/);
    const lastHeader = lines.findLastIndex((line) => line.includes(":"));
    return Buffer.from(lines.slice(lastHeader + 1).join(""), "base64");
  });
}
