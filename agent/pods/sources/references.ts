import type { Container, Pod, Volume } from "../../kube/types.ts";
import { isObject } from "../../lib/json.ts";

// Volumes that are, or are found by, objects of the API server.
const objectVolumes = [
  "configMap",
  "secret",
  "persistentVolumeClaim",
  "ephemeral",
  "csi",
  "glusterfs",
  "azureFile",
] as const;

/**
 * The first field of a pod that names an object of the API server: `spec.volumes[0].configMap`. A static pod may have
 * none, because it has to run where there is no API server.
 */
export function apiReference({ spec }: Pod): string | undefined {
  if ((spec.serviceAccountName ?? "") !== "") return "spec.serviceAccountName";
  if ((spec.imagePullSecrets ?? []).length > 0) return "spec.imagePullSecrets";
  const claims: unknown = (spec as { resourceClaims?: unknown }).resourceClaims;
  if (Array.isArray(claims) && claims.length > 0) return "spec.resourceClaims";
  for (const list of ["initContainers", "containers"] as const) {
    for (const [i, container] of (spec[list] ?? []).entries()) {
      const field = containerReference(container);
      if (field !== undefined) return `spec.${list}[${i}].${field}`;
    }
  }
  for (const [i, volume] of (spec.volumes ?? []).entries()) {
    const field = volumeReference(volume);
    if (field !== undefined) return `spec.volumes[${i}].${field}`;
  }
  return undefined;
}

function containerReference({ env = [], envFrom = [] }: Container): string | undefined {
  for (const [i, { configMapRef, secretRef }] of envFrom.entries()) {
    if (configMapRef !== undefined) return `envFrom[${i}].configMapRef`;
    if (secretRef !== undefined) return `envFrom[${i}].secretRef`;
  }
  for (const [i, { valueFrom }] of env.entries()) {
    if (valueFrom?.configMapKeyRef !== undefined) return `env[${i}].valueFrom.configMapKeyRef`;
    if (valueFrom?.secretKeyRef !== undefined) return `env[${i}].valueFrom.secretKeyRef`;
  }
  return undefined;
}

function volumeReference(volume: Volume): string | undefined {
  const kind = objectVolumes.find((name) => volume[name] !== undefined);
  if (kind !== undefined) return kind;
  for (const [i, source] of (volume.projected?.sources ?? []).entries()) {
    const other = Object.keys(source).find((name) => name !== "downwardAPI" && source[name] !== undefined);
    if (other !== undefined) return `projected.sources[${i}].${other}`;
  }
  // Network volumes may be used, but not with a password from the API server.
  for (const [name, source] of Object.entries(volume)) {
    if (isObject(source) && source["secretRef"] !== undefined) return `${name}.secretRef`;
  }
  return undefined;
}
