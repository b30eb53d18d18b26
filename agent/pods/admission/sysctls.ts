import type { Pod } from "../../kube/types.ts";
import type { AdmissionContext, Rejection } from "./port.ts";

// Sysctls that are namespaced and cannot hurt others, with the kernel that made them so.
const safe: Readonly<Record<string, string>> = {
  "kernel.shm_rmid_forced": "0.0",
  "net.ipv4.ip_local_port_range": "0.0",
  "net.ipv4.tcp_syncookies": "0.0",
  "net.ipv4.ping_group_range": "0.0",
  "net.ipv4.ip_unprivileged_port_start": "0.0",
  "net.ipv4.ip_local_reserved_ports": "3.16",
  "net.ipv4.tcp_keepalive_time": "4.5",
  "net.ipv4.tcp_keepalive_intvl": "4.5",
  "net.ipv4.tcp_keepalive_probes": "4.5",
  "net.ipv4.tcp_fin_timeout": "4.6",
  "net.ipv4.tcp_rmem": "4.15",
  "net.ipv4.tcp_wmem": "4.15",
};

/** The first sysctl of a pod that must not be set here; undefined if all may. */
export function forbiddenSysctl(
  { spec }: Pod,
  { allowedUnsafeSysctls, kernelVersion }: Pick<AdmissionContext, "allowedUnsafeSysctls" | "kernelVersion">,
): Rejection | undefined {
  for (const { name: given } of spec.securityContext?.sysctls ?? []) {
    const name = sysctlName(given);
    const forbid = (why: string) => ({
      reason: "SysctlForbidden",
      message: `forbidden sysctl: ${JSON.stringify(name)} ${why}`,
    });
    if (!isSafe(name, kernelVersion) && !isAllowed(name, allowedUnsafeSysctls)) return forbid("not allowlisted");
    if (spec.hostNetwork === true && name.startsWith("net.")) return forbid("not allowed with host net enabled");
    if (spec.hostIPC === true && isIPC(name)) return forbid("not allowed with host ipc enabled");
  }
  return undefined;
}

/**
 * A sysctl's name with dots between its parts. `net/ipv4/conf/eth0.7/forwarding` is another way to write
 * `net.ipv4.conf.eth0/7.forwarding`: which of both marks comes first says what it means. Pure.
 */
export function sysctlName(name: string): string {
  const separator = /[./]/.exec(name)?.[0];
  if (separator !== "/") return name;
  return name.replaceAll(/[./]/g, (mark) => (mark === "/" ? "." : "/"));
}

function isSafe(name: string, kernelVersion: string): boolean {
  const since = Object.hasOwn(safe, name) ? safe[name] : undefined;
  return since !== undefined && !isOlder(kernelVersion, since);
}

function isOlder(version: string, than: string): boolean {
  const [major = 0, minor = 0] = version.split(/[.-]/).map(Number);
  const [thanMajor = 0, thanMinor = 0] = than.split(".").map(Number);
  return major < thanMajor || (major === thanMajor && minor < thanMinor);
}

function isAllowed(name: string, allowed: readonly string[]): boolean {
  return allowed.some((entry) => {
    const pattern = sysctlName(entry);
    return pattern.endsWith("*") ? name.startsWith(pattern.slice(0, -1)) : name === pattern;
  });
}

function isIPC(name: string): boolean {
  return name === "kernel.sem" || ["kernel.shm", "kernel.msg", "fs.mqueue."].some((prefix) => name.startsWith(prefix));
}
