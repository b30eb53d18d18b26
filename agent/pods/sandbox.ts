import { join } from "node:path";
import { configSourceAnnotation, podSandboxResources, uidOf } from "../kube/pod-resources.ts";
import type { Pod } from "../kube/types.ts";
import type { PodSandboxConfig, PodSnapshot, SandboxStatus } from "../runtime/port.ts";
import { sysctlName } from "./admission/sysctls.ts";
import type { DNSConfig } from "./dns.ts";
import { sandboxHostname } from "./hosts.ts";
import { podLogDirName } from "./names.ts";
import type { PodSettings } from "./port.ts";
import { sandboxSecurityContext } from "./security.ts";
import type { IDMappings } from "./user-namespaces.ts";

/** What is wrong with the pod's sandbox. */
export type SandboxState =
  | { kind: "ready"; sandbox: SandboxStatus }
  /** None fits: make one with this attempt. `old` is set if one existed that fits no longer. */
  | { kind: "needed"; attempt: number; old: SandboxStatus | undefined };

/** Whether the newest sandbox still fits the pod; see kubelet's PodSandboxChanged. */
export function sandboxState(pod: Pod, observed: PodSnapshot): SandboxState {
  const [newest] = observed.sandboxes;
  if (newest === undefined) return { kind: "needed", attempt: 0, old: undefined };
  const attempt = newest.attempt + 1;
  const ready = observed.sandboxes.filter((sandbox) => sandbox.ready);
  if (ready.length > 1 || !newest.ready) return { kind: "needed", attempt, old: newest };
  const wantsHost = pod.spec.hostNetwork === true;
  if ((newest.networkMode === "NODE") !== wantsHost) return { kind: "needed", attempt, old: undefined };
  if (!wantsHost && newest.ips.length === 0) return { kind: "needed", attempt, old: newest };
  return { kind: "ready", sandbox: newest };
}

/** CRI configuration of the pod's sandbox. Rejects with code Invalid for a hostname that cannot be. */
export function buildSandboxConfig(
  pod: Pod,
  attempt: number,
  inputs: {
    cgroupParent: string;
    dns: DNSConfig | undefined;
    volumeGroups: readonly number[];
    settings: PodSettings;
    userns?: IDMappings;
  },
): PodSandboxConfig {
  const { settings } = inputs;
  const { metadata, spec } = pod;
  const { resources, overhead } = podSandboxResources(pod, settings.resources);
  return {
    name: metadata.name,
    namespace: metadata.namespace ?? "",
    uid: uidOf(pod),
    attempt,
    hostname: sandboxHostname(pod, settings.clusterDomain),
    logDirectory: join(settings.podLogsDir, podLogDirName(pod)),
    dns: inputs.dns,
    portMappings: portMappings(pod),
    labels: {
      ...metadata.labels,
      "io.kubernetes.pod.name": metadata.name,
      "io.kubernetes.pod.namespace": metadata.namespace ?? "",
      "io.kubernetes.pod.uid": uidOf(pod),
    },
    annotations: { [configSourceAnnotation]: "api", ...metadata.annotations },
    cgroupParent: inputs.cgroupParent,
    sysctls: Object.fromEntries(
      (spec.securityContext?.sysctls ?? []).map(({ name, value }) => [sysctlName(name), value]),
    ),
    resources,
    overhead,
    securityContext: sandboxSecurityContext(pod, inputs.volumeGroups, inputs.userns),
  };
}

function portMappings(pod: Pod): PodSandboxConfig["portMappings"] {
  return pod.spec.containers.flatMap((container) => {
    const seen = new Set<string>();
    return (container.ports ?? []).flatMap(({ name, containerPort, hostPort = 0, hostIP = "", protocol = "TCP" }) => {
      const key =
        name !== undefined && name !== "" ? `name ${name}` : `${protocol} ${hostIP} ${containerPort} ${hostPort}`;
      if (seen.has(key)) return [];
      seen.add(key);
      return [{ protocol, containerPort, hostPort, hostIP }];
    });
  });
}
