import type { PersistentVolume } from "../kube/types.ts";

const mountOptionsAnnotation = "volume.beta.kubernetes.io/mount-options";

/** Mount options that a PersistentVolume asks for; the annotation, older than the field, wins over it. Pure. */
export function mountOptionsOf({ metadata, spec }: PersistentVolume): string[] {
  const annotation = metadata.annotations?.[mountOptionsAnnotation];
  const options = annotation === undefined ? (spec.mountOptions ?? []) : annotation.split(",");
  return options.filter((option) => option !== "");
}

/** Options of a volume and those of its kind as one list: each once, sorted. Pure. */
export function joinMountOptions(...lists: readonly (readonly string[])[]): string[] {
  return [...new Set(lists.flat())].toSorted();
}
