import type { QOSClass } from "../kube/types.ts";

export type CgroupDriver = "cgroupfs" | "systemd";

/**
 * Path of a cgroup below the visible root, from its logical components:
 *
 *   cgroupfs   ["kubepods", "burstable", "pod1-2"]  →  /kubepods/burstable/pod1-2
 *   systemd    ["kubepods", "burstable", "pod1-2"]  →  /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice
 */
export function cgroupPath(components: readonly string[], driver: CgroupDriver): string {
  if (driver === "cgroupfs") return `/${components.join("/")}`;
  let prefix = "";
  let path = "";
  for (const component of components) {
    // systemd reads "-" in a slice's name as a level of its tree.
    prefix += `${prefix === "" ? "" : "-"}${component.replaceAll("-", "_")}`;
    path += `/${prefix}.slice`;
  }
  return path === "" ? "/" : path;
}

/** Logical components of a configured cgroup such as `/kubelet`; a name in systemd's form is taken apart. */
export function cgroupComponents(name: string): string[] {
  const parts = name.split("/").filter((part) => part !== "");
  const last = parts.at(-1);
  if (last?.endsWith(".slice") !== true) return parts;
  return last
    .slice(0, -".slice".length)
    .split("-")
    .map((part) => part.replaceAll("_", "-"));
}

/** Components under the pods root that hold the pods of one QoS class. Guaranteed pods lie at the root itself. */
export function qosComponents(qos: QOSClass): string[] {
  if (qos === "Guaranteed") return ["kubepods"];
  return ["kubepods", qos.toLowerCase()];
}

/** The component of one pod. */
export function podComponent(podUID: string): string {
  return `pod${podUID}`;
}

/** The pod UID in the last path component of a pod's cgroup; undefined for a directory that is no pod's. */
export function podUIDOf(directory: string, driver: CgroupDriver): string | undefined {
  if (driver === "cgroupfs") return /^pod([0-9a-zA-Z-]+)$/.exec(directory)?.[1];
  return /-pod([0-9a-zA-Z_]+)\.slice$/.exec(directory)?.[1]?.replaceAll("_", "-");
}
