import type Docker from "dockerode";
import { AgentError } from "../../lib/errors.ts";
import type { ContainerSecurityContext, SandboxSecurityContext, SecurityProfile, SELinuxOption } from "../port.ts";
import { type DaemonInfo, hasSecurityOption } from "./daemon.ts";

/** Security settings of one container in Docker's words. Throws Invalid for what Docker cannot keep. Pure. */
export function containerSecurity(
  what: string,
  security: ContainerSecurityContext,
  daemon: Pick<DaemonInfo, "securityOptions">,
  seccompProfile: string | undefined,
): Pick<
  Docker.HostConfig,
  "Privileged" | "ReadonlyRootfs" | "CapAdd" | "CapDrop" | "GroupAdd" | "SecurityOpt" | "MaskedPaths" | "ReadonlyPaths"
> {
  return {
    Privileged: security.privileged,
    ReadonlyRootfs: security.readonlyRootfs,
    ...capabilities(security.capabilities),
    ...groups(what, security),
    SecurityOpt: [
      ...(security.noNewPrivs ? ["no-new-privileges"] : []),
      ...selinuxOptions(security.selinux),
      ...seccompOption(what, security, seccompProfile),
      ...apparmorOption(what, security.apparmor, daemon),
    ],
    // Absent, Docker would take its own lists; empty ones mean that nothing is hidden.
    MaskedPaths: [...security.maskedPaths],
    ReadonlyPaths: [...security.readonlyPaths],
  };
}

/**
 * Security settings of the pause container. It only holds namespaces, so it may do nothing at all, also in the sandbox of a
 * privileged pod. Throws Invalid for what Docker cannot keep. Pure.
 */
export function sandboxSecurity(
  what: string,
  security: SandboxSecurityContext,
): Pick<Docker.HostConfig, "Privileged" | "ReadonlyRootfs" | "CapDrop" | "GroupAdd" | "SecurityOpt"> {
  return {
    Privileged: false,
    ReadonlyRootfs: security.readonlyRootfs,
    CapDrop: ["ALL"],
    ...groups(what, security),
    // The containers join its SELinux label with its IPC namespace.
    SecurityOpt: ["no-new-privileges", ...selinuxOptions(security.selinux)],
  };
}

/**
 * `uid[:gid]` or `name[:gid]`; undefined: the image's user. Throws Invalid for a group without a user, which would silently
 * replace the image's user by root. Pure.
 */
export function containerUser(
  what: string,
  {
    runAsUser,
    runAsUsername,
    runAsGroup,
  }: Pick<ContainerSecurityContext, "runAsUser" | "runAsUsername" | "runAsGroup">,
): string | undefined {
  const user = runAsUser === undefined ? (runAsUsername ?? "") : String(runAsUser);
  if (user !== "") return runAsGroup === undefined ? user : `${user}:${runAsGroup}`;
  if (runAsGroup === undefined) return undefined;
  throw new AgentError("Invalid", `${what}: runAsGroup ${runAsGroup} needs a user: set runAsUser, too`);
}

function capabilities({ add, drop }: ContainerSecurityContext["capabilities"]): {
  CapAdd?: string[];
  CapDrop?: string[];
} {
  const dropped = drop.map(capabilityName);
  // Of one that is added and dropped Docker makes an added one, Kubernetes' runtimes a dropped one.
  const added = add.map(capabilityName).filter((name) => !dropped.includes(name));
  return {
    ...(added.length === 0 ? {} : { CapAdd: [...new Set(added)] }),
    ...(dropped.length === 0 ? {} : { CapDrop: [...new Set(dropped)] }),
  };
}

function capabilityName(name: string): string {
  const upper = name.toUpperCase();
  return upper === "ALL" || upper.startsWith("CAP_") ? upper : `CAP_${upper}`;
}

function groups(
  what: string,
  {
    supplementalGroups,
    supplementalGroupsPolicy,
  }: Pick<ContainerSecurityContext, "supplementalGroups" | "supplementalGroupsPolicy">,
): { GroupAdd?: string[] } {
  if (supplementalGroupsPolicy === "Strict") throw new AgentError("Unimplemented", `${what}: ${noStrictGroups}`);
  return supplementalGroups.length === 0 ? {} : { GroupAdd: supplementalGroups.map(String) };
}

/** Why a pod with strict supplemental groups is refused, for people. */
export const noStrictGroups =
  "supplementalGroupsPolicy Strict needs a CRI runtime: Docker always adds the groups of the image's /etc/group";

function selinuxOptions(selinux: SELinuxOption | undefined): string[] {
  if (selinux === undefined) return [];
  return (["user", "role", "type", "level"] as const).flatMap((part) =>
    selinux[part] === "" ? [] : [`label=${part}:${selinux[part]}`],
  );
}

function seccompOption(
  what: string,
  { privileged, seccomp }: Pick<ContainerSecurityContext, "privileged" | "seccomp">,
  profile: string | undefined,
): string[] {
  // Newer daemons would confine a privileged container by a profile that is given.
  if (privileged || seccomp === undefined || seccomp.type === "Unconfined") return ["seccomp=unconfined"];
  if (seccomp.type === "RuntimeDefault") return []; // the daemon's own: built in, or what its administrator chose
  if (profile === undefined) {
    throw new AgentError("Invalid", `${what}: seccomp profile ${seccomp.localhostRef} was not read`);
  }
  return [`seccomp=${profile}`];
}

function apparmorOption(
  what: string,
  apparmor: SecurityProfile | undefined,
  daemon: Pick<DaemonInfo, "securityOptions">,
): string[] {
  if (apparmor === undefined || apparmor.type === "RuntimeDefault") return [];
  const isOn = hasSecurityOption(daemon, "apparmor");
  if (apparmor.type === "Unconfined") return isOn ? ["apparmor=unconfined"] : [];
  if (isOn) return [`apparmor=${apparmor.localhostRef}`];
  const message = `${what}: AppArmor profile "${apparmor.localhostRef}" cannot be enforced: the Docker daemon has no AppArmor`;
  throw new AgentError("Invalid", message);
}
