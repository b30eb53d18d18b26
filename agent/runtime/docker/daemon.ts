import { AgentError } from "../../lib/errors.ts";
import { isPlainRuntime } from "../plain-runtimes.ts";
import { fieldsOf, textOf, textsOf } from "./answers.ts";

/** What the daemon says of itself, as far as something here depends on it. */
export interface DaemonInfo {
  /** "20.10.24" */
  version: string;
  /** Negotiated: "1.41". */
  apiVersion: string;
  cgroupDriver: "systemd" | "cgroupfs" | "none";
  cgroupVersion: 1 | 2;
  /** Docker's data root. */
  rootDir: string;
  storageDriver: string;
  /**
   * Told where images and containers' own files are in containerd's keeping, not below the data root: the socket of that
   * containerd, "" if the daemon does not say which.
   */
  containerdStore?: { address: string };
  /** As `docker info` lists them: "name=seccomp,profile=default", "name=apparmor", "name=selinux", "name=rootless", … */
  securityOptions: string[];
  /** Names of the OCI runtimes that it can be asked for: "runc", … */
  runtimes: string[];
  defaultRuntime: string;
  /** As `Runtime.hasPlainContainers` has it. */
  hasPlainContainers: boolean;
  /** Whether the kernel limits swap for it. */
  swapLimit: boolean;
  memoryLimit: boolean;
  cpuCfsQuota: boolean;
  pidsLimit: boolean;
  liveRestore: boolean;
  loggingDriver: string;
  /** Whether it gives containers devices by their CDI names: where it does, it names the directories of their descriptions. */
  hasCDI: boolean;
  /** Containers of everybody on this daemon. */
  containers: number;
}

// 20.10, of the end of 2020: cgroup namespaces and cgroup v2 came with it, and no older one is maintained anywhere.
const apiVersionMin = "1.41";

// 28.3's. Later ones serve it, too; what they change in their own is not asked for.
const apiVersionMax = "1.51";

/**
 * The API version to speak with a daemon: the newest that both know. Throws Invalid if there is none.
 *
 * @param version the answer of `/version`
 */
export function negotiateVersion(version: unknown): string {
  const fields = fieldsOf(version);
  const newest = textOf(fields["ApiVersion"]);
  const oldest = textOf(fields["MinAPIVersion"]) || newest;
  const engine = textOf(fields["Version"]);
  if (!/^\d+\.\d+$/.test(newest)) {
    throw new AgentError("Invalid", "what answers at the socket is no Docker daemon: it does not tell an API version");
  }
  if (compareVersions(newest, apiVersionMin) < 0) {
    throw new AgentError(
      "Invalid",
      `Docker Engine ${engine} (API ${newest}) is too old: 20.10 (API ${apiVersionMin}) or later is needed`,
    );
  }
  if (compareVersions(oldest, apiVersionMax) > 0) {
    throw new AgentError(
      "Invalid",
      `Docker Engine ${engine} speaks no API older than ${oldest}; this agent knows it up to ${apiVersionMax}`,
    );
  }
  return compareVersions(newest, apiVersionMax) < 0 ? newest : apiVersionMax;
}

/**
 * Throws Invalid for a daemon that cannot run pods: not Linux, rootless, or with user namespaces for all.
 *
 * @param version the answer of `/version`
 * @param info    the answer of `/info`
 */
export function readDaemonInfo(version: unknown, info: unknown): DaemonInfo {
  const fields = fieldsOf(info);
  const osType = textOf(fields["OSType"]);
  if (osType !== "linux") {
    throw new AgentError("Invalid", `the Docker daemon runs ${osType || "unknown"} containers: linux is needed`);
  }
  const securityOptions = textsOf(fields["SecurityOptions"]);
  if (hasSecurityOption({ securityOptions }, "rootless")) {
    throw new AgentError("Invalid", "the Docker daemon is rootless: pods need one that runs as root");
  }
  // Then root in a pod would be nobody on the node: volumes' owners are wrong, and the node's namespaces cannot be had.
  if (hasSecurityOption({ securityOptions }, "userns")) {
    throw new AgentError("Invalid", "the Docker daemon has userns-remap set: pods need one without");
  }
  const cgroupDriver = textOf(fields["CgroupDriver"]);
  return {
    version: textOf(fieldsOf(version)["Version"]),
    apiVersion: negotiateVersion(version),
    cgroupDriver: cgroupDriver === "systemd" || cgroupDriver === "none" ? cgroupDriver : "cgroupfs",
    cgroupVersion: textOf(fields["CgroupVersion"]) === "2" ? 2 : 1,
    rootDir: textOf(fields["DockerRootDir"]),
    storageDriver: textOf(fields["Driver"]),
    ...(hasContainerdStore(fields["DriverStatus"])
      ? { containerdStore: { address: textOf(fieldsOf(fields["Containerd"])["Address"]) } }
      : {}),
    securityOptions,
    runtimes: Object.keys(fieldsOf(fields["Runtimes"])).sort(),
    defaultRuntime: textOf(fields["DefaultRuntime"]),
    hasPlainContainers: isPlain(fieldsOf(fields["Runtimes"])[textOf(fields["DefaultRuntime"])]),
    swapLimit: fields["SwapLimit"] === true,
    memoryLimit: fields["MemoryLimit"] === true,
    cpuCfsQuota: fields["CpuCfsQuota"] === true,
    pidsLimit: fields["PidsLimit"] === true,
    liveRestore: fields["LiveRestoreEnabled"] === true,
    loggingDriver: textOf(fields["LoggingDriver"]),
    hasCDI: textsOf(fields["CDISpecDirs"]).length > 0,
    containers: typeof fields["Containers"] === "number" ? fields["Containers"] : 0,
  };
}

/** True if the daemon lists a security option: "apparmor", "selinux", "seccomp", "userns". */
export function hasSecurityOption({ securityOptions }: Pick<DaemonInfo, "securityOptions">, name: string): boolean {
  return securityOptions.some((option) => option.split(",").includes(`name=${name}`));
}

/** @param runtime as the daemon lists it: by its binary, called as runc is, or since 23.0 by a shim of containerd's */
function isPlain(runtime: unknown): boolean {
  const { path, runtimeType = "" } = fieldsOf(runtime);
  return runtimeType === "" && isPlainRuntime(textOf(path));
}

/** `DriverStatus` is a list of names and values. */
function hasContainerdStore(driverStatus: unknown): boolean {
  return (
    Array.isArray(driverStatus) && driverStatus.some((pair) => textsOf(pair)[1] === "io.containerd.snapshotter.v1")
  );
}

/** Compares "1.9" and "1.41" by number: negative if `a` is the older. */
export function compareVersions(a: string, b: string): number {
  const [majorA = 0, minorA = 0] = a.split(".").map(Number);
  const [majorB = 0, minorB = 0] = b.split(".").map(Number);
  return majorA - majorB || minorA - minorB;
}
