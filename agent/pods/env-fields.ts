import type { ObjectFieldSelector, Pod } from "../kube/types.ts";
import { AgentError } from "../lib/errors.ts";
import { metadataField } from "../volumes/fields.ts";

/** Addresses that field references may ask for. */
export interface PodAddresses {
  /** At most one per family, the primary family first; host network: the node's. Empty while unknown. */
  podIPs: readonly string[];
  /** The node's, as in `status.hostIPs`. */
  hostIPs: readonly string[];
}

/**
 * The text of an environment variable's `fieldRef`. Rejects with code Invalid for a path that does not exist or may not
 * be used there, with Unavailable while the node's address is not known.
 */
export function fieldRefValue(pod: Pod, ref: ObjectFieldSelector, addresses: PodAddresses): string {
  const { apiVersion = "v1", fieldPath } = ref;
  if (apiVersion !== "v1" && apiVersion !== "") {
    throw new AgentError("Invalid", `fieldRef ${fieldPath}: unsupported apiVersion "${apiVersion}", only v1 is known`);
  }
  switch (fieldPath) {
    case "spec.nodeName":
    case "spec.host":
      return pod.spec.nodeName ?? "";
    case "spec.serviceAccountName":
      return pod.spec.serviceAccountName ?? "";
    case "status.hostIP":
      return known(addresses.hostIPs)[0] ?? "";
    case "status.hostIPs":
      return known(addresses.hostIPs).join(",");
    case "status.podIP":
      return addresses.podIPs[0] ?? "";
    case "status.podIPs":
      return addresses.podIPs.join(",");
    default: {
      const value = metadataField(pod, fieldPath);
      if (value === undefined) throw new AgentError("Invalid", `unsupported fieldPath: ${fieldPath}`);
      return value;
    }
  }
}

function known(hostIPs: readonly string[]): readonly string[] {
  if (hostIPs.length === 0) throw new AgentError("Unavailable", "the node has no known IP address yet");
  return hostIPs;
}
