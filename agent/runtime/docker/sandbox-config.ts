import type { PodSandboxConfig } from "../port.ts";
import { cgroupParent, commonHostConfig, type ContextOfDaemon, type CreateBody, noHealthcheck } from "./create-body.ts";
import { sandboxLabels } from "./labels.ts";
import { sandboxName } from "./names.ts";
import { noUserNamespaces, unknownHandler } from "./refusals.ts";
import { oomScoreAdj } from "./resources.ts";
import { sandboxSecurity } from "./security.ts";

// kubelet's, for the sandbox: it goes after everything in the pod, before the node's own daemons.
const oomScoreAdjOfSandbox = -998;
// The kernel's smallest: the pause process sleeps.
const cpuSharesOfSandbox = 2;
// It says nothing unless the image is no pause image; then its words help.
const logConfig = { Type: "json-file", Config: { "max-size": "100k" } };

/**
 * How Docker is to make the pause container of a pod's sandbox. Throws Invalid or Unimplemented, naming pod and cause, for
 * what Docker cannot give it. Pure.
 *
 * Its network is the node's, or an empty one that CNI fills. Pod-level resources hold through the pod's cgroup, which lies
 * above. The pod's DNS settings are written into its resolv.conf when it runs.
 */
export function sandboxCreateBody(
  config: PodSandboxConfig,
  pauseImage: string,
  runtimeHandler: string,
  context: ContextOfDaemon,
): CreateBody {
  const what = `sandbox of pod ${config.namespace}/${config.name}`;
  const { daemon } = context;
  const { securityContext: security } = config;
  const { namespaceOptions: namespaces } = security;
  if (namespaces.userns?.mode === "POD") throw noUserNamespaces(what);
  if (runtimeHandler !== "" && !daemon.runtimes.includes(runtimeHandler)) {
    throw unknownHandler(what, runtimeHandler, daemon);
  }
  const isHostNetwork = namespaces.network === "NODE";
  const { runAsUser, runAsGroup } = security;
  return {
    name: sandboxName(config),
    Image: pauseImage,
    Labels: sandboxLabels(config, runtimeHandler, context.nodeName),
    Healthcheck: noHealthcheck,
    // Docker makes a container on the node's network use the node's name by itself, and takes no other.
    ...(isHostNetwork || config.hostname === "" ? {} : { Hostname: config.hostname }),
    ...(runAsUser === undefined
      ? {}
      : { User: runAsGroup === undefined ? `${runAsUser}` : `${runAsUser}:${runAsGroup}` }),
    HostConfig: {
      ...commonHostConfig,
      ...sandboxSecurity(what, security),
      NetworkMode: isHostNetwork ? "host" : "none",
      ...(isHostNetwork ? { UTSMode: "host" } : {}),
      IpcMode: namespaces.ipc === "NODE" ? "host" : "shareable",
      ...(namespaces.pid === "NODE" ? { PidMode: "host" } : {}),
      CgroupnsMode: daemon.cgroupVersion === 2 ? "private" : "host",
      ...(config.cgroupParent === "" ? {} : { CgroupParent: cgroupParent(config.cgroupParent, daemon) }),
      ...sysctls(config, context),
      ...(runtimeHandler === "" ? {} : { Runtime: runtimeHandler }),
      CpuShares: cpuSharesOfSandbox,
      OomScoreAdj: oomScoreAdj(oomScoreAdjOfSandbox, context),
      LogConfig: logConfig,
    },
  };
}

/** Docker turns IPv6 off in a network that it did not fill itself; CNI and `localhost` need it. */
function sysctls(
  { sysctls: ofPod, securityContext }: PodSandboxConfig,
  { hasIPv6 }: ContextOfDaemon,
): { Sysctls?: Record<string, string> } {
  const isOwn = securityContext.namespaceOptions.network !== "NODE";
  const all = { ...(isOwn && hasIPv6 ? { "net.ipv6.conf.all.disable_ipv6": "0" } : {}), ...ofPod };
  return Object.keys(all).length === 0 ? {} : { Sysctls: all };
}
