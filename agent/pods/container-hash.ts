import type { Container } from "../kube/types.ts";

// FNV-1a, 32 bit.
const offsetBasis = 0x811c9dc5;
const prime = 0x01000193;

/**
 * The hash that the reference writes to the annotation `io.kubernetes.container.hash`: FNV-1a-32 over the printed form
 * of the bytes of `{"image":…,"name":…}`. Only name and image matter, so that a container of the reference keeps
 * running when nodelet takes over, and the other way round. Lowercase hex, as the annotation has it.
 */
export function containerHash(container: Pick<Container, "name" | "image">): string {
  const json = JSON.stringify({ image: container.image ?? "", name: container.name }).replace(
    /[<>&\u2028\u2029]/g,
    (c) => `\\u${c.charCodeAt(0).toString(16).padStart(4, "0")}`,
  );
  const printed = `([]uint8)[${[...Buffer.from(json, "utf8")].join(" ")}]`;
  let hash = offsetBasis;
  for (let i = 0; i < printed.length; i++) {
    hash ^= printed.charCodeAt(i);
    hash = Math.imul(hash, prime);
  }
  return (hash >>> 0).toString(16);
}
