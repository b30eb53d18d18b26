import type { ContainerConfig, PodSandboxConfig } from "../port.ts";

/** What of a sandbox its objects' names are made of. */
export type NamedSandbox = Pick<PodSandboxConfig, "name" | "namespace" | "uid" | "attempt">;

// The sandbox's container in names, as with every kubelet that drove Docker.
const sandboxWord = "POD";

/** `k8s_POD_<pod>_<namespace>_<uid>_<attempt>` */
export function sandboxName({ name, namespace, uid, attempt }: NamedSandbox): string {
  return ["k8s", sandboxWord, name, namespace, uid, attempt].join("_");
}

/** `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`; the attempt is the container's own. */
export function containerName(
  { name, attempt }: Pick<ContainerConfig, "name" | "attempt">,
  pod: Omit<NamedSandbox, "attempt">,
): string {
  return ["k8s", name, pod.name, pod.namespace, pod.uid, attempt].join("_");
}

/** True for `own`, and for what {@link withRandomSuffix} made of it. Pure. */
export function isNamed(name: string, own: string): boolean {
  return name.startsWith(own) && /^(?:_[0-9a-f]{8})?$/.test(name.slice(own.length));
}

/** Another name for the same object, for when the first is taken by what cannot be removed. */
export function withRandomSuffix(name: string, random: () => number = Math.random): string {
  return `${name}_${Math.floor(random() * 0x1_0000_0000)
    .toString(16)
    .padStart(8, "0")}`;
}
