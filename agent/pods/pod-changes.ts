import { isDeepStrictEqual } from "node:util";
import type { Pod } from "../kube/types.ts";
import { specContainers } from "./names.ts";
import { isSameRequirements, resizableContainers } from "./resize/allocation.ts";

/** What of a pod's object is other than it was, as far as its worker has to know at once. */
export interface PodChanges {
  /** Something in the spec. */
  spec: boolean;
  /** Names of containers that have another image. */
  images: string[];
  /** Labels or annotations. */
  texts: boolean;
}

/** Compares two versions of one pod. Pure. */
export function podChanges(before: Pod, after: Pod): PodChanges {
  const old = new Map(specContainers(before).map(({ container }) => [container.name, container]));
  const changed = specContainers(after).filter(({ container: { name, image } }) => {
    const container = old.get(name);
    return container !== undefined && container.image !== image;
  });
  return {
    spec: after.metadata.generation !== before.metadata.generation,
    images: changed.map(({ container }) => container.name),
    texts:
      !isDeepStrictEqual(before.metadata.labels, after.metadata.labels) ||
      !isDeepStrictEqual(before.metadata.annotations, after.metadata.annotations),
  };
}

/** Names of containers that have other resources than they had. Pure. */
export function resizedContainers(before: Pod, after: Pod): string[] {
  const old = new Map(resizableContainers(before.spec).map(({ name, resources }) => [name, resources]));
  const changed = resizableContainers(after.spec).filter(
    ({ name, resources }) => !isSameRequirements(old.get(name), resources),
  );
  return changed.map(({ name }) => name);
}
