import type Docker from "dockerode";
import { compareVersions, type DaemonInfo } from "./daemon.ts";

/** What of the daemon decides how a container is described to it. */
export interface ContextOfDaemon {
  daemon: DaemonInfo;
  /** This node's, among those that may share the daemon. */
  nodeName: string;
  /** The lowest `oom_score_adj` that the daemon may give. */
  oomScoreAdjMin: number;
  /** Whether the node's kernel speaks IPv6. */
  hasIPv6: boolean;
}

/** The container's log driver with its options. */
export interface LogConfig {
  Type: string;
  Config: Record<string, string>;
}

/** Body of a bind mount, with what dockerode's types do not know. */
export interface BindMount {
  Type: "bind";
  Source: string;
  Target: string;
  ReadOnly: boolean;
  BindOptions: {
    /** Absent: private, or what Docker needs. */
    Propagation?: "rslave" | "rshared";
    ReadOnlyNonRecursive?: true;
    ReadOnlyForceRecursive?: true;
  };
}

/** Body of `POST /containers/create` with the name, which goes into the query. */
export interface CreateBody extends Omit<Docker.ContainerCreateOptions, "HostConfig" | "abortSignal"> {
  name: string;
  HostConfig: HostConfig;
}

export interface HostConfig extends Omit<Docker.HostConfig, "Mounts"> {
  CgroupnsMode: "host" | "private";
  Mounts?: BindMount[];
}

// From here on a bind mount can say how its own submounts are to be treated when it is read-only.
const recursiveReadOnlyAPI = "1.44";

/** True if the daemon can be told whether a read-only mount's submounts are to be read-only as well. */
export function knowsRecursiveReadOnly({ apiVersion }: Pick<DaemonInfo, "apiVersion">): boolean {
  return compareVersions(apiVersion, recursiveReadOnlyAPI) >= 0;
}

/** Where a pod's cgroups hang, in the words of the daemon's driver: systemd wants the slice's name alone. */
export function cgroupParent(path: string, { cgroupDriver }: Pick<DaemonInfo, "cgroupDriver">): string {
  return cgroupDriver === "systemd" ? path.slice(path.lastIndexOf("/") + 1) : path;
}

/** What holds for every container that we make, whatever the daemon's own defaults. */
export const commonHostConfig = {
  AutoRemove: false,
  // The agent restarts containers; one that the daemon restarts by itself would escape its back-off.
  RestartPolicy: { Name: "no" },
  // The pod's processes are as the image has them, also where the daemon puts an init before them by default.
  Init: false,
} as const satisfies Docker.HostConfig;

// A HEALTHCHECK in the image is Docker's idea of health and would run beside the pod's own probes.
export const noHealthcheck = { Test: ["NONE"] };
